"""One pass of Monte Carlo dropout on a small model, where to look at each operation takes longer than to run it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from hesitant.methods.dropout.interception import Met, Role, intercepted
from hesitant.methods.dropout.masks_ahead import MasksOfSome
from hesitant.methods.dropout.operations import (
    draw_otherwise,
    draws,
    is_dropout,
    is_plain_dropout,
    is_recurrent,
    layer_by_layer,
    written_by,
)
from hesitant.methods.dropout.watched_pass import WatchedPass, require_unguarded
from hesitant.methods.operation_calls import tensors_in


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

    def _meet(self, met: Met, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs one operation."""
        role = met.role
        if role is Role.WRITES:
            require_unguarded(args[0], self._guarded(), self.wrote)
            return met.run(*args, **kwargs)
        if role is Role.LOOKS:
            return met.run(*args, **kwargs)
        func = met.func
        if role is Role.DROPS and args[2] is True and 0 < args[1] <= 1 and not _is_transformed(args[0]):
            self.drew = True
            return self.masks.dropped(args[0], float(args[1]))
        for tensor in written_by(func, args, kwargs):
            require_unguarded(tensor, self._guarded(), self.wrote)
        if not draws(func, args, kwargs):
            return met.run(*args, **kwargs)
        self.drew = True
        if any(map(_is_transformed, (tensor for _, tensor in tensors_in(args, kwargs)))):
            return self._watched(func, args, kwargs)
        if is_recurrent(func):
            return layer_by_layer(func, args, self.masks.dropped)
        if is_plain_dropout(func):  # in place
            return args[0].copy_(self.masks.dropped(args[0], float(args[1])))
        return self._watched(func, args, kwargs) if is_dropout(func) else draw_otherwise(func, args, kwargs, self.masks)

    def _watched(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        watch = WatchedPass(self.masks, self._guarded())
        try:
            return watch.call(func, args, kwargs)
        finally:
            self.wrote |= watch.wrote


def _is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` is at work, such as vmap: it decides what is drawn for which input."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
