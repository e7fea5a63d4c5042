"""Activations by the names that Keras and TensorFlow give them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation_names import bare_name
from .case import CaseError

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Activation] = {
    "cos": torch.cos,
    "sin": torch.sin,
    "relu": torch.relu,
    "relu6": F.relu6,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "exp": torch.exp,
    "exponential": torch.exp,
    "square": torch.square,
    "abs": torch.abs,
    "linear": lambda x: x,
    "identity": lambda x: x,
}


def activation(name: str | None) -> Activation:
    """Answers the activation that e.g. "relu" or "tf.math.cos (default)" names; None is none."""
    bare = bare_name(name)
    if bare not in _ACTIVATIONS:
        raise CaseError(f"activation {name!r} is not known: expected one of {sorted(_ACTIVATIONS)}.")
    return _ACTIVATIONS[bare]
