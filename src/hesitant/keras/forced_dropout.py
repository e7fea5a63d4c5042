"""Which layers of a model drop out, and calls of it in which they do while everything else is as in inference."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from keras.src.backend.common.masking import get_keras_mask, set_keras_mask  # not public in any release

import keras
from keras import ops

_DROPPING = (keras.layers.Dropout, keras.layers.GaussianDropout, keras.layers.AlphaDropout)
_installing = threading.RLock()


class Parts(NamedTuple):
    """What a forced call has to know of a model's layers.

    Attributes:
        dropping: Those that drop out: dropout layers of a rate above 0, recurrent layers with dropout in their cells.
        plain: The outermost ones without any of these inside: what they answer before the first dropout is the same in
            every pass.
        one_mask: Whether one of the masks is shared by the rows of a batch, so that a batch cannot hold several passes.
    """

    dropping: list[Any]
    plain: list[Any]
    one_mask: bool


def parts_of(model: Any) -> Parts:
    """Answers the layers of a model by their part in dropout."""
    found = Parts([], [], False)
    _sort(model, found, set())
    shared = any((getattr(layer, "noise_shape", None) or (None,))[0] is not None for layer in found.dropping)
    return found._replace(one_mask=shared)


def _sort(layer: Any, found: Parts, seen: set[int]) -> None:
    for child in layer._layers:
        if id(child) in seen:
            continue
        seen.add(id(child))
        if _drops(child):
            found.dropping.append(child)
        elif any(_drops(inner) for inner in child._flatten_layers(include_self=False)):
            _sort(child, found, seen)
        elif not isinstance(child, keras.layers.InputLayer):
            found.plain.append(child)


def _drops(layer: Any) -> bool:
    if isinstance(layer, _DROPPING):
        return bool(layer.rate > 0)
    if isinstance(layer, keras.layers.RNN):
        cells = layer.cell._flatten_layers()
        return any(getattr(cell, name, 0) > 0 for cell in cells for name in ("dropout", "recurrent_dropout"))
    return False


class _Reached(BaseException):
    """The first dropout: nothing behind it is wanted. No Exception, which Keras would dress up and hand on."""


class _Call(threading.local):
    """What a forced call of this thread does at each layer; None outside of one."""

    at: Any = None


_call = _Call()


@contextmanager
def _watched(parts: Parts) -> Iterator[None]:
    """Lets the layers' calls of this thread be answered by ``_call.at``, those of other threads as ever."""
    layers = [*parts.dropping, *parts.plain]
    with _installing:
        for layer in layers:
            count, original = layer.__dict__.get("_hesitant_watched", (0, layer.call))
            layer.__dict__["_hesitant_watched"] = (count + 1, original)
            layer.__dict__["call"] = partial(_at, layer, original)
    try:
        yield
    finally:
        with _installing:
            for layer in layers:
                count, original = layer.__dict__["_hesitant_watched"]
                if count > 1:
                    layer.__dict__["_hesitant_watched"] = (count - 1, original)
                else:
                    del layer.__dict__["_hesitant_watched"], layer.__dict__["call"]


def _at(layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs) if _call.at is None else _call.at(layer, original, args, kwargs)


class ForcedPasses:
    """Several passes of a model over one batch with dropout on, the part before the first dropout computed once."""

    def __init__(self, model: Any, parts: Parts) -> None:
        self._model, self._parts = model, parts
        self._dropping = {id(layer) for layer in parts.dropping}
        self._told = {} if "training" not in inspect.signature(model.call).parameters else {"training": False}

    def answer(self, inputs: Any, passes: int) -> tuple[Any, int]:
        """Answers the outputs of all passes over a batch, ``(passes * B, ...)``, and how many dropouts took part.

        The first B rows are of the first pass.
        """
        with _watched(self._parts):
            prefix = self._prefix(inputs)
            took_part: set[int] = set()
            place = 0

            def at(layer: Any, original: Any, args: Any, kwargs: Any) -> Any:
                nonlocal place
                if id(layer) in self._dropping:
                    took_part.add(id(layer))
                    return original(*args, **{**kwargs, "training": True})
                place += 1
                if place <= len(prefix) and prefix[place - 1].is_of(layer, args, passes):
                    return prefix[place - 1].repeated(passes)
                return original(*args, **kwargs)

            repeated = keras.tree.map_structure(lambda tensor: _tiled(tensor, passes), inputs)
            with _answering(at):
                outputs = self._model(repeated, **self._told)
        return outputs, len(took_part)

    def _prefix(self, inputs: Any) -> "list[_Known]":
        known: list[_Known] = []
        rows = keras.tree.flatten(inputs)[0].shape[0]

        def at(layer: Any, original: Any, args: Any, kwargs: Any) -> Any:
            if id(layer) in self._dropping:
                raise _Reached
            output = original(*args, **kwargs)
            known.append(_Known(layer, rows, output))
            return output

        with _answering(at):
            try:
                self._model(inputs, **self._told)
            except _Reached:
                return known
        return []  # no dropout took part: the caller says so


class _Known(NamedTuple):
    """What a layer answered before the first dropout, to a batch of so many rows (None where they are not known)."""

    layer: Any
    rows: int | None
    output: Any

    def is_of(self, layer: Any, args: Any, passes: int) -> bool:
        """Answers whether this is the call again, for all passes at once."""
        tensors = [tensor for tensor in keras.tree.flatten(args) if hasattr(tensor, "shape")]
        answers = keras.tree.flatten(self.output)
        repeated = None if self.rows is None else self.rows * passes
        return (
            layer is self.layer
            and bool(tensors)
            and all(len(tensor.shape) > 0 and tensor.shape[0] == repeated for tensor in tensors)
            and all(len(answer.shape) > 0 and answer.shape[0] == self.rows for answer in answers)
        )

    def repeated(self, passes: int) -> Any:
        """Answers the output for all passes at once."""
        return keras.tree.map_structure(lambda tensor: _tiled(tensor, passes), self.output)


@contextmanager
def _answering(at: Any) -> Iterator[None]:
    before = _call.at
    _call.at = at
    try:
        yield
    finally:
        _call.at = before


def _tiled(tensor: Any, passes: int) -> Any:
    """Answers a tensor for all passes at once, with its mask, which layers after it look for on it."""
    if passes == 1:
        return tensor
    repeated, mask = ops.tile(tensor, (passes, *(1 for _ in tensor.shape[1:]))), get_keras_mask(tensor)
    if mask is not None:
        set_keras_mask(repeated, _tiled(mask, passes))
    return repeated
