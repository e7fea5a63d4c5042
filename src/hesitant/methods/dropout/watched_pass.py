"""One pass, every operation looked at: dropout is drawn from masks, and nothing is written to the model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from hesitant.methods.dropout.interception import plain, unseen
from hesitant.methods.dropout.masks import Masks
from hesitant.methods.dropout.operations import (
    Layout,
    Repeated,
    draw_otherwise,
    draws,
    drop,
    is_dropout,
    is_recurrent,
    layer_by_layer,
    written_by,
)
from hesitant.methods.operation_calls import address


class ModelWrittenError(Exception):
    """A pass was about to write to what belongs to the model, or to the caller; see :attr:`WatchedPass.wrote`."""


def require_unguarded(tensor: Tensor, guarded: set[int], wrote: set[int]) -> None:
    """Raises, and notes it in ``wrote``, if a tensor that is about to be written to lies where that may not be."""
    memory = address(plain(tensor))
    if memory in guarded:
        wrote.add(memory)
        raise ModelWrittenError


class WatchedPass(TorchDispatchMode):
    """Runs one pass, its dropout drawn from ``masks``.

    Args:
        masks: Draws.
        guarded: The addresses of what the pass may not write to.

    Attributes:
        drew: Whether any operation drew random numbers.
        wrote: The addresses that it was about to write to: its answer counts for nothing, if there are any.
    """

    def __init__(self, masks: Masks, guarded: set[int]) -> None:
        super().__init__()
        self.masks, self._guarded = masks, guarded
        self.drew = False
        self.wrote: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, for seconds, only to keep it away from here

    def call(self, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answers what the model answers in this pass."""
        # Below autograd an operation is seen as the code wrote it: a dropout, not the draws that it consists of.
        with unseen(), torch._C._AutoDispatchBelowAutograd(), self:
            return model(*args, **kwargs)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation."""
        kwargs = kwargs or {}
        self.guard(func, args, kwargs)
        if not draws(func, args, kwargs):
            return func(*args, **kwargs)
        self.drew = True
        if is_recurrent(func):
            with self:
                return layer_by_layer(func, args)
        return self.run(func, args, kwargs, Layout())

    def guard(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises if the operation is about to write where it may not: whoever runs the pass gives it copies."""
        for tensor in written_by(func, args, kwargs):
            require_unguarded(tensor, self._guarded, self.wrote)

    def run(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], layout: Layout) -> Any:
        """Answers an operation that draws, from the masks."""
        if is_dropout(func):
            return drop(func, args, kwargs, self.masks, layout)
        if args and isinstance(args[0], Repeated):
            args = (args[0].tensor(), *args[1:])
        return draw_otherwise(func, args, kwargs, self.masks)
