"""Numbers to and from the backend, and what Keras gives activations of those names."""

from collections.abc import Callable
from typing import Any

import numpy as np

import keras

from ..activation_names import bare_name
from ..case import Case, CaseError

_OF_OPS = ("cos", "sin", "square", "abs", "exp")


def numpy_of(tensor: Any) -> np.ndarray:
    """Answers a tensor or variable of the backend as an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def activation(name: str | None) -> Callable[[Any], Any]:
    """Answers the activation of Keras that a case names."""
    bare = bare_name(name)
    if bare in _OF_OPS:
        return getattr(keras.ops, bare)
    try:
        return keras.activations.get({"identity": "linear", "swish": "silu"}.get(bare, bare))
    except ValueError as error:
        raise CaseError(f"activation {name!r} is not known.") from error


def put(case: Case, variable: Any, key: str) -> None:
    """Puts a recorded array into a variable of its shape."""
    numbers = case.numbers(key)
    if tuple(variable.shape) != numbers.shape:
        raise CaseError(f"{case.path}: {key} has shape {numbers.shape}, expected {tuple(variable.shape)}.")
    variable.assign(numbers)
