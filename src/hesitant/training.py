"""fit(): one training loop for every method, on Accelerate."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hesitant.checkpoint import Progress, global_random_states, load_checkpoint, save_checkpoint
from hesitant.methods import SNGP, Deterministic
from hesitant.methods.batches import as_batch, logits_of
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss = Callable[[Tensor, Tensor], Tensor]
MixedPrecision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class History:
    """How a training run went: a number for each epoch, and the seconds it took."""

    train_loss: list[float]
    validation_nll: list[float]
    best_epoch: int | None
    seconds: float


def fit(
    model: nn.Module,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    loss: Loss | None = None,
    validation_data: Any = None,
    patience: int | None = None,
    mixed_precision: MixedPrecision = "no",
    gradient_accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> History:
    """Trains a model or method, and fits the covariance of an SNGP at the end.

    Runs on one device, or on several GPUs and machines under ``accelerate launch`` or ``torchrun``. Nothing else in the
    library needs it: an own loop does as well.

    Args:
        model: A classifier, or a method around one.
        data: Training data: a Dataset of ``(x, target)`` pairs or of dicts with ``labels``, a DataLoader, or a tuple of
            tensors, the targets last.
        epochs: Passes over the data.
        batch_size: Inputs in one step of each worker; a DataLoader keeps its own.
        learning_rate: Of AdamW, the default optimizer.
        weight_decay: Of AdamW.
        optimizer: Makes another optimizer from the trainable parameters.
        scheduler: Makes a learning-rate schedule of the optimizer; it advances once an epoch.
        loss: ``loss(logits, targets)``, a scalar; the default is the cross-entropy, binary for a single logit.
        validation_data: Data to measure the negative log-likelihood on after each epoch, of the distribution that will
            be deployed: the covariance is fitted first.
        patience: Stops when the validation NLL has not improved for that many epochs, and goes back to the best
            weights.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        gradient_accumulation_steps: Batches in one optimizer step.
        max_grad_norm: Clips the norm of the gradient.
        seed: Of the data's order and of dropout; the global random state is as before afterwards.
        checkpoint: A file to which the run is saved after each epoch; if it is there already, training goes on from
            it, to the result that an unbroken run has.
        device: ``"cpu"`` keeps training off the GPU; None lets Accelerate choose.
        progress: Whether to show a bar.

    Raises:
        ValueError: An argument is out of its range, a target is no class, or the loss is NaN.
        ImportError: Accelerate is not installed.
    """
    if epochs < 1 or batch_size < 1 or gradient_accumulation_steps < 1:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size} and gradient_accumulation_steps={gradient_accumulation_steps}"
            " must each be at least 1."
        )
    if patience is not None and (validation_data is None or patience < 1):
        raise ValueError(f"patience={patience} must be at least 1 and needs validation_data to stop early by.")
    if mixed_precision not in ("no", "fp16", "bf16"):
        raise ValueError(f"mixed_precision={mixed_precision!r} is not known: expected 'no', 'fp16' or 'bf16'.")
    with (
        _accelerating(mixed_precision, gradient_accumulation_steps, device) as accelerator,
        _seeded(seed + accelerator.process_index, accelerator.device),
    ):
        run = _Run(
            accelerator,
            model,
            _loader(data, batch_size, torch.Generator().manual_seed(seed)),
            optimizer or (lambda parameters: _adamw(parameters, learning_rate, weight_decay)),
            scheduler,
            loss or cross_entropy,
            max_grad_norm,
        )
        covariance_data = _as_dataset(data)
        state, best = run.resume(checkpoint)
        bar = _bar(progress and accelerator.is_main_process, epochs, state.epoch)
        with run.released_afterwards(), bar as advance:
            while state.epoch < epochs and not (patience is not None and state.has_waited(patience)):
                began = time.perf_counter()
                state.train_loss.append(run.epoch(check_targets=loss is None and state.epoch == 0))
                state.epoch += 1
                if validation_data is not None:
                    nll = run.agreed(_validation_nll(model, covariance_data, validation_data, batch_size))
                    state.validation_nll.append(nll)
                    if nll <= min(state.validation_nll):
                        state.best_epoch = state.epoch
                        best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                state.seconds += time.perf_counter() - began
                run.save(checkpoint, state, best if patience is not None else None)
                advance(state)
        began = time.perf_counter()
        if patience is not None and best is not None:
            model.load_state_dict(best)
        _fit_covariance(model, covariance_data, batch_size)
        state.seconds += time.perf_counter() - began
    return History(state.train_loss, state.validation_nll, state.best_epoch, state.seconds)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Answers the mean cross-entropy of logits ``(B, C)``, or of a single logit ``(B, 1)`` or ``(B,)``, in nats."""
    if logits.ndim == 1 or logits.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(logits.reshape(-1), targets.reshape(-1).to(logits.dtype))
    return F.cross_entropy(logits, targets)


