"""One model's training: the loop, on Accelerate, and what it consists of."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from hesitant.inputs import Batch, as_batch, as_targets, training_loader
from hesitant.methods import SNGP, Deterministic, OutputProbe, Tempered, forget_calibrations, logits_of, require_rows
from hesitant.prediction import Prediction
from hesitant.training.checkpoint import Progress, global_random_states, load_checkpoint, save_checkpoint
from hesitant.training.history import History
from hesitant.training.run_identity import run_identity
from hesitant.training.schedule import Schedule, steps_per_epoch
from hesitant.training.settings import NO_TARGETS, Settings

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    model: nn.Module,
    data: Any,
    settings: Settings,
    *,
    loader: DataLoader[Any] | None = None,
    title: str = "training",
) -> History:
    """Trains one model, and fits the covariance of an SNGP at the end.

    A calibration is forgotten: it belongs to the weights as they were. The model is left in eval mode.

    Args:
        model: A classifier, or a method around one.
        data: What fit was given.
        settings: How.
        loader: Gives the batches of the data; None makes it.
        title: Of the bar.
    """
    with ExitStack() as stack:
        accelerator = stack.enter_context(
            accelerating(settings.mixed_precision, settings.gradient_accumulation_steps, settings.device)
        )
        stack.enter_context(seeded(settings.seed + accelerator.process_index, accelerator.device))
        if loader is None:
            loader = training_loader(data, settings.batch_size, torch.Generator().manual_seed(settings.seed))
        start_head(model, data, settings, accelerator.device)
        run = _Run(accelerator, model, loader, settings)
        forget_calibrations(model)
        validation_data, patience = settings.validation_data, settings.patience
        state, best = run.resume(settings.checkpoint)
        bar = progress_bar(settings.progress and accelerator.is_main_process, settings.epochs, state.epoch, title)
        with run.released_afterwards(), bar as advance:
            while state.epoch < settings.epochs and not (patience is not None and state.has_waited(patience)):
                began = time.perf_counter()
                state.train_loss.append(run.epoch(state.epoch))
                state.epoch += 1
                if validation_data is not None:
                    nll = run.agreed(validation_nll(model, data, settings))
                    state.validation_nll.append(nll)
                    if nll <= min(state.validation_nll):
                        state.best_epoch = state.epoch
                        best = weights_of(model)
                run.schedule.after_epoch((state.validation_nll or state.train_loss)[-1])
                state.seconds += time.perf_counter() - began
                run.save(settings.checkpoint, state, best if patience is not None else None)
                advance(state)
        began = time.perf_counter()
        if patience is not None and best is not None:
            model.load_state_dict(best)
        fit_covariance(model, data, settings.batch_size)
        model.eval()
        state.seconds += time.perf_counter() - began
    return History(state.train_loss, state.validation_nll, state.best_epoch, state.seconds)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Answers a copy of all that is saved of the model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class _Run:
    """The prepared model, optimizer and data of one call of fit."""

    def __init__(
        self,
        accelerator: "Accelerator",
        model: nn.Module,
        loader: DataLoader[Any],
        settings: Settings,
    ) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("model has no trainable parameter: set requires_grad on those that are to learn.")
        model.to(accelerator.device)
        self.accelerator, self.model = accelerator, model
        self.loss, self.max_grad_norm = settings.loss_of(model), settings.max_grad_norm
        self.classifies, self.outputs = settings.loss is None, settings.outputs_of(model)
        self.generator = cast(torch.Generator, getattr(loader, "generator", None) or torch.Generator())
        self.raw_optimizer = settings.make_optimizer(parameters)
        self.plain = steps_plainly(accelerator)
        if self.plain:
            self.optimizer = self.raw_optimizer
            # One worker's batches are moved below, where they are understood; else this deals streams out.
            placement = [True, accelerator.num_processes > 1]
            self.prepared, self.loader = accelerator.prepare(model, loader, device_placement=placement)
        else:
            self.prepared, self.optimizer, self.loader = accelerator.prepare(model, self.raw_optimizer, loader)
        steps = steps_per_epoch(self.loader, settings.gradient_accumulation_steps)  # of the worker
        self.schedule = Schedule(settings.make_scheduler, settings.schedule_every, self.raw_optimizer, steps)
        self.identity = run_identity(
            model, settings, loader, self.raw_optimizer, self.schedule, accelerator.num_processes
        )

    def epoch(self, number: int) -> float:
        """Trains for one epoch and answers its mean loss; ``number`` counts the epochs before it."""
        gp = self.model.gp if isinstance(self.model, SNGP) else None
        if gp is not None:
            gp.expect_no_step()  # a resumed run cannot know of one, and is to end as an unbroken one
            if gp.laplace.momentum == 1:
                gp.reset_covariance()  # nothing is forgotten: without this, each epoch would count the data once more
        self.prepared.train()
        total, count = torch.zeros((), dtype=torch.float64, device=self.accelerator.device), 0
        for position, item in enumerate(self.loader):
            batch = as_batch(item).to(self.accelerator.device)
            if batch.targets is None:
                raise ValueError(NO_TARGETS)
            with nullcontext() if self.plain else self.accelerator.accumulate(self.prepared):
                logits = self._logits(batch, first=number == position == 0)
                targets = cast(Tensor, as_targets(batch.targets)) if self.classifies else batch.targets
                if self.classifies and number == 0:
                    require_classes(targets, logits)
                loss = self.loss(logits, targets)
                total.add_(loss.detach(), alpha=len(logits))
                count += len(logits)
                if isinstance(self.model, SNGP):
                    loss = loss + self.model.regularization_loss()
                if self.plain:
                    loss.backward()
                else:
                    self.accelerator.backward(loss)
                if self.max_grad_norm is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.max_grad_norm)
                self.optimizer.step()
                if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                    self.schedule.after_step()
                self.optimizer.zero_grad()
        sums = torch.stack([total, total.new_tensor(count)])
        loss_sum, inputs = cast(Tensor, self.accelerator.reduce(sums)).tolist()
        if inputs == 0:
            raise ValueError("data holds no batch: expected at least one input.")
        return finite(float(loss_sum / inputs))

    def _logits(self, batch: Batch, *, first: bool) -> Tensor:
        """Answers the model's logits; the first time, before any step, it looks at how the code ends."""
        if not self.classifies:
            return logits_of(self.prepared(*batch.args, **batch.kwargs)).float()
        with OutputProbe() if first else nullcontext() as probe:
            logits = logits_of(self.prepared(*batch.args, **batch.kwargs))
        if probe is not None:
            probe.require(logits, self.outputs, self.model)
        return require_rows(logits, batch.num_inputs, self.model).float()

    def save(self, path: str | Path | None, state: Progress, best: dict[str, Tensor] | None) -> None:
        """Writes the checkpoint, from the main process alone."""
        if path is None:
            return
        gather: Callable[[Tensor], Tensor] = self.accelerator.gather
        device = self.accelerator.device
        random_states = {name: gather(own.to(device)).cpu() for name, own in global_random_states().items()}
        if self.accelerator.is_main_process:
            parts = self.model, self.raw_optimizer, self.generator, best, self.schedule.scheduler
            save_checkpoint(Path(path), state, *parts, random_states=random_states, run=self.identity)
        self.accelerator.wait_for_everyone()

    def resume(self, path: str | Path | None) -> tuple[Progress, dict[str, Tensor] | None]:
        """Goes back to the checkpoint, if there is one."""
        if path is None or not Path(path).exists():
            return Progress(), None
        worker = self.accelerator.process_index
        parts = self.model, self.raw_optimizer, self.generator, self.schedule.scheduler
        return load_checkpoint(Path(path), *parts, worker, run=self.identity)

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
            if not self.plain:
                self.accelerator.free_memory()  # collects garbage, which takes as long as hundreds of small steps


