"""Calls a function below vmap, with the tensors of all members stacked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    from torch._C._functorch import _add_batch_dim, _unwrap_batched, maybe_current_level
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

    _DIRECT = True
except ImportError:  # what these are made of may change its name; the public way below costs .1 ms a call
    _DIRECT = False


def below_vmap(function: Callable[..., Tensor], num_members: int, *tensors: Tensor) -> Tensor:
    """Answers ``function(*tensors)`` with and for the tensors of all members, ``(members, ...)`` each.

    Differentiation goes through the function as it runs.

    Raises:
        RuntimeError: There is no vmap around, or more than one.
    """
    if not _DIRECT:
        answer: Tensor = _BelowVmap.apply(function, *tensors)
        return answer
    if maybe_current_level() != 1:
        raise RuntimeError("the model uses vmap or another transform of torch.func itself")
    stacked = []
    for tensor in tensors:
        value, axis = _unwrap_batched(tensor, 1)
        stacked.append(_with_members_first(value, axis, num_members))
    with temporarily_pop_interpreter_stack():
        out = function(*stacked)
    return _add_batch_dim(out, 0, 1)


class _BelowVmap(torch.autograd.Function):
    """The same by documented means."""

    @staticmethod
    def forward(function: Any, *tensors: Tensor) -> Tensor:
        raise RuntimeError("these tensors are the same for all members")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps nothing."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, int]:
        pairs = zip(tensors, in_dims[1:], strict=True)
        return function(*[_with_members_first(tensor, axis, info.batch_size) for tensor, axis in pairs]), 0


def _with_members_first(tensor: Tensor, axis: int | None, num_members: int) -> Tensor:
    if axis is None:
        return tensor.expand(num_members, *tensor.shape)
    return tensor if axis == 0 else tensor.movedim(axis, 0)
