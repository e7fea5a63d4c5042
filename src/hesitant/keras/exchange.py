"""Weights between the layers of Keras and those of PyTorch, so that both answer alike."""

import math
from collections.abc import Callable
from typing import Any, NoReturn

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
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_CONV_SETTINGS = (
    # Of the Keras layer, of a ConvNd
    ("strides", "stride"),
    ("dilation_rate", "dilation"),
    ("groups", "groups"),
)  # fmt: skip


def to_torch(layer: Any, module: Any) -> None:
    """Puts the weights of a Keras layer into a PyTorch module of the same kind and sizes, which then answers alike.

    Of a `RandomFeatureGaussianProcess` the covariance goes with them, in float64 and factored anew.

    Layouts stay each side's own: a convolution of channels last answers alike to inputs whose axes are in that order.

    Args:
        layer: A built Dense, Conv1D, Conv2D or Conv3D, LayerNormalization, BatchNormalization or
            `RandomFeatureGaussianProcess`; or one of these within a `SpectralNormalization`, whose bound stays behind.
            An activation within a Dense or a convolution stays behind, too: in PyTorch it is a module of its own, which
            follows.
        module: A Linear, ConvNd, LayerNorm, BatchNormNd or ``hesitant.nn.RandomFeatureGaussianProcess``.

    Raises:
        TypeError: There is no exchange between the two.
        ValueError: Sizes or settings differ; the message says which, and nothing has been written.
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
    elif _is_linear(layer, module):
        _require_same_settings(layer, module)
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


def _is_linear(layer: Any, module: Any) -> bool:
    """Answers whether the layer is a matrix, or both are convolutions of as many axes."""
    kernel = getattr(layer, "kernel", None)
    if not isinstance(kernel, keras.Variable):
        return False
    if isinstance(layer, _CONVOLUTIONS):
        stride = getattr(module, "stride", None)
        return not getattr(module, "transposed", True) and stride is not None and len(stride) == len(layer.strides)
    return len(kernel.shape) == 2


def _require_same_settings(layer: Any, module: Any) -> None:
    if not isinstance(layer, _CONVOLUTIONS):
        return
    for name, theirs in _CONV_SETTINGS:
        ours, other = getattr(layer, name), getattr(module, theirs)
        if ours != other:
            _refuse(name, layer, ours, other, f"expected the same. Make the module with {theirs}={ours!r}.")
    expected, padding = _padding_of(layer), _torch_padding_of(module)
    if expected is None:
        _refuse(
            "padding",
            layer,
            layer.padding,
            module.padding,
            f"with strides={layer.strides} what the layer pads depends on the size of its input, or it pads one side"
            f" alone. Let a ZeroPadding{len(layer.strides)}D pad, and give the layer padding='valid'.",
        )
    if expected != padding:
        both = tuple(before for before, after in expected if before == after)
        advice = repr(both) if len(both) == len(expected) else "'same'"
        _refuse("padding", layer, layer.padding, module.padding, f"expected padding={advice} of the module.")
    if any(before + after for before, after in padding) and module.padding_mode != "zeros":
        _refuse("padding_mode", layer, "zeros", module.padding_mode, "make the module with padding_mode='zeros'.")


def _padding_of(layer: Any) -> tuple[tuple[int, int], ...] | None:
    """Answers how much a convolution pads before and after on each axis, or None where PyTorch's cannot."""
    reach = [rate * (size - 1) for rate, size in zip(layer.dilation_rate, layer.kernel_size, strict=True)]
    if layer.padding == "valid":
        return tuple((0, 0) for _ in reach)
    steps = zip(reach, layer.strides, strict=True)
    if (layer.padding != "same" and any(reach)) or any(over and stride != 1 for over, stride in steps):
        return None
    return tuple((over // 2, over - over // 2) for over in reach)


def _torch_padding_of(module: Any) -> tuple[tuple[int, int], ...]:
    if module.padding == "valid":
        return tuple((0, 0) for _ in module.kernel_size)
    if module.padding == "same":
        reach = [rate * (size - 1) for rate, size in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple((over // 2, over - over // 2) for over in reach)
    return tuple((size, size) for size in module.padding)


def _refuse(setting: str, layer: Any, ours: Any, theirs: Any, advice: str) -> NoReturn:
    raise ValueError(f"{setting} of layer {layer.name} is {ours!r}, and of the module {theirs!r}: {advice}")


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


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
            _refuse(name, layer, ours, other, "expected the same.")
    if (layer.layer_norm is None) != (module.layer_norm is None):
        raise ValueError("one of the two normalizes its inputs: expected normalize_input to be the same.")
    if tuple(layer.beta.shape) != tuple(module.beta.shape):
        raise ValueError(
            f"beta of layer {layer.name} is {tuple(layer.beta.shape)}, and of the module {tuple(module.beta.shape)}:"
            " expected the same number of features and classes."
        )
    if layer.random_weight is None:
        _require_same_input_scale(layer, module)
        return
    if layer.random_weight.shape[0] != module.in_features:
        _refuse("input width", layer, layer.random_weight.shape[0], module.in_features, "expected the same.")
    _require_same_activation(layer, module)


def _require_same_input_scale(layer: RandomFeatureGaussianProcess, module: Any) -> None:
    """Of a linear kernel, which has no projection W that could take the scale up."""
    scale = _scale_of(layer)
    ours, theirs = scale**-2, module.kernel_scale
    if not math.isclose(ours, theirs, rel_tol=1e-5):
        advice = f"make the module with kernel_scale={ours:.6g}, since the layer multiplies its inputs by {scale:.6g}."
        _refuse("the squared scale of the inputs (gp_kernel_scale)", layer, round(ours, 6), round(theirs, 6), advice)


def _require_same_activation(layer: RandomFeatureGaussianProcess, module: Any) -> None:
    """By what they answer: the same function has other names on the other side, and the same name other defaults."""
    draw = np.random.default_rng(0)
    shape = (16, layer.num_inducing)
    projected = draw.normal(size=shape) * draw.choice([0.1, 1, 10], shape)
    projected = projected.astype(np.float32)
    ours = array_of(layer.custom_random_features_activation(keras.ops.convert_to_tensor(projected)))
    theirs = _read(module.activation(_like(module.random_weight, projected)))
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True):
        _refuse(
            "custom_random_features_activation",
            layer,
            _name_of(layer.custom_random_features_activation),
            _name_of(module.activation),
            "they do not answer alike. Make the module with activation= the same function of PyTorch.",
        )


# ---------------------------------------------------------------- numbers


def _read(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _like(tensor: Any, numbers: np.ndarray) -> Any:
    """Answers the numbers as a tensor of the dtype and on the device of another."""
    return tensor.detach().new_tensor(np.ascontiguousarray(numbers))


def _write(tensor: Any, numbers: np.ndarray) -> None:
    tensor.detach().copy_(_like(tensor, numbers))
