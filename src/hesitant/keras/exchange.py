"""Weights between the layers of Keras and those of PyTorch, so that both answer alike."""

from collections.abc import Callable
from typing import Any

import numpy as np

import keras
from hesitant.keras.concrete import array_of
from hesitant.keras.gaussian_process import RandomFeatureGaussianProcess
from hesitant.keras.spectral_normalization import SpectralNormalization

_GP_SETTINGS = (
    # Of the Keras layer, of hesitant.nn's
    ("feature_scale", lambda module: module.feature_scale),
    ("gp_cov_ridge_penalty", lambda module: module.laplace.ridge_penalty),
    ("gp_cov_likelihood", lambda module: module.likelihood),
    ("gp_kernel_type", lambda module: module.kernel),
)  # fmt: skip


def to_torch(layer: Any, module: Any) -> None:
    """Puts the weights of a Keras layer into a PyTorch module of the same kind and sizes, which then answers alike.

    Of a `RandomFeatureGaussianProcess` the covariance goes with them, in float64 and factored anew.

    Args:
        layer: A built Dense, Conv1D, Conv2D or Conv3D, LayerNormalization, BatchNormalization or
            `RandomFeatureGaussianProcess`; or one of these within a `SpectralNormalization`, whose bound stays behind.
        module: A Linear, ConvNd, LayerNorm, BatchNormNd or ``hesitant.nn.RandomFeatureGaussianProcess``.

    Raises:
        TypeError: There is no exchange between the two.
        ValueError: Sizes or settings differ; the message says which.
    """
    layer = _within(layer)
    if isinstance(layer, RandomFeatureGaussianProcess):
        _gp_to_torch(layer, module)
        return
    for variable, parameter, turned in _pairs(layer, module):
        _write(parameter, turned(array_of(variable)))
    if isinstance(layer, (keras.layers.LayerNormalization, keras.layers.BatchNormalization)):
        module.eps = layer.epsilon


def from_torch(layer: Any, module: Any) -> None:
    """Puts the weights of a PyTorch module into a Keras layer of the same kind and sizes, which then answers alike.

    The inverse of `to_torch`, which says of the arguments and errors what holds here as well. A kernel scale, learned
    or set by the data, goes into the projection W. An epsilon that differs is set, before the layer is first traced.
    """
    layer = _within(layer)
    if isinstance(layer, RandomFeatureGaussianProcess):
        _gp_from_torch(layer, module)
        return
    for variable, parameter, turned in _pairs(layer, module):
        numbers = _read(parameter)
        variable.assign(_kernel_from_torch(numbers) if turned is _kernel_to_torch else numbers)
    if isinstance(layer, (keras.layers.LayerNormalization, keras.layers.BatchNormalization)):
        layer.epsilon = module.eps


# ---------------------------------------------------------------- layers of Keras


def _within(layer: Any) -> Any:
    layer = layer.layer if isinstance(layer, SpectralNormalization) else layer
    if not layer.built:
        raise ValueError(f"layer {layer.name} is not built: call the model on some inputs first.")
    return layer


def _pairs(layer: Any, module: Any) -> list[tuple[Any, Any, Callable[[np.ndarray], np.ndarray]]]:
    """Answers the variables of a layer, the parameters of a module, and how the numbers of one become the other's."""
    if isinstance(layer, (keras.layers.LayerNormalization, keras.layers.BatchNormalization)):
        named = [
            ("gamma", "weight"),
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_variance", "running_var"),
        ]
    elif isinstance(getattr(layer, "kernel", None), keras.Variable) and len(layer.kernel.shape) >= 2:
        named = [("kernel", "weight"), ("bias", "bias")]
    else:
        named = []
    pairs: list[tuple[Any, Any, Callable[[np.ndarray], np.ndarray]]] = []
    for ours, theirs in named:
        variable, parameter = getattr(layer, ours, None), getattr(module, theirs, None)
        if variable is None and parameter is None:
            continue
        if variable is None or parameter is None:
            raise ValueError(
                f"layer {layer.name} has {'no' if variable is None else 'a'} {ours}, the {type(module).__name__}"
                f" {'no' if parameter is None else 'a'} {theirs}: make both with it or without."
            )
        turned = _kernel_to_torch if ours == "kernel" else _as_it_is
        expected = turned(np.empty(tuple(variable.shape))).shape
        if tuple(parameter.shape) != expected:
            raise ValueError(
                f"{ours} of layer {layer.name} is {tuple(variable.shape)}, {theirs} of the {type(module).__name__}"
                f" {tuple(parameter.shape)}: expected {expected}."
            )
        pairs.append((variable, parameter, turned))
    if not pairs:
        raise TypeError(f"there is no exchange between a {type(layer).__name__} and a {type(module).__name__}.")
    return pairs


