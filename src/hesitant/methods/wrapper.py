"""What every method around one model shares: the model's signature, its attributes, its modes."""

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.checks import as_floating
from hesitant.methods.batches import logits_of, with_logits
from hesitant.methods.tempering import Tempered, tempered
from hesitant.prediction import Prediction
from hesitant.simplex import exact_log, two_class_logits


class ModelWrapper(Tempered):
    """A model with a method around it, which can stand wherever the model stood.

    ``forward`` keeps the signature of the model's (training libraries read it), and attributes that the wrapper does
    not have are the model's.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, *, temperature: float = 1.0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module.")
        self.model = model
        self.temperature = temperature
        bind_forward(self, model)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Binds ``forward`` anew: a pickled or copied method forgets its signature, or whose it is."""
        super().__setstate__(state)
        bind_forward(self, self.model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answers :meth:`call`, under the signature of the model's own ``forward``."""
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Answers what ``forward`` answers: in eval mode logits whose softmax is the predictive distribution."""
        return self._tempered(self.model(*args, **kwargs), kwargs)

    def _tempered(self, output: Any, kwargs: dict[str, Any]) -> Any:
        """Answers what the model answered, its logits divided by the temperature; in training mode as it is."""
        if self.training or self.temperature == 1:
            return output
        return with_logits(output, _divided(logits_of(output), self.temperature), kwargs.get("labels"))

    def __getattr__(self, name: str) -> Any:
        """Answers the model's attribute where the wrapper has none of that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None:
                raise
            return getattr(model, name)


def bind_forward(wrapper: nn.Module, model: nn.Module) -> None:
    """Gives the wrapper's ``forward`` the signature of the model's."""
    signature = inspect.signature(model.forward)
    wrapper.__dict__["forward"] = types.MethodType(_with_signature(type(wrapper).forward, signature), wrapper)


def _with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Answers a copy of a method whose signature, after ``self``, is another function's."""
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, function.__closure__)
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    copy.__signature__ = signature.replace(parameters=[self_parameter, *signature.parameters.values()])  # type: ignore[attr-defined]
    return copy


def device_of(module: nn.Module) -> torch.device:
    """Answers where the module's first weight is."""
    tensors = (tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
    return next(tensors, torch.empty(0)).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Puts the model into eval mode without gradients, gives its device, and restores every mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    try:
        model.eval()
        with torch.no_grad():
            yield device
    finally:
        for module, mode in modes:
            module.training = mode


class Gathered:
    """Gathers what comes in batches in one tensor whose storage grows by half.

    A list of the batches would do, but small tensors that stay, between large ones that go, fragment the heap: a
    million inputs took 2.4 GiB for 30 MiB of answers.
    """

    def __init__(self) -> None:
        self._storage: Tensor | None = None
        self._length = 0
        self._batches = 0
        self._missing = 0

    def append(self, batch: Tensor | None) -> None:
        """Adds a batch ``(B, ...)``; None stands for a batch that has none of it."""
        self._batches += 1
        if batch is None:
            self._missing += 1
            return
        needed = self._length + len(batch)
        if self._storage is None or needed > len(self._storage):
            grown = batch.new_empty(max(needed, self._length * 3 // 2), *batch.shape[1:])
            if self._storage is not None:
                grown[: self._length] = self._storage[: self._length]
            self._storage = grown
        self._storage[self._length : needed] = batch
        self._length = needed

    def tensor(self) -> Tensor | None:
        """Answers all batches as one tensor ``(N, ...)``, or None if no batch had any.

        Raises:
            ValueError: Some batches had it and some had not.
        """
        if 0 < self._missing < self._batches:
            raise ValueError("some batches have targets and some have none: give all of them targets, or none.")
        return None if self._storage is None else self._storage[: self._length]


def prediction_of(
    output: Tensor,
    targets: Tensor | None,
    *,
    temperature: float = 1.0,
    mean_logits: Tensor | None = None,
    logit_variance: Tensor | None = None,
    split_unavailable: str | None = None,
) -> Prediction:
    """Answers the Prediction of a model's output: logits ``(B, C)``, a single logit, or probabilities that sum to 1.

    Its ``logits`` are those before the temperature.
    """
    if is_distribution(output):
        log_probs = None if temperature == 1 else tempered(log_probs_of(output, True), temperature)
        return Prediction(
            output if log_probs is None else log_probs.exp(),
            targets=targets,
            log_probs=log_probs,
            logits=mean_logits,
            logit_variance=logit_variance,
            split_unavailable=split_unavailable,
        )
    if temperature != 1:
        output = as_floating("logits", output)  # half precision would round once more
        mean_logits = output if mean_logits is None else mean_logits
        output = output / temperature
    return Prediction.from_logits(
        output,
        targets=targets,
        mean_logits=mean_logits,
        logit_variance=logit_variance,
        split_unavailable=split_unavailable,
    )


def log_probs_of(output: Tensor, distribution: bool | None = None) -> Tensor:
    """Answers the log-probabilities ``(B, C)`` of a model's output: logits, a single logit, or probabilities.

    ``distribution`` says which, where that is known: to look costs as much as the rest.
    """
    logits = two_class_logits(output)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if torch.compiler.is_compiling():  # which cannot look at numbers
        return torch.where(_sums_to_one(output), exact_log(logits.clamp(min=0)), torch.log_softmax(logits, -1))
    if not (is_distribution(output) if distribution is None else distribution):
        return torch.log_softmax(logits, -1)
    # The rows of a half precision miss 1 by up to its epsilon.
    return exact_log(logits if output.dtype.itemsize >= 4 else logits / logits.sum(-1, keepdim=True))


def is_distribution(output: Tensor) -> bool:
    """Whether a model's output ``(B, C)`` has been through a softmax already: no entry negative, each row sums to 1."""
    if output.ndim != 2 or output.shape[1] < 2 or len(output) == 0:
        return False
    return bool(_sums_to_one(output))


def _divided(output: Tensor, temperature: float) -> Tensor:
    """Answers the logits ``(B, C)`` of a model's output, a single one as two, divided by the temperature.

    Raises:
        ValueError: The output is none of one row an input.
    """
    if output.ndim not in (1, 2):
        raise ValueError(
            f"the model answers logits of shape {tuple(output.shape)}, which a temperature of {temperature:g} cannot"
            " divide: expected (B, C), or (B, 1) or (B,) for a binary model. Set temperature=1.0."
        )
    logits = two_class_logits(output) / temperature
    if torch.compiler.is_compiling():  # which cannot look at numbers
        if output.ndim == 1 or output.shape[1] == 1:
            return logits
        log_probs = tempered(log_probs_of(output, True), temperature)
        return torch.where(_sums_to_one(output), log_probs.to(logits.dtype), logits)
    return tempered(log_probs_of(output, True), temperature) if is_distribution(output) else logits


def _sums_to_one(output: Tensor) -> Tensor:
    if output.ndim != 2 or output.shape[1] < 2:
        return torch.zeros((), dtype=torch.bool, device=output.device)
    # Rounding its entries moves a sum by half an epsilon; a wider tolerance would take half-precision logits for one.
    tolerance = max(torch.finfo(output.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    return (output >= 0).all() & ((output.double().sum(1) - 1).abs() <= tolerance).all()
