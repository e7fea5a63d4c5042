"""One pass of Monte Carlo dropout on a small model, where to look at each operation would take longer than to run it.

What is looked at are torch's functions, as the code calls them: most are known to neither draw nor write, and pass.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hesitant.methods.dropout.masks import MasksOfOne
from hesitant.methods.dropout.operations import can_draw
from hesitant.methods.dropout.watched_pass import WatchedPass
from hesitant.methods.operation_calls import address

_C_FUNCTIONS = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)


class _Kind(Enum):
    PASSES = "neither draws nor writes"
    WRITES = "writes to its first argument, or draws into it"
    MAY_WRITE = "does not draw, and writes where it is told so by a True"
    DRAWS = "draws for its first argument, from a generator that it can be given"
    DROPS = "is F.dropout"
    WATCHED = "may do anything"


class LightPass(TorchFunctionMode):
    """Runs one pass as :class:`WatchedPass` does, with the same masks.

    What it does not know runs under a :class:`WatchedPass`. It sees nothing of what scripted modules do.

    Args:
        masks: Draws.
        guarded: The addresses of what the pass may not write to.

    Attributes:
        drew: Whether any operation drew random numbers.
        wrote: As of :class:`WatchedPass`.
    """

    def __init__(self, masks: MasksOfOne, guarded: set[int]) -> None:
        super().__init__()
        self.masks, self._guarded = masks, guarded
        self.drew = False
        self.wrote: set[int] = set()

    def call(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answers what the model answers in this pass."""
        with self:
            return model(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Runs one function."""
        kind = _kind(func)
        if kind is _Kind.PASSES and not kwargs:
            return func(*args)
        kwargs = kwargs or {}
        if kind is _Kind.PASSES and "out" not in kwargs:
            return func(*args, **kwargs)
        if kind is _Kind.DROPS and not _transformed(args):
            return self._drop(*args, **kwargs)
        if kind is _Kind.MAY_WRITE and not _has_true(args) and not _has_true(kwargs.values()):
            return func(*args, **kwargs)
        if kind is _Kind.DRAWS and not self._is_guarded(args[0]) and kwargs.get("generator") is None:
            self.drew = True
            return func(*args, **{**kwargs, "generator": self.masks.generator(args[0].device)})
        if kind is _Kind.WRITES and not self._is_guarded(args[0]):
            return func(*args, **kwargs)
        return self._watched(func, args, kwargs)

    def _is_guarded(self, tensor: Any) -> bool:
        return not isinstance(tensor, Tensor) or _transformed((tensor,)) or address(tensor) in self._guarded

    def _watched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        watch = WatchedPass(self.masks, self._guarded)
        try:
            return watch.call(func, args, kwargs)
        finally:
            self.drew |= watch.drew
            self.wrote |= watch.wrote

    def _drop(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not 0 < p <= 1:
            return F.dropout(x, p, training, inplace)  # which says so if the rate is none
        if inplace and self._is_guarded(x):
            return self._watched(F.dropout, (x, p, training, inplace), {})
        self.drew = True
        out = self.masks.dropped(x, float(p))
        return x.copy_(out) if inplace else out


def _has_true(values: Iterable[Any]) -> bool:
    for value in values:  # noqa: SIM110, at half the cost of any()
        if value is True:
            return True
    return False


def _transformed(args: Sequence[Any]) -> bool:
    """Whether a transform of ``torch.func`` is at work, such as vmap: it decides what is drawn for which input."""
    return isinstance(args[0], Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(args[0])


@lru_cache(maxsize=4096)
def _kind(func: Any) -> _Kind:
    name: str = getattr(func, "__name__", "")
    if func is F.dropout:
        return _Kind.DROPS
    if isinstance(func, _C_FUNCTIONS):
        if name in ("__get__", "__len__", "__bool__", "__repr__", "dim", "size", "is_floating_point", "type"):
            return _Kind.PASSES
        if name.startswith("__") and name.endswith("__"):
            in_place = name == "__setitem__" or (name.startswith("__i") and name not in ("__int__", "__index__"))
            return _Kind.WATCHED if name in ("__set__", "__delete__", "__call__") else _in_place(in_place)
        if name in ("bernoulli", "bernoulli_", "uniform_", "normal_"):
            return _Kind.DRAWS
        packet = getattr(torch.ops.aten, name, None)
        if packet is None or _may_draw(packet) or name.endswith(("batch_norm", "instance_norm")):
            return _Kind.WATCHED
        return _in_place(name.endswith("_"))
    if isinstance(func, types.FunctionType) and func.__module__ == F.__name__:
        named = [getattr(torch.ops.aten, part, None) for part in (name, *func.__code__.co_names)]
        drawing = any(part is not None and _may_draw(part) for part in named)
        return _Kind.WATCHED if drawing or "embedding" in name else _Kind.MAY_WRITE  # an embedding may scale its weight
    return _Kind.WATCHED


def _in_place(writes: bool) -> _Kind:
    return _Kind.WRITES if writes else _Kind.PASSES


def _may_draw(packet: Any) -> bool:
    return any(can_draw(getattr(packet, overload)) for overload in packet.overloads())
