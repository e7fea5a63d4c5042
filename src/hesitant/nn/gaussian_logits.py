"""Logits with a variance, and the mean-field approximation of their softmax."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MeanFieldLikelihood = Literal["logistic", "binary_logistic", "poisson"]


def mean_field_logits(
    logits: Tensor,  # (B,) or (..., C)
    variance: Tensor | None,  # (B,), (...,) or (..., C)
    factor: float | None = math.pi / 8,
    likelihood: MeanFieldLikelihood = "logistic",
) -> Tensor:
    """Answers the logits whose softmax approximates the mean softmax under Gaussian logits.

    ``f / sqrt(1 + factor * variance)``; for a Poisson rate ``f * exp(factor * variance / 2)``, as edward2 has it.

    Args:
        logits: Mean of the logits, ``(..., C)`` or ``(B,)``.
        variance: Variance of each logit, or one an input, ``(...,)``; None stands for 1.
        factor: Mean-field factor; pi/8 (probit) and 3/pi^2 are the usual ones for a single logit. None or a
            negative value leaves the logits as they are.
        likelihood: What the logits parametrise: ``"logistic"``, ``"binary_logistic"`` or ``"poisson"``.

    Returns:
        The adjusted logits, in the shape of ``logits``.

    Raises:
        ValueError: The likelihood is unknown, or the shapes do not fit each other.

    Source: Lu, Ie, Sha, "Mean-Field Approximation to Gaussian-Softmax Integral", 2020; Daunizeau,
    "Semi-analytical approximations to statistical moments of sigmoid and softmax mappings", 2017.
    """
    if likelihood not in ("logistic", "binary_logistic", "poisson"):
        raise ValueError(
            f"likelihood={likelihood!r} is not known: expected 'logistic', 'binary_logistic' or 'poisson'."
        )
    if factor is None or factor < 0:
        return logits
    if variance is None:
        variance = torch.ones((), dtype=logits.dtype, device=logits.device)
    elif variance.ndim == logits.ndim - 1:
        variance = variance.unsqueeze(-1)
    fits = variance.ndim <= logits.ndim and all(
        mine in (1, other) for mine, other in zip(reversed(variance.shape), reversed(logits.shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"variance has shape {tuple(variance.shape)}, which does not fit logits {tuple(logits.shape)}: give one"
            " variance an input (B,) or one a logit (B, C); of a covariance matrix, its diagonal."
        )
    if likelihood == "poisson":
        return logits * torch.exp(variance * (factor / 2))
    return logits / torch.sqrt(1 + variance * factor)


@dataclass(frozen=True)
class GaussianLogits:
    """A Gaussian over the logits of each input: mean ``(B, C)`` and variance ``(B, C)``."""

    mean: Tensor
    variance: Tensor

    def mean_field_logits(
        self, factor: float | None = math.pi / 8, likelihood: MeanFieldLikelihood = "logistic"
    ) -> Tensor:
        """Answers :func:`mean_field_logits` of this Gaussian, ``(B, C)``."""
        return mean_field_logits(self.mean, self.variance, factor, likelihood)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws logits ``(S, B, C)``, independent between inputs and classes.

        Raises:
            ValueError: ``num_samples`` is below 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        noise = torch.randn(
            (num_samples, *self.mean.shape), generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return noise.mul_(self.variance.sqrt()).add_(self.mean)
