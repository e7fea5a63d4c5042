"""One pass of Monte Carlo dropout on a small model, where to look at each operation takes longer than to run it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from hesitant.methods.dropout.interception import intercepted, plain
from hesitant.methods.dropout.masks_ahead import MasksOfSome
from hesitant.methods.dropout.operations import (
    draw_otherwise,
    draws,
    is_dropout,
    is_plain_dropout,
    is_recurrent,
    written_by,
)
from hesitant.methods.dropout.watched_pass import ModelWrittenError, WatchedPass
from hesitant.methods.operation_calls import address, tensors_in


class LightPass:
    """Runs one pass as :class:`WatchedPass` does, with the same masks, but is asked only about what draws or writes.

    It does not see all of what scripted modules do, whose compiler may put operations together.

    Args:
        masks: Draws.
        guarded: Answers the addresses of what the pass may not write to.

    Attributes:
        drew: Whether any operation drew random numbers.
        wrote: As of :class:`WatchedPass`.
    """

    def __init__(self, masks: MasksOfSome, guarded: Callable[[], set[int]]) -> None:
        self.masks, self._guarded = masks, guarded
        self.drew = False
        self.wrote: set[int] = set()

    def call(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answers what the model answers in this pass."""
        return intercepted(self._meet, model, args, kwargs)

    def _meet(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs one operation."""
        self.guard(func, args, kwargs)
        if not draws(func, args, kwargs):
            return func(*args, **kwargs)
        self.drew = True
        transformed = any(map(_is_transformed, (tensor for _, tensor in tensors_in(args, kwargs))))
        if is_plain_dropout(func) and not transformed:
            out = self.masks.dropped(args[0], float(args[1]))
            return args[0].copy_(out) if func._schema.is_mutable else out
        if transformed or is_recurrent(func) or is_dropout(func):
            return self._watched(func, args, kwargs)
        return draw_otherwise(func, args, kwargs, self.masks)

    def _watched(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        watch = WatchedPass(self.masks, self._guarded())
        try:
            return watch.call(func, args, kwargs)
        finally:
            self.wrote |= watch.wrote

    def guard(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises if the operation is about to write where it may not, as :meth:`WatchedPass.guard` does."""
        for tensor in written_by(func, args, kwargs):
            memory = address(plain(tensor))
            if memory in self._guarded():
                self.wrote.add(memory)
                raise ModelWrittenError


def _is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` is at work, such as vmap: it decides what is drawn for which input."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
