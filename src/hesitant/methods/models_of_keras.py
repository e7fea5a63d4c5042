"""Keras models on its PyTorch backend: modules by class, whose layers are told by an argument whether they train."""

from typing import Any

from torch import nn


def require_module(name: str, model: Any) -> None:
    """Refuses what is no module of PyTorch, or one of Keras: it ignores ``train()`` and ``eval()``.

    Dropout would stay off in ``fit`` and in dropout passes, and no ``Linear`` be found, without a word.

    Raises:
        TypeError: As said.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} is a {type(model).__name__}: expected a torch.nn.Module.")
    if any(base.__module__.split(".")[0] == "keras" for base in type(model).__mro__):
        raise TypeError(
            f"{name} is a Keras model, {type(model).__name__}, whose layers go by training=, not by train() and eval():"
            " expected one of PyTorch's own. For Keras models use hesitant.keras."
        )
