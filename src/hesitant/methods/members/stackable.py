"""Whether models differ in nothing but the numbers in their weights and buffers, so that one can run for all."""

import inspect
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEPTH = 8  # of what is within an attribute; deeper ones are not looked through


def why_not_stackable(networks: Sequence[nn.Module]) -> str | None:
    """Answers why the first of these cannot run with the weights of all, as far as can be seen without running it."""
    for module in (module for network in networks for module in network.modules()):
        if parametrize.is_parametrized(module):
            return "a weight is parametrized"
        if any(hooks for name, hooks in vars(module).items() if name in _HOOKS):
            return f"a {type(module).__name__} has hooks"
    first = _form(networks[0])
    if any(_form(network) != first or not _same_attributes(networks[0], network) for network in networks[1:]):
        return "the members differ in their architecture"
    return None


def plain_attributes(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Answers the attributes of each module that say how it computes, such as a rate or a stride."""
    return {
        name: {key: value for key, value in _own_attributes(module).items() if _is_plain(value)}
        for name, module in network.named_modules()
    }


def _form(network: nn.Module) -> Any:
    weights = {id(p): name for name, p in network.named_parameters()}
    return (
        [(name, type(module)) for name, module in network.named_modules(remove_duplicate=False)],
        [
            (name, weights[id(p)], p.shape, p.dtype, p.requires_grad)
            for name, p in network.named_parameters(remove_duplicate=False)
        ],
        [(name, b.shape, b.dtype) for name, b in network.named_buffers(remove_duplicate=False)],
    )


def _same_attributes(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.modules(), second.modules(), strict=True)
    return all(_same(_own_attributes(a), _own_attributes(b), _DEPTH) for a, b in pairs)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """Answers what a module has beside what every module has; modules within it are looked at by themselves."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _OF_EVERY_MODULE and not isinstance(value, nn.Module)
    }


def _same(a: Any, b: Any, depth: int) -> bool:
    """Whether two attributes make their modules compute alike; what cannot be told is taken to differ."""
    if a is b:
        return True
    if type(a) is not type(b) or depth == 0 or isinstance(a, (Tensor, nn.Module)):
        return False  # a tensor that is no buffer is not among what is stacked
    if isinstance(a, types.FunctionType):
        return a.__code__ is b.__code__ and _same(_bound_values(a), _bound_values(b), depth - 1)
    if _is_plain(a):
        return bool(a == b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key], depth - 1) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, depth - 1) for x, y in zip(a, b, strict=True))
    try:  # an object's state is what a pickle would hold
        return _same(a.__reduce_ex__(2), b.__reduce_ex__(2), depth - 1)
    except Exception:
        return False


def _bound_values(function: types.FunctionType) -> list[Any]:
    """Answers what a function has taken with it from where it was made."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [cells, function.__defaults__, function.__kwdefaults__]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype)) or inspect.isroutine(value)
