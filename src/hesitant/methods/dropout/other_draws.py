"""Whether a model's code draws from generators that are not torch's, of which no pass can be told its own numbers."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


class OtherDraws:
    """What is known of it, once it has been looked at: the same whoever looks, and how often.

    Attributes:
        known: Whether it has been looked at.
        found: Whether the code draws so.
    """

    def __init__(self) -> None:
        self.known = self.found = False


class Suspicion:
    """Looks for such draws while a model runs: in the generators of the process, and in what its code has at hand.

    Args:
        model: What runs from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._before = model, _states()

    def holds(self) -> bool:
        """Answers whether the model may have drawn since; others in the process may have."""
        held = (value for module in self._model.modules() for value in _at_hand(module))
        return _states() != self._before or any(isinstance(value, _GENERATORS) for value in held)


def _states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, bytes(memoryview(keys)), *rest  # type: ignore[arg-type]


def _at_hand(module: nn.Module) -> Iterator[Any]:
    """Gives the attributes of a module, and what its ``forward`` finds around it."""
    yield from vars(module).values()
    forward = getattr(type(module).forward, "__wrapped__", type(module).forward)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    around = getattr(forward, "__globals__", {})
    yield from (around[name] for name in names if name in around)
    yield from (cell.cell_contents for cell in getattr(forward, "__closure__", None) or () if _is_filled(cell))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
