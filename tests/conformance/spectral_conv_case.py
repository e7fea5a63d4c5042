"""sn_conv_*: SpectralNormalizationConv2D, whose norm is always that of the SAME-padded, undilated convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant.nn import SpectralNormalizer

from .case import Case
from .spectral_dense_case import project
from .spectral_record import Pair, recorded_convolution
from .spectral_record import recognises_convolution as recognises
from .tolerances import DERIVED_SIGMA

__all__ = ["recognises", "run"]


class KerasConv2d(nn.Conv2d):
    """A convolution that pads as Keras does, with the odd pixel at the end, at any stride."""

    def __init__(self, kernel: Tensor, bias: Tensor, stride: Pair, dilation: Pair, same: bool) -> None:
        kh, kw, channels_in, channels_out = kernel.shape
        super().__init__(channels_in, channels_out, (kh, kw), stride, dilation=dilation, dtype=kernel.dtype)
        self.same = same
        with torch.no_grad():
            self.weight.copy_(kernel.permute(3, 2, 0, 1))
            self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            padding: list[int] = []
            for axis in (1, 0):
                n, k = x.shape[2 + axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
                total = max((-(-n // self.stride[axis]) - 1) * self.stride[axis] + k - n, 0)
                padding += [total // 2, total - total // 2]
            x = F.pad(x, padding)
        return super().forward(x)


def run(case: Case) -> None:
    """Compares kernels, singular vectors and outputs after each recorded call."""
    tolerance = case.tolerances.spectral_conv
    kernel, x = case.tensor("kernel_before"), case.tensor("x")
    told = recorded_convolution(case)

    model = nn.Sequential(KerasConv2d(kernel, case.tensor("bias"), told.strides, told.dilation, told.padding == "same"))
    normalizer = SpectralNormalizer(
        model,
        norm_bound=case.meta("norm_multiplier"),
        power_iterations=case.meta("iteration"),
        warm_up_iterations=0,
        conv_norm="same_padding",
    )
    images = x.permute(0, 3, 1, 2).contiguous()
    model.eval()(images)  # a forward hook notes the size
    normalizer.set_vectors("0", case.tensor("u_before")[0].permute(2, 0, 1))
    case.ignore("v_before", "written over by the first half step, which takes u alone")
    sigma = normalizer.norms()["0"]
    case.compare("derived_operator_sigma_before", sigma, DERIVED_SIGMA)

    model.train()
    for call in range(1, max(told.calls) + 1):
        project(normalizer)
        if call in told.calls:
            u, v = normalizer.vectors()["0"]
            assert v is not None
            case.compare(f"kernel_{call}", model[0].weight.permute(2, 3, 1, 0), tolerance)
            case.compare(f"u_{call}", u.permute(1, 2, 0)[None], tolerance)
            case.compare(f"v_{call}", v.permute(1, 2, 0)[None], tolerance)
            case.compare(f"y_{call}", model(images).permute(0, 2, 3, 1), tolerance)
    case.compare("derived_operator_sigma_last", normalizer.norms()["0"], DERIVED_SIGMA)
