"""The linear operator whose norm is that of a layer."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hesitant.nn.power_iteration import ConvOperator, MatrixOperator, PaddingMode, StackedOperator, same_padding

ConvNorm = Literal["operator", "same_padding", "reshaped"]


def operator_of(layer: nn.Module, size: tuple[int, ...] | None, conv_norm: ConvNorm) -> StackedOperator | None:
    """Answers the operator of a layer; None for a convolution that has seen no input.

    Args:
        layer: A Linear or what is like it, or a convolution.
        size: Of a convolution's input, without batch and channels.
        conv_norm: See :class:`~hesitant.nn.SpectralNormalizer`.
    """
    if not isinstance(layer, _ConvNd) or conv_norm == "reshaped":
        return MatrixOperator()
    if conv_norm == "operator" and _looks_at_each_input_once(layer):
        return MatrixOperator()
    if size is None:
        return None
    stride, dilation = tuple(layer.stride), tuple(layer.dilation)
    mode: PaddingMode = layer.padding_mode
    if conv_norm == "same_padding":
        dilation, mode = (1,) * len(size), "zeros"
        padding = same_padding(size, tuple(layer.kernel_size), stride)
    else:
        padding = tuple(layer._reversed_padding_repeated_twice)
    return ConvOperator(layer.in_channels, size, stride, dilation, layer.groups, padding, mode)


def _looks_at_each_input_once(layer: _ConvNd) -> bool:
    """Answers whether a convolution is one matrix at places that share no input: its norm is the matrix's."""
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    apart = layer.groups == 1 and all(r <= step for r, step in zip(reach, layer.stride, strict=True))
    # A place that is padding as a whole adds nothing; one that is so in part has a smaller norm.
    pointwise = set(layer.kernel_size) == {1} and layer.padding_mode == "zeros"
    return apart and (pointwise or not any(layer._reversed_padding_repeated_twice))


@dataclass
class NoteInputSize:
    """A forward hook that notes the size of a convolution's input; noting it twice changes nothing."""

    sizes: dict[str, tuple[int, ...]]
    name: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes it under the layer's name."""
        x = args[0] if args else kwargs["input"]
        self.sizes[self.name] = tuple(x.shape[2 - (x.ndim < cast(Tensor, module.weight).ndim) :])