class _Run:
    """The prepared model, optimizer and data of one call of fit."""

    def __init__(
        self,
        accelerator: "Accelerator",
        model: nn.Module,
        loader: DataLoader[Any],
        make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        make_scheduler: Callable[[Optimizer], LRScheduler] | None,
        loss: Loss,
        max_grad_norm: float | None,
    ) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("model has no trainable parameter: set requires_grad on those that are to learn.")
        model.to(accelerator.device)
        self.accelerator, self.model, self.loss, self.max_grad_norm = accelerator, model, loss, max_grad_norm
        self.generator = cast(torch.Generator, getattr(loader, "generator", None) or torch.Generator())
        self.raw_optimizer = make_optimizer(parameters)
        self.scheduler = None if make_scheduler is None else make_scheduler(self.raw_optimizer)
        self.prepared, self.optimizer, self.loader = accelerator.prepare(model, self.raw_optimizer, loader)

    def epoch(self, *, check_targets: bool) -> float:
        """Trains for one epoch and answers its mean loss."""
        gp = self.model.gp if isinstance(self.model, SNGP) else None
        if gp is not None and gp.laplace.momentum == 1:
            gp.reset_covariance()  # nothing is forgotten: without this, each epoch would count the data once more
        self.prepared.train()
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for item in self.loader:
            batch = as_batch(item).to(self.accelerator.device)
            if batch.targets is None:
                raise ValueError("data has no targets: expected (x, target) pairs or dicts with 'labels'.")
            with self.accelerator.accumulate(self.prepared):
                logits = logits_of(self.prepared(*batch.args, **batch.kwargs)).float()
                if check_targets:
                    _check_targets(batch.targets, logits)
                loss = self.loss(logits, batch.targets)
                total += torch.stack([loss.detach().double() * len(logits), total.new_tensor(len(logits))])
                if isinstance(self.model, SNGP):
                    loss = loss + self.model.regularization_loss()
                self.accelerator.backward(loss)
                if self.max_grad_norm is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        loss_sum, count = cast(Tensor, self.accelerator.reduce(total)).tolist()
        if count == 0:
            raise ValueError("data holds no batch: expected at least one input.")
        if not math.isfinite(loss_sum):
            raise ValueError(
                f"the training loss is {loss_sum / count}: the inputs may hold NaN or Inf, or learning_rate may be"
                " too high."
            )
        return float(loss_sum / count)

    def save(self, path: str | Path | None, state: Progress, best: dict[str, Tensor] | None) -> None:
        """Writes the checkpoint, from the main process alone."""
        if path is None:
            return
        gather: Callable[[Tensor], Tensor] = self.accelerator.gather
        device = self.accelerator.device
        random_states = {name: gather(own.to(device)).cpu() for name, own in global_random_states().items()}
        if self.accelerator.is_main_process:
            parts = self.model, self.raw_optimizer, self.generator, best, self.scheduler
            save_checkpoint(Path(path), state, *parts, random_states=random_states)
        self.accelerator.wait_for_everyone()

    def resume(self, path: str | Path | None) -> tuple[Progress, dict[str, Tensor] | None]:
        """Goes back to the checkpoint, if there is one."""
        if path is None or not Path(path).exists():
            return Progress(), None
        worker = self.accelerator.process_index
        return load_checkpoint(Path(path), self.model, self.raw_optimizer, self.generator, self.scheduler, worker)

    def agreed(self, number: float) -> float:
        """Answers the mean of the workers' numbers, so that all decide alike whether to go on."""
        own = torch.tensor(number, dtype=torch.float64, device=self.accelerator.device)
        return float(cast(Tensor, self.accelerator.reduce(own, "mean")))

    @contextmanager
    def released_afterwards(self) -> Iterator[None]:
        """Takes off the model what Accelerate put around its forward, and frees the gradients, also after an error."""
        try:
            yield
        finally:
            self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
            self.raw_optimizer.zero_grad()
            self.accelerator.free_memory()


