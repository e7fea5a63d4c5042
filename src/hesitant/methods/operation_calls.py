"""Finds the tensors of one call of an operation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

Place = tuple[int | str, int]  # of a tensor in a call: the argument, and the position where that is a list


def address(tensor: Tensor) -> int:
    """Answers what a tensor and its views have in common: their memory."""
    if tensor.layout != torch.strided:
        return id(tensor)
    return tensor.untyped_storage()._cdata


def written_places(func: OpOverload, args: Sequence[Any]) -> list[Place]:
    """Answers the places of what an operation writes to."""
    return [(i, -1) if i < len(args) else (name, -1) for name, i in _written(func)]


@cache
def _written(func: OpOverload) -> tuple[tuple[str, int], ...]:
    arguments = enumerate(func._schema.arguments)
    return tuple((a.name, i) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[Place, Tensor]]:
    """Gives the tensors of a call, also those in lists, with their places."""
    entries: tuple[tuple[int | str, Any], ...] = (*enumerate(args), *kwargs.items())
    for key, value in entries:
        if isinstance(value, Tensor):
            yield (key, -1), value
        elif isinstance(value, (list, tuple)):
            for position, entry in enumerate(value):
                if isinstance(entry, Tensor):
                    yield (key, position), entry


def map_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], function: Callable[[Place, Tensor], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Answers a call with its tensors replaced."""

    def replaced(key: int | str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return function((key, -1), value)
        if isinstance(value, (list, tuple)):
            entries = (function((key, i), x) if isinstance(x, Tensor) else x for i, x in enumerate(value))
            return list(entries) if isinstance(value, list) else tuple(entries)
        return value

    return [replaced(i, arg) for i, arg in enumerate(args)], {key: replaced(key, arg) for key, arg in kwargs.items()}
