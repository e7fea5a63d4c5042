"""SNGP's Gaussian process with all that stands still multiplied out: two matrices and the factor of its variance."""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant.methods import in_eval_mode
from hesitant.nn import MEAN_FIELD, GaussianLogits, RandomFeatureGaussianProcess, mean_field_logits


class FrozenHead(nn.Module):
    """Answers what a fitted Gaussian process answers in eval mode, of inputs ``(B, D)``.

    ``phi = act(W x + b)``, ``mean = phi w^T + c`` and ``variance = |phi F|^2``, or ``v (|phi|^2 - |phi G|^2)`` of a
    low-rank factor (:class:`~hesitant.nn.PosteriorFactor` decides which is exact enough), where W holds the kernel
    scale, w the parametrization and both w and F the scale of the features.

    Args:
        gp: What it answers for.
        carries: Whether ``forward`` answers the inputs themselves, for a model that picks one position of many: the
            process is then asked about that position alone, by :meth:`posterior`.

    Attributes:
        calls: What each forward was given, and the posterior that it found.
    """

    projection: Tensor | None
    phase: Tensor | None
    shrink: Tensor | None
    weights: Tensor
    bias: Tensor
    columns: Tensor

    def __init__(self, gp: RandomFeatureGaussianProcess, *, carries: bool) -> None:
        super().__init__()
        gp.factorize()
        self.carries = carries
        self.calls: list[tuple[Tensor, GaussianLogits]] = []
        self.layer_norm: Any = None if gp.layer_norm is None else in_eval_mode(gp.layer_norm)
        self.activation = gp.activation
        self.factor_of_mean_field, self.likelihood = gp.mean_field_factor, MEAN_FIELD[gp.likelihood]
        factor = gp.laplace.factor
        assert factor is not None
        dtype = factor.columns.dtype
        with torch.no_grad():
            shrink = torch.exp(-0.5 * gp.scale.log(dtype))
            is_random = gp.random_weight is not None and gp.random_phase is not None
            self.register_buffer("projection", gp.random_weight * shrink if gp.random_weight is not None else None)
            self.register_buffer("phase", gp.random_phase)
            self.register_buffer("shrink", None if is_random else shrink.clone())
            beta = gp.beta.to(dtype)  # first: in half precision the parametrization overflows
            weights = beta if gp.parametrization is None else gp.parametrization(beta)
            self.register_buffer("weights", (weights * gp.feature_scale).T.contiguous())
            self.register_buffer("bias", gp.output_bias.detach().to(dtype).clone())
            self.register_buffer("columns", factor.columns.clone())
        self.factor, self.scale = factor, gp.feature_scale**2
        self.dtype = dtype
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Answers mean-field logits ``(B, C)``, and notes the rest; or the inputs, where it carries them."""
        if self.carries:
            return x
        gaussian = self.posterior(x)
        self.calls.append((x, gaussian))
        return self.mean_field(gaussian).to(x.dtype)

    def posterior(self, x: Tensor) -> GaussianLogits:
        """Answers mean and variance ``(B, C)`` of the logits."""
        x = x.to(self.dtype)
        if self.layer_norm is not None:
            norm = self.layer_norm
            x = F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
        if self.shrink is not None:
            features = x * self.shrink
        else:
            assert self.projection is not None
            features = self.activation(F.linear(x, self.projection, self.phase))
        mean = F.linear(features, self.weights, self.bias)
        factor = dataclasses.replace(self.factor, columns=self.columns)
        variance = factor.variance(features) * self.scale
        variance = variance.unsqueeze(-1) if variance.ndim == 1 else variance  # of one for all classes, or each
        return GaussianLogits(mean, variance.expand_as(mean))

    def mean_field(self, gaussian: GaussianLogits) -> Tensor:
        """Answers the mean-field logits ``(B, C)``."""
        return mean_field_logits(gaussian.mean, gaussian.variance, self.factor_of_mean_field, self.likelihood)
