"""Which layers of a model are meant: by name, by pattern, or by a predicate."""

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

LayerPredicate: TypeAlias = Callable[[str, nn.Module], bool]
LayerSelection: TypeAlias = str | LayerPredicate | Collection[str | LayerPredicate]

_NAMED = 20  # layers in an error's text


def selected(
    argument: str, selection: LayerSelection, modules: dict[str, nn.Module], layers: Collection[str]
) -> set[str]:
    """Answers the names of the modules that are meant, with all that is within them.

    A string is the name of a module or a pattern (``*``, ``?``, ``[...]``; ``*`` passes over dots), and stands for all
    layers within. The full name of a module means this module and no other; else it is matched with the whole name or
    its last parts: ``"pooler"`` finds ``bert.pooler``. A predicate is asked of each layer, ``(name, module)``.

    Args:
        argument: What the selection is called, for errors.
        selection: One string or predicate, or several.
        modules: Of the model, by name.
        layers: The names of those that can be bounded.

    Raises:
        ValueError: A part of the selection means none of the layers.
        TypeError: A part of it is neither a string nor a predicate.
    """
    parts = selection if isinstance(selection, Collection) and not isinstance(selection, (str, nn.Module)) else None
    answer: set[str] = set()
    for part in [selection] if parts is None else parts:
        found = _means(argument, part, modules, layers)
        within = {name for name in modules if any(_is_within(name, other) for other in found)}
        if not within:
            what = "layer that could be bounded" if callable(part) else "module of the model"
            raise ValueError(f"{argument}={part!r} matches no {what}. {_what_there_is(layers)}")
        if argument == "only" and within.isdisjoint(layers):
            raise ValueError(f"only={part!r} matches no layer that could be bounded. {_what_there_is(layers)}")
        answer |= within
    return answer


def by_name(selection: LayerSelection, modules: dict[str, nn.Module], layers: Collection[str]) -> list[str]:
    """Answers a selection without predicates: in the place of each stand the names of the layers that it is true of."""
    parts = selection if isinstance(selection, Collection) and not isinstance(selection, str) else [selection]
    names: list[str] = []
    for part in parts:
        names += [part] if isinstance(part, str) else [name for name in layers if part(name, modules[name])]
    return names


def _means(argument: str, part: Any, modules: dict[str, nn.Module], layers: Collection[str]) -> set[str]:
    if isinstance(part, nn.Module) or not (isinstance(part, str) or callable(part)):
        raise TypeError(
            f"{argument} holds a {type(part).__name__}: expected the name of a module, a pattern, or a predicate"
            " (name, module) -> bool."
        )
    if not isinstance(part, str):
        return {name for name in layers if part(name, modules[name])}
    return {part} if part in modules else {name for name in modules if _matches(name, part)}


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[start:]), pattern) for start in range(len(parts)))


def _is_within(name: str, other: str) -> bool:
    return not other or name == other or name.startswith(other + ".")


def _what_there_is(layers: Collection[str]) -> str:
    if not layers:
        return "The model has no layer that could be bounded."
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return f"Layers that could be bounded: {', '.join(map(repr, list(layers)[:_NAMED]))}{more}."
