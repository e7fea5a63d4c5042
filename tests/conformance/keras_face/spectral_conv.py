"""sn_conv_*: SpectralNormalizationConv2D, whose recorded norm is that of the SAME-padded, undilated convolution."""

import numpy as np

import keras
from hesitant.keras import SpectralNormalizationConv2D

from ..case import Case, CaseError
from ..tolerances import DERIVED_SIGMA
from .numbers import numpy_of

# After fifty calls of three iterations the record itself stands 1.5 tolerances from what float64 makes of its start.
_ITERATES = 3


def recognises(case: Case) -> bool:
    """Answers whether this is a case of a convolution."""
    return case.has("kernel_before", "u_before", "v_before", "calls")


def run(case: Case) -> None:
    """Compares kernels, singular vectors and outputs after each recorded call."""
    tolerance = case.tolerances.spectral_conv
    kernel, x = case.numbers("kernel_before"), case.numbers("x")
    strides, dilation = _pair(case, "strides"), _pair(case, "dilation_rate")
    if kernel.ndim != 4 or _pair(case, "kernel_size") != kernel.shape[:2]:
        raise CaseError(f"{case.path}: kernel_size={case.meta('kernel_size')}, but kernels are {kernel.shape}.")
    if tuple(case.meta("input_shape")) != x.shape:
        raise CaseError(f"{case.path}: input_shape={case.meta('input_shape')}, but x is {x.shape}.")
    if case.meta("padding") not in ("same", "valid"):
        raise CaseError(f"{case.path}: padding={case.meta('padding')!r} is not known: expected 'same' or 'valid'.")
    if case.meta("mode") not in ("eager", "tf.function"):
        raise CaseError(f"{case.path}: mode={case.meta('mode')!r} is not known: expected 'eager' or 'tf.function'.")
    calls = [int(call) for call in case.array("calls")]
    if case.meta("calls") != calls or not calls:
        raise CaseError(f"{case.path}: calls={case.meta('calls')} in meta and {calls} in the arrays.")
    layer = SpectralNormalizationConv2D(
        keras.layers.Conv2D(
            kernel.shape[3],
            kernel.shape[:2],
            strides=strides,
            padding=case.meta("padding"),
            dilation_rate=dilation,
            data_format="channels_last",
            groups=x.shape[3] // kernel.shape[2],
            dtype=case.dtype_name,
        ),
        iteration=case.meta("iteration"),
        norm_multiplier=case.meta("norm_multiplier"),
        norm="same_padding",
        dtype=case.dtype_name,
    )
    layer.build(x.shape)
    layer.layer.kernel.assign(kernel)
    layer.layer.bias.assign(case.numbers("bias"))
    layer.u.assign(case.numbers("u_before"))
    case.ignore("v_before", "written over by the first half step, which takes u alone")
    case.compare("derived_operator_sigma_before", _sigma(layer), DERIVED_SIGMA)
    for call in range(1, max(calls) + 1):
        layer.project()
        if call in calls:
            for name, variable in (("kernel", layer.layer.kernel), ("u", layer.u), ("v", layer.v)):
                case.compare(f"{name}_{call}", numpy_of(variable), _ITERATES * tolerance)
            case.compare(f"y_{call}", numpy_of(layer(x, training=True)), tolerance)
    case.compare("derived_operator_sigma_last", _sigma(layer), DERIVED_SIGMA)


def _sigma(layer: SpectralNormalizationConv2D) -> float:
    """Answers the norm of the operator by its matrix, a column for each input."""
    operator = layer.operator
    size = int(np.prod(operator.input_shape))
    units = np.eye(size).reshape(size, *operator.input_shape[1:]).astype(layer.u.dtype)
    columns = numpy_of(operator.forward(keras.ops.convert_to_tensor(layer.layer.kernel), units))
    return float(np.linalg.norm(columns.reshape(size, -1).astype(np.float64), 2))


def _pair(case: Case, key: str) -> tuple[int, int]:
    value = np.broadcast_to(np.asarray(case.meta(key)), (2,))
    return int(value[0]), int(value[1])
