"""What a likelihood makes of the logits: the weights of the data in the precision, and the mean-field formula."""

from typing import Literal

import torch
from torch import Tensor

from hesitant.nn.gaussian_logits import MeanFieldLikelihood

Likelihood = Literal["gaussian", "softmax", "binary_logistic", "poisson"]

MEAN_FIELD: dict[Likelihood, MeanFieldLikelihood] = {
    "gaussian": "logistic",
    "softmax": "logistic",
    "binary_logistic": "binary_logistic",
    "poisson": "poisson",
}


def check_likelihood(likelihood: str, out_features: int) -> None:
    """Raises ValueError for a likelihood that is not known, or that the number of logits does not fit."""
    if likelihood not in MEAN_FIELD:
        raise ValueError(
            f"likelihood={likelihood!r} is not known: expected 'gaussian', 'softmax', 'binary_logistic' or 'poisson'."
        )
    if likelihood == "softmax" and out_features < 2:
        raise ValueError("likelihood='softmax' needs several logits, and got out_features=1: use 'binary_logistic'.")
    if likelihood in ("binary_logistic", "poisson") and out_features != 1:
        raise ValueError(
            f"likelihood={likelihood!r} needs out_features=1, and got out_features={out_features}: its data weights"
            " are those of a single logit. For several classes use likelihood='gaussian' or 'softmax'."
        )


def data_weights(likelihood: Likelihood, logits: Tensor) -> Tensor:
    """Answers the weights w of inputs with logits ``(B, C)``: ``(B, 1)``, or ``(B, C)`` of ``"softmax"``.

    1, p_c(1 - p_c) of each class, p(1 - p) or e^f.

    Raises:
        ValueError: A weight is not finite.
    """
    if likelihood == "gaussian":
        return torch.ones_like(logits[:, :1])
    if likelihood == "poisson":
        weights = logits.exp()
    else:
        p = logits.softmax(1) if likelihood == "softmax" else torch.sigmoid(logits)
        weights = p * (1 - p)
    if not bool(torch.isfinite(weights).all()):
        raise ValueError(
            f"the logits reach {float(logits.abs().max()):.3g}, and the data weights of likelihood={likelihood!r} are"
            " not finite there: nothing was added to the covariance. Look for the input or weight that made them."
        )
    return weights
