"""sn_conv_*: SpectralNormalizationConv2D, whose recorded norm is that of the SAME-padded, undilated convolution."""

import numpy as np

import keras
from hesitant.keras import SpectralNormalizationConv2D

from ..case import Case
from ..spectral_record import recognises_convolution as recognises
from ..spectral_record import recorded_convolution
from ..tolerances import DERIVED_SIGMA
from .numbers import numpy_of

__all__ = ["recognises", "run"]

# After fifty calls of three iterations the record itself stands 1.5 tolerances from what float64 makes of its start.
_ITERATES = 3


def run(case: Case) -> None:
    """Compares kernels, singular vectors and outputs after each recorded call."""
    tolerance = case.tolerances.spectral_conv
    kernel, x = case.numbers("kernel_before"), case.numbers("x")
    told = recorded_convolution(case)
    layer = SpectralNormalizationConv2D(
        keras.layers.Conv2D(
            kernel.shape[3],
            kernel.shape[:2],
            strides=told.strides,
            padding=told.padding,
            dilation_rate=told.dilation,
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
    for call in range(1, max(told.calls) + 1):
        layer.project()
        if call in told.calls:
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
