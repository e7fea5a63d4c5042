"""What a Keras variable holds now, where that can be known: while a backend traces, it cannot."""

import sys
from typing import Any

import numpy as np

import keras


def array_of(variable: Any) -> np.ndarray:
    """Answers what a variable or tensor of the backend holds, outside of any trace."""
    return _array(keras.ops.convert_to_tensor(variable))


def numbers_of(variable: Any) -> "np.ndarray | None":
    """Answers what the variable holds, or None where the backend only traces, and a value comes later."""
    value = variable.value
    backend = keras.backend.backend()
    if backend == "tensorflow" and not sys.modules["tensorflow"].executing_eagerly():
        return None
    if backend == "jax" and isinstance(value, sys.modules["jax"].core.Tracer):
        return None
    if backend == "torch" and value.device.type == "meta":
        return None
    return _array(value)


def _array(tensor: Any) -> np.ndarray:
    if keras.backend.backend() == "torch" and keras.backend.standardize_dtype(tensor.dtype) != "bfloat16":
        return np.asarray(tensor.detach().cpu().numpy())  # Keras' own way raises a warning of NumPy
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def is_given_in_a_stateless_call(variable: Any) -> bool:
    """Answers whether a value for the variable was handed to ``stateless_call``, as JAX's trainer does.

    What a layer reads of it is then not what the variable itself holds.
    """
    from keras.src.backend.common.stateless_scope import get_stateless_scope  # not public in any release

    scope = get_stateless_scope()
    return scope is not None and scope.get_current_value(variable) is not None


def only_shapes_are_asked_for() -> bool:
    """Answers whether Keras goes through a call to learn its shapes, with numbers that mean nothing."""
    from keras.src.backend.common.symbolic_scope import in_symbolic_scope  # not public in any release

    return bool(in_symbolic_scope())


def told_later(tell: Any, variable: Any) -> None:
    """Calls ``tell(value)`` as soon as the value of a traced variable is known: JAX each time, TensorFlow at once."""
    backend = keras.backend.backend()
    if backend == "jax":
        sys.modules["jax"].debug.callback(tell, variable.value)
    elif backend == "tensorflow":
        tensorflow = sys.modules["tensorflow"]
        with tensorflow.init_scope():
            if tensorflow.executing_eagerly():
                tell(variable.numpy())
