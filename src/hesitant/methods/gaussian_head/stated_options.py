"""SNGP's options as JSON: by which it is made again."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from hesitant.nn import RandomFeatureGaussianProcess, SpectralNormalizer

_NOT_KEPT: Final = ("in_features", "out_features", "generator", "device", "dtype")
_ACTIVATIONS: Final[dict[str, Callable[..., Any]]] = {
    f"torch.{function.__name__}": function
    for function in (torch.cos, torch.sin, torch.relu, torch.tanh, torch.sigmoid, torch.erf, torch.exp, torch.abs)
}


def complete_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Answers all options of the Gaussian process: those that are given, and the defaults of now for the others."""
    parameters = inspect.signature(RandomFeatureGaussianProcess).parameters
    return {name: given.get(name, p.default) for name, p in parameters.items() if name not in _NOT_KEPT}


def stated_options(
    options: Mapping[str, Any], gp: RandomFeatureGaussianProcess, normalizer: SpectralNormalizer | None
) -> dict[str, Any]:
    """Answers, as JSON, the options of the Gaussian process and of the bounds as they are now.

    Raises:
        TypeError: The activation is none of torch's.
    """
    names = [name for name, function in _ACTIVATIONS.items() if function is gp.activation]
    if not names:
        raise TypeError(
            f"activation={gp.activation!r} cannot be saved, for it is code: expected one of {', '.join(_ACTIVATIONS)}."
            " Save the state dict, and build the model by your own code."
        )
    bounds = {
        "norm_bound": None if normalizer is None else normalizer.norm_bound,
        "only": None if normalizer is None else normalizer.only,
        "exclude": [] if normalizer is None else normalizer.exclude,
        "conv_norm": "operator" if normalizer is None else normalizer.conv_norm,
    }
    now = {"activation": names[0], "l2_penalty": gp.l2_penalty, "ridge_penalty": gp.laplace.ridge_penalty}
    return {name: _plain(value) for name, value in {**bounds, **options, **now}.items()}


def activation_named(name: Any) -> Callable[..., Any]:
    """Answers the activation that a name stands for.

    Raises:
        ValueError: It stands for none.
    """
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"activation={str(name)[:80]!r} is not known: expected one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
