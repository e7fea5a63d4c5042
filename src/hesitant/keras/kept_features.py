"""How a pass over data gets at the features of layers within a model, without a hook on the model."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_Kept = list[tuple[Any, tuple[Any, Any]]]


class _Keeping(threading.local):
    """Which layers' features a pass keeps, in this thread, and what it has kept."""

    layers: Sequence[Any] = ()
    found: _Kept | None = None


_keeping = _Keeping()


@contextmanager
def features_kept(layers: Sequence[Any]) -> Iterator[_Kept]:
    """Within it, features ``(B, M)`` and logits ``(B, C)`` of each call of the layers in this thread are kept."""
    before = _keeping.layers, _keeping.found
    found: _Kept = []
    _keeping.layers, _keeping.found = layers, found
    try:
        yield found
    finally:
        _keeping.layers, _keeping.found = before


def is_kept(layer: Any) -> bool:
    """Answers whether a pass of this thread asks for the features of the layer."""
    return any(asked is layer for asked in _keeping.layers)


def keep(layer: Any, features: Any, logits: Any) -> None:
    """Hands features and logits to the pass."""
    assert _keeping.found is not None
    _keeping.found.append((layer, (features, logits)))
