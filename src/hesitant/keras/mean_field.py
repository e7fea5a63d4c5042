"""The mean-field approximation of a softmax's mean over Gaussian logits."""

from typing import Any

from keras import ops

_LIKELIHOODS = ("logistic", "binary_logistic", "poisson")


def mean_field_logits(
    logits: Any, covmat: Any = None, mean_field_factor: float | None = 1.0, likelihood: str = "logistic"
) -> Any:
    """Answers ``logits / sqrt(1 + factor * variance)``, whose softmax approximates the mean over the posterior.

    Args:
        logits: ``(B, C)`` or ``(B,)``, the posterior mean.
        covmat: The covariance ``(B, B)``, of which the diagonal counts, or the variance ``(B,)``; None is a variance
            of 1.
        mean_field_factor: The factor; None or a negative one leaves the logits as they are. pi / 8 is usual.
        likelihood: ``"logistic"``, ``"binary_logistic"``, or ``"poisson"``: then it is ``logits * exp(factor * variance
            / 2)``.

    Raises:
        ValueError: The likelihood is unknown, or the shapes do not fit each other.

    Source: Lu, Ie and Sha, "Mean-Field Approximation to Gaussian-Softmax Integral with Application to Uncertainty
    Estimation", 2020, equation 7.
    """
    if likelihood not in _LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r} is not known: expected one of {_LIKELIHOODS}.")
    logits = ops.convert_to_tensor(logits)
    if mean_field_factor is None or mean_field_factor < 0:
        return logits
    if covmat is None:
        variance = ops.ones_like(logits[..., 0] if len(logits.shape) > 1 else logits)
    else:
        covmat = ops.cast(ops.convert_to_tensor(covmat), logits.dtype)
        if len(covmat.shape) not in (1, 2) or covmat.shape[0] != covmat.shape[-1]:
            raise ValueError(
                f"covmat has shape {tuple(covmat.shape)}: expected a covariance (B, B) or a variance (B,)."
            )
        variance = covmat if len(covmat.shape) == 1 else ops.diagonal(covmat)
    if len(logits.shape) > 1:
        variance = ops.expand_dims(variance, -1)
    if likelihood == "poisson":
        return logits * ops.exp(mean_field_factor * variance / 2)
    return logits / ops.sqrt(1 + mean_field_factor * variance)