class _Rows(Dataset[Any]):
    """Tensors, indexed a batch at a time: collating single rows costs more than a step of a small network."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        chosen = torch.tensor(indices)
        return tuple(tensor[chosen] for tensor in self.tensors)


def _as_dataset(data: Any) -> Any:
    if isinstance(data, (tuple, list)) and len(data) > 1 and all(isinstance(x, Tensor) for x in data):
        return TensorDataset(*data)
    if isinstance(data, (tuple, list)):
        return Subset(data, range(len(data)))  # type: ignore[arg-type]  # of inputs; elsewhere a list is one of batches
    return data


def _loader(data: Any, batch_size: int, generator: torch.Generator) -> DataLoader[Any]:
    data = _as_dataset(data)
    if isinstance(data, DataLoader):
        return data
    if not isinstance(data, Dataset) and (isinstance(data, Mapping) or not hasattr(data, "__getitem__")):
        raise TypeError(
            f"data is a {type(data).__name__}: expected a Dataset, a DataLoader, or a tuple of tensors, the targets"
            " last."
        )
    if len(cast(Any, data)) == 0:
        raise ValueError("data is empty: expected at least one input.")
    if type(data) is TensorDataset:
        rows = _Rows(data.tensors)
        return DataLoader(rows, batch_size=batch_size, shuffle=True, generator=generator, collate_fn=_as_they_are)
    return DataLoader(data, batch_size=batch_size, shuffle=True, generator=generator)


def _as_they_are(rows: Any) -> Any:
    return rows


def _adamw(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    parameters = list(parameters)
    # The fused kernel knows CPU and CUDA floats; it writes the same numbers.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def _fit_covariance(model: nn.Module, data: Any, batch_size: int) -> None:
    if isinstance(model, SNGP) and model.gp.laplace.momentum is None:
        model.fit_covariance(data, batch_size=batch_size)


def _validation_nll(model: nn.Module, data: Any, validation_data: Any, batch_size: int) -> float:
    _fit_covariance(model, data, batch_size)
    answering: Any = model if hasattr(model, "predict") else Deterministic(model)
    prediction: Prediction = answering.predict(_as_dataset(validation_data), batch_size=batch_size)
    targets = prediction.targets
    if targets is None:
        raise ValueError("validation_data has no targets: expected (x, target) pairs or dicts with 'labels'.")
    return float(-prediction.log_probs.gather(1, targets.unsqueeze(1)).mean())


def _check_targets(targets: Tensor, logits: Tensor) -> None:
    """Raises ValueError for targets that are no classes, instead of a GPU's device-side assertion."""
    binary = logits.ndim == 1 or logits.shape[-1] == 1
    num_classes = 2 if binary else logits.shape[-1]
    if not binary and targets.is_floating_point() and targets.shape == logits.shape:
        return  # a distribution over the classes for each input
    fitting = targets.numel() == len(logits) if binary else targets.shape == logits.shape[:1]
    if not fitting or (targets.is_floating_point() and not binary):
        raise ValueError(
            f"targets of a batch have shape {tuple(targets.shape)} and dtype {targets.dtype}: expected integers"
            f" ({len(logits)},), or probabilities ({len(logits)}, {num_classes}), for {len(logits)} inputs."
        )
    low, high = targets.min().item(), targets.max().item()
    if low < 0 or high > num_classes - 1:
        raise ValueError(
            f"targets lie in [{low}, {high}]: expected 0 to {num_classes - 1}, as the model has {num_classes} classes."
        )


@contextmanager
def _accelerating(
    mixed_precision: str, gradient_accumulation_steps: int, device: str | None
) -> Iterator["Accelerator"]:
    """Gives an Accelerator of fit's own, and puts that of a caller's own loop back afterwards."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError as error:
        raise ImportError("hesitant.fit needs accelerate: pip install 'hesitant[train]'.") from error
    # Accelerate's state is one for the process, and refuses to change between two calls with different settings.
    shared = [state._shared_state for state in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    GradientState._reset_state()
    try:
        yield Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            cpu=device is not None and torch.device(device).type == "cpu",
        )
    finally:
        for state, kept in zip(shared, before, strict=True):
            state.clear()
            state.update(kept)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds what draws from the global generators (dropout), and puts them back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _bar(show: bool, epochs: int, done: int) -> Iterator[Callable[[Progress], None]]:
    if not show:
        yield lambda state: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=epochs, completed=done)

        def advance(state: Progress) -> None:
            text = f"loss {state.train_loss[-1]:.4f}"
            if state.validation_nll:
                text += f", validation NLL {state.validation_nll[-1]:.4f}"
            bar.update(task, completed=state.epoch, description=text)

        yield advance