def steps_plainly(accelerator: "Accelerator") -> bool:
    """Answers whether Accelerate has nothing to do at a step, for which it would look for packages on the disk.

    It has where gradients are accumulated or scaled, or weights sharded; under DDP backward itself averages gradients.
    """
    unsharded = accelerator.distributed_type.value in ("NO", "MULTI_CPU", "MULTI_GPU")
    return unsharded and accelerator.scaler is None and accelerator.gradient_accumulation_steps == 1


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    """Answers the default optimizer."""
    parameters = list(parameters)
    # The fused kernel knows CPU and CUDA floats; it writes the same numbers.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def start_head(model: nn.Module, data: Any, settings: Settings, device: torch.device) -> None:
    """Lets an SNGP whose Gaussian process is still as it was drawn begin with what its classifier knew."""
    if isinstance(model, SNGP):
        with seeded(settings.seed, device):
            model.to(device).start_from_classifier(data, batch_size=settings.batch_size, seed=settings.seed)


def fit_covariance(model: nn.Module, data: Any, batch_size: int) -> None:
    """Fits the covariance of an SNGP to the data, unless it is kept while training."""
    if isinstance(model, SNGP) and model.gp.laplace.momentum is None:
        model.fit_covariance(data, batch_size=batch_size)


def finite(loss: float) -> float:
    """Answers an epoch's mean loss, if it is a number.

    Raises:
        ValueError: It is none.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"the training loss is {loss}: the inputs may hold NaN or Inf, or learning_rate may be too high."
        )
    return loss


def validation_nll(model: nn.Module, data: Any, settings: "Settings") -> float:
    """Answers the negative log-likelihood of the distribution that will be deployed."""
    fit_covariance(model, data, settings.batch_size)
    answering: Any = model if isinstance(model, Tempered) else Deterministic(model, outputs=settings.outputs)
    prediction: Prediction = answering.predict(settings.validation_data, batch_size=settings.batch_size)
    targets = prediction.targets
    if targets is None:
        raise ValueError(f"validation_{NO_TARGETS}")
    return float(-prediction.log_probs.gather(1, targets.unsqueeze(1)).mean())


def require_classes(targets: Tensor, logits: Tensor) -> None:
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
def accelerating(mixed_precision: str, gradient_accumulation_steps: int, device: str | None) -> Iterator["Accelerator"]:
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
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds what draws from the global generators (dropout), and puts them back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def progress_bar(show: bool, epochs: int, done: int, title: str) -> Iterator[Callable[[Progress], None]]:
    """Gives what is to be told of each epoch, and shows it."""
    if not show:
        yield lambda state: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=epochs, completed=done)

        def advance(state: Progress) -> None:
            text = f"{title}: loss {state.train_loss[-1]:.4f}"
            if state.validation_nll:
                text += f", validation NLL {state.validation_nll[-1]:.4f}"
            bar.update(task, completed=state.epoch, description=text)

        yield advance
