"""Lets a pass answer the operations that draw, write or look at a number; all others run at their own speed.

A mode of torch's is asked, in Python, about each operation: on a small model for longer than the operations take. Here
torch's dispatcher is told once which operations to ask about, by kernels of a key of its own, and each thread switches
that key on for the time of a pass. The manner in which ``torch.vmap`` finds what draws.
"""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from hesitant.methods.dropout.operations import (
    KEEPS_STATISTICS,
    attends,
    is_dropout,
    is_plain_dropout,
    schema_can_draw,
)

Answer = TypeVar("Answer")

_KEY_NAME = "TESTING_ONLY_GenericMode"  # which nothing in torch switches on, outside of its tests
_KEY: Any = torch._C._parse_dispatch_key(_KEY_NAME)
_KEYS = torch._C.DispatchKeySet(_KEY)
# Without these a plain tensor's operation is a plain one, also within torch.func's transforms.
APART = _KEYS.add(torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode).add(
    torch._C.DispatchKey.FuncTorchDynamicLayerBackMode
)
_LOOKS = {"aten::item", "aten::is_nonzero", "aten::_local_scalar_dense"}


class Role(Enum):
    """What an operation is met for."""

    DROPS = "is F.dropout, not in place"
    LOOKS = "tells Python the number in a tensor"
    WRITES = "writes to its first argument, and does nothing else of these"
    OTHER = "may do several, or has no rule for several passes at once"


class Met:
    """An operation that is met.

    Args:
        func: The operation.

    Attributes:
        run: Runs it.
        role: What it is met for.
        has_rule: Whether ``torch.vmap`` has a rule for it, so that it needs neither a loop over the inputs, nor rules
            for operations that it consists of, which are not met. A norm in eval mode and a dropout that does not drop
            are known to be fine.
    """

    __slots__ = ("func", "has_rule", "role", "run")

    def __init__(self, func: OpOverload) -> None:
        self.func = func
        self.run = func._op
        idle = func._schema.name in KEEPS_STATISTICS or (is_dropout(func) and not attends(func))
        self.has_rule = idle or _has(func._name, "FuncTorchBatched")
        self.role = self._role()

    def _role(self) -> Role:
        schema = self.func._schema
        if is_plain_dropout(self.func) and not schema.is_mutable:
            return Role.DROPS
        if schema.name in _LOOKS:
            return Role.LOOKS
        if schema_can_draw(schema, self.func.tags) or schema.name in KEEPS_STATISTICS or not self.has_rule:
            return Role.OTHER
        written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
        only_first = written == schema.arguments[:1] and str(written[0].type) == "Tensor"
        return Role.WRITES if only_first else Role.OTHER


Meet = Callable[[Met, tuple[Any, ...], dict[str, Any]], Any]

_current = threading.local()


def intercepted(meet: Meet, function: Callable[..., Answer], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Answer:
    """Answers a call, while in this thread ``meet`` answers each operation that draws, writes or looks at a number.

    Also those for which ``torch.vmap`` has no rule. ``meet`` itself is not asked about what it runs.

    Args:
        meet: Is given the operation, its arguments and its keyword arguments.
        function: Is called.
        args: Of the function.
        kwargs: Of the function.
    """
    _kernels.complete()
    before = getattr(_current, "meet", None)
    _current.meet = meet
    try:
        with torch._C._IncludeDispatchKeyGuard(_KEY):
            return function(*args, **kwargs)
    finally:
        _current.meet = before


def unseen() -> Any:
    """Answers a context in which nothing is intercepted, for passes within a pass that look by other means."""
    return torch._C._ExcludeDispatchKeyGuard(_KEYS)


def plain(tensor: Tensor) -> Tensor:
    """Answers the tensor beneath the transforms of ``torch.func``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


class _Kernels:
    """The kernels of the key, one for each operation that is asked about."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._known: set[str] = set()
        self._libraries: dict[str, Any] = {}

    def complete(self) -> None:
        """Registers the kernels that are missing: most at first use, others once further operations are known."""
        seen = len(sys.modules), len(torch.library._defs), len(torch.ops.loaded_libraries)
        if seen == self._seen:
            return
        with self._lock:
            # Whoever interrupts this leaves it to be gone on with.
            if not torch._C._dispatch_has_backend_fallback(_KEY):
                self._library("_").fallback_fallthrough(_KEY_NAME)
            for full_name in torch._C._dispatch_get_all_op_names():
                if full_name not in self._known:
                    if not _has(full_name, _KEY_NAME):
                        self._register(full_name)
                    self._known.add(full_name)
            self._seen = seen

    def _register(self, full_name: str) -> None:
        name, _, overload = full_name.partition(".")
        if _is_met(name, overload):
            namespace, _, own = name.partition("::")
            kernel = _kernel(namespace, own, overload or "default")
            self._library(namespace).impl(own + ("." if overload else "") + overload, _KEY_NAME, kernel, False)

    def _library(self, namespace: str) -> Any:
        if namespace not in self._libraries:
            self._libraries[namespace] = torch._C._dispatch_library("IMPL", namespace, _KEY_NAME, "", 0)
        return self._libraries[namespace]


_kernels = _Kernels()


def _is_met(name: str, overload: str) -> bool:
    schema = torch._C._get_schema(name, overload)
    if name in _LOOKS or name in KEEPS_STATISTICS or schema.is_mutable:
        return True
    _, _, tags = torch._C._get_operation_overload(name, overload)
    takes_tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
    ruled = not takes_tensors or _has(f"{name}.{overload}" if overload else name, *_RULES)
    return not ruled or schema_can_draw(schema, tags)


_RULES = ("FuncTorchBatched", "FuncTorchBatchedDecomposition", "CompositeImplicitAutograd")


def _has(full_name: str, *keys: str) -> bool:
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(full_name, key) for key in keys)


def _kernel(namespace: str, name: str, overload: str) -> Callable[..., Any]:
    """Answers the kernel of an operation, which is found when it is met: of most that never happens."""
    met: Met | None = None

    def kernel(*args: Any, **kwargs: Any) -> Any:
        nonlocal met
        if met is None:
            met = Met(getattr(getattr(getattr(torch.ops, namespace), name), overload))
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            meet: Meet | None = getattr(_current, "meet", None)
            return met.run(*args, **kwargs) if meet is None else meet(met, args, kwargs)

    return kernel
