"""Lets a pass answer the operations that draw, write or look at a number; all others run at their own speed.

A mode of torch's is asked, in Python, about each operation: on a small model for longer than the operations take. Here
torch's dispatcher is told once which operations to ask about, by kernels of a key of its own, and each thread switches
that key on for the time of a pass. The manner in which ``torch.vmap`` finds what draws.
"""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from hesitant.methods.dropout.operations import KEEPS_STATISTICS, schema_can_draw

Answer = TypeVar("Answer")
Meet = Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]

_KEY_NAME = "TESTING_ONLY_GenericMode"  # which nothing in torch switches on, outside of its tests
_KEY: Any = torch._C._parse_dispatch_key(_KEY_NAME)
_KEYS = torch._C.DispatchKeySet(_KEY)
# Without these a plain tensor's operation is a plain one, also within torch.func's transforms.
APART = _KEYS.add(torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode).add(
    torch._C.DispatchKey.FuncTorchDynamicLayerBackMode
)
_LOOKS = {"aten::item", "aten::is_nonzero", "aten::_local_scalar_dense"}

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
            if not self._libraries:
                self._library("_").fallback_fallthrough(_KEY_NAME)
            for full_name in torch._C._dispatch_get_all_op_names():
                if full_name not in self._known:
                    self._known.add(full_name)
                    self._register(full_name)
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
    ruled = not takes_tensors or _has_rule(f"{name}.{overload}" if overload else name)
    return not ruled or schema_can_draw(schema, tags)


def _has_rule(full_name: str) -> bool:
    """Whether ``torch.vmap`` has a rule for an operation, or one for each that it consists of."""
    keys = ("FuncTorchBatched", "FuncTorchBatchedDecomposition", "CompositeImplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(full_name, key) for key in keys)


@cache
def has_rule(func: OpOverload) -> bool:
    """Answers whether ``torch.vmap`` has a rule for an operation, and needs no loop over the inputs."""
    return _has_rule(func._name)


def is_look(func: OpOverload) -> bool:
    """Answers whether an operation tells Python the number in a tensor."""
    return func._schema.name in _LOOKS


def _kernel(namespace: str, name: str, overload: str) -> Callable[..., Any]:
    """Answers the kernel of an operation, which is found when it is met: of most that never happens."""
    found: OpOverload | None = None

    def kernel(*args: Any, **kwargs: Any) -> Any:
        nonlocal found
        if found is None:
            found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            meet: Meet | None = getattr(_current, "meet", None)
            return found(*args, **kwargs) if meet is None else meet(found, args, kwargs)

    return kernel