def _as_it_is(numbers: np.ndarray) -> np.ndarray:
    return numbers


def _kernel_to_torch(kernel: np.ndarray) -> np.ndarray:
    """Answers ``(out, in, *sizes)`` of ``(*sizes, in, out)``."""
    axes = range(kernel.ndim)
    return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *axes[:-2])


def _kernel_from_torch(weight: np.ndarray) -> np.ndarray:
    """Answers ``(*sizes, in, out)`` of ``(out, in, *sizes)``."""
    return weight.transpose(*range(2, weight.ndim), 1, 0)


# ---------------------------------------------------------------- the Gaussian process


def _gp_to_torch(layer: RandomFeatureGaussianProcess, module: Any) -> None:
    _require_alike(layer, module)
    if float(array_of(layer.ridge_weight)) != 1:
        raise ValueError(f"the ridge of layer {layer.name} has decayed: call fit_covariance(model, data) first.")
    if layer.random_weight is not None and layer.random_phase is not None:
        _write(module.random_weight, array_of(layer.random_weight).T * (_scale_of(layer) * module.kernel_scale**0.5))
        _write(module.random_phase, array_of(layer.random_phase))
    if layer.layer_norm is not None:
        to_torch(layer.layer_norm, module.layer_norm)
    module.set_output_weights(_like(module.beta, array_of(layer.beta)))
    _write(module.output_bias, array_of(layer.output_bias))
    seen = int(array_of(layer.num_seen))
    if seen == 0:
        module.reset_covariance()
    else:
        summed = array_of(layer.data_precision).astype(np.float64)
        module.replace_covariance(_like(module.laplace.data_precision, summed), seen)


def _gp_from_torch(layer: RandomFeatureGaussianProcess, module: Any) -> None:
    _require_alike(layer, module)
    if layer.random_weight is not None and layer.random_phase is not None:
        projection = _read(module.random_weight).T / (_scale_of(layer) * module.kernel_scale**0.5)
        layer.random_weight.assign(projection)
        layer.random_phase.assign(_read(module.random_phase))
    if layer.layer_norm is not None:
        from_torch(layer.layer_norm, module.layer_norm)
    layer.beta.assign(_read(module.output_weights))
    layer.output_bias.assign(_read(module.output_bias))
    if module.covariance_state == "fitted":
        precision, ridge_weight = _read(module.precision), float(_read(module.laplace.ridge_weight))
        prior = layer.gp_cov_ridge_penalty * ridge_weight
        seen = max(1, int(module.laplace.num_seen))  # which does not count where the ridge decays
        layer.put_sum(precision - prior * np.eye(len(precision)), seen, ridge_weight)
    else:
        layer.reset_covariance_matrix()


def _scale_of(layer: RandomFeatureGaussianProcess) -> float:
    """Answers what the layer multiplies its inputs by."""
    if layer.log_kernel_scale is None:
        return layer.input_scale
    power = -0.5 if layer.use_custom_random_features else -1.0
    return float(np.exp(power * array_of(layer.log_kernel_scale)))


def _require_alike(layer: RandomFeatureGaussianProcess, module: Any) -> None:
    if not hasattr(module, "laplace"):
        raise TypeError(
            f"module is a {type(module).__name__}: expected a hesitant.nn.RandomFeatureGaussianProcess, of an SNGP its"
            " gp."
        )
    if not module.is_decided():
        raise ValueError("the kernel scale of the module is not decided yet: make it with a number, kernel_scale=1.0.")
    for name, theirs in _GP_SETTINGS:
        ours, other = getattr(layer, name), theirs(module)
        if ours != other:
            raise ValueError(
                f"{name} of layer {layer.name} is {ours!r}, and of the module {other!r}: expected the same."
            )
    if (layer.layer_norm is None) != (module.layer_norm is None):
        raise ValueError("one of the two normalizes its inputs: expected normalize_input to be the same.")
    if tuple(layer.beta.shape) != tuple(module.beta.shape):
        raise ValueError(
            f"beta of layer {layer.name} is {tuple(layer.beta.shape)}, and of the module {tuple(module.beta.shape)}:"
            " expected the same number of features and classes."
        )


# ---------------------------------------------------------------- numbers


def _read(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _like(tensor: Any, numbers: np.ndarray) -> Any:
    """Answers the numbers as a tensor of the dtype and on the device of another."""
    return tensor.detach().new_tensor(np.ascontiguousarray(numbers))


def _write(tensor: Any, numbers: np.ndarray) -> None:
    tensor.detach().copy_(_like(tensor, numbers))
