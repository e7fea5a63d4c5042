"""What a network is made of, beside its weights: by which another network is known to be, or not to be, the same."""

import hashlib
import re
import types
from collections.abc import Collection, Iterator
from itertools import zip_longest
from typing import Any, Final

from torch import Tensor, nn

__all__ = ["difference", "outline_digest", "shapes_of"]

_PLAIN: Final = (bool, int, float, str, type(None))
_BIAS: Final = re.compile(r", bias=(True|False)")  # shapes tell; of BatchNorm some versions of torch say it, too
_OF_ALL: Final = frozenset(vars(nn.Module())) | {"gradient_checkpointing", "grad_checkpointing", "name_or_path"}


def shapes_of(model: nn.Module, without: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """Answers the shapes of all that a state dict holds, by name, but for the modules ``without``."""
    state: dict[str, Any] = model.state_dict()
    return {
        name: tuple(tensor.shape) if isinstance(tensor, Tensor) else ()
        for name, tensor in state.items()
        if not _within(name, without)
    }


def outline_digest(model: nn.Module, without: Collection[str] = ()) -> str:
    """Answers 16 hexadecimal digits of the classes of all modules, with what they say of themselves.

    Two networks with the same names and shapes may still answer differently: by another activation, another stride.
    """
    lines = [f"{path}: {said}" for path, said, _ in _outline(model, without)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def difference(model: nn.Module, other: nn.Module, without: Collection[str] = (), *, attributes: bool) -> str | None:
    """Answers what is not the same of two networks, beside their weights, or None.

    Args:
        model: One.
        other: The other.
        without: Modules that are left out.
        attributes: Whether numbers, texts and flags that modules keep are compared, too.
    """
    shapes, others = shapes_of(model, without), shapes_of(other, without)
    for name in [*shapes, *(name for name in others if name not in shapes)]:
        if shapes.get(name) != others.get(name):
            return f"{name} has the shape {shapes.get(name, 'of nothing')}, and {others.get(name, 'of nothing')} there"
    nothing: tuple[str, str, dict[str, Any]] = ("", "nothing", {})
    for (path, said, own), (other_path, other_said, theirs) in zip_longest(
        _outline(model, without), _outline(other, without), fillvalue=nothing
    ):
        if (path, said) != (other_path, other_said):
            return f"{path or 'the model'} is {said[:80]}, and {other_said[:80]} there"
        for name in sorted(own.keys() & theirs.keys()) if attributes else ():
            if own[name] != theirs[name]:
                return f"{path or 'the model'}.{name} is {own[name]!r:.60}, and {theirs[name]!r:.60} there"
    return None


def _outline(model: nn.Module, without: Collection[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if not _within(path, without):
            said = _BIAS.sub("", module.extra_repr())
            yield path, f"{type(module).__qualname__}({said})", _attributes(module)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {
        name: _comparable(value)
        for name, value in vars(module).items()
        if name not in _OF_ALL and not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, (*_PLAIN, types.FunctionType, types.BuiltinFunctionType))


def _comparable(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_comparable(entry) for entry in value]
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return value.__qualname__
    return value


def _within(name: str, without: Collection[str]) -> bool:
    return any(not other or name == other or name.startswith(other + ".") for other in without)
