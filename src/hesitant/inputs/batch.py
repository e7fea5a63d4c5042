"""One forward pass' worth of data: what the model is called with, and the targets where they are known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward pass, and the targets where they are known."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    targets: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Answers the batch with its tensors on ``device``, or itself where they are there."""
        if self.targets is None and all(tensor.device == device for tensor in tensors_of(self)):
            return self
        moved = map_tensors(self, lambda tensor: tensor.to(device))
        return replace(moved, targets=None if self.targets is None else self.targets.to(device))

    @property
    def num_inputs(self) -> int | None:
        """B, that of the targets or else of the tensors; None where these are of several lengths, as of a graph."""
        if self.targets is not None and self.targets.ndim > 0:
            return len(self.targets)
        lengths = {tensor.shape[0] for tensor in _tensors((self.args, self.kwargs)) if tensor.ndim > 0}
        return lengths.pop() if len(lengths) == 1 else None

    @property
    def is_divisible(self) -> bool:
        """Whether every argument is a tensor with an entry an input, or a number for all of them."""
        if self.targets is None or self.targets.ndim == 0:
            return False
        rows = len(self.targets)
        return _has_rows(self.kwargs, rows) and all(_has_rows(value, rows) for value in self.args)

    def take(self, chosen: Tensor) -> "Batch":
        """Answers some of the inputs of a divisible batch ``(b,)``, with their targets."""
        assert self.targets is not None
        if len(chosen) == len(self.targets):
            return self
        part = map_tensors(self, lambda tensor: tensor[chosen.to(tensor.device)] if tensor.ndim else tensor)
        return replace(part, targets=self.targets[chosen.to(self.targets.device)])


def num_inputs(batch: Batch) -> int:
    """Answers B, or the length of the first tensor where tensors are of several lengths.

    Raises:
        TypeError: The batch holds no tensor.
    """
    known = batch.num_inputs
    if known is not None:
        return known
    first = next((tensor for tensor in _tensors((batch.args, batch.kwargs)) if tensor.ndim > 0), None)
    if first is None:
        raise TypeError("a batch holds no tensor: expected the inputs along the first axis of one.")
    return len(first)


def tensors_of(batch: Batch) -> list[Tensor]:
    """Answers the tensors among the inputs."""
    return list(_tensors((batch.args, batch.kwargs)))


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Answers the batch with ``function`` of each of its inputs; its targets stay."""
    return Batch(mapped(batch.args, function), mapped(batch.kwargs, function), batch.targets)


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Answers a nest of tuples, lists and dicts with ``function`` of each tensor within."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(entry, function) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(entry, function) for entry in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(entry, function) for entry in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _tensors(entry)


def _has_rows(value: Any, rows: int) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 or len(value) == rows
    if isinstance(value, Mapping):
        return all(_has_rows(entry, rows) for entry in value.values())
    if isinstance(value, (tuple, list)):
        return all(isinstance(entry, Tensor) and _has_rows(entry, rows) for entry in value)
    return value is None or isinstance(value, (bool, int, float))
