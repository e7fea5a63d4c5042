"""The prediction of a mixture whose distributions are known to be some: they need not be looked at one by one."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from hesitant.prediction.arguments import as_part
from hesitant.prediction.distributions import as_class_indices, as_distributions, sharpened
from hesitant.prediction.mixture import Mixture
from hesitant.prediction.prediction import Prediction, filled

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["prediction_from_mixture"]

_NEARLY_SURE = 0.99  # below, no logarithm is sharpened


def prediction_from_mixture(
    mixture: Mixture, *, targets: "Tensor | ArrayLike | None" = None, evidence: Tensor | None = None
) -> Prediction:
    """The prediction of a mixture, whose logits are those of the mixture.

    Args:
        mixture: as `Mixture.of_passes` makes it.
        targets: `(B,)` integers in [0, C).
        evidence: `(B, C)`, what `prediction.evidence` answers, where that is not the logits.

    Raises:
        TypeError: `targets` do not hold integers.
        ValueError: a number is not finite, or `targets` are out of range.
    """
    probs, log_probs, logits = mixture.probs, mixture.log_probs.clamp(max=0), mixture.logits
    total = float(probs.sum() if logits is None else probs.sum() + logits.sum())
    if not math.isfinite(total):  # of a sum of large numbers, too: then these find nothing
        as_part("logits", logits, probs.shape, like=probs)
        as_distributions("probs", probs)
    if probs.shape[0] > 0 and float(probs.amax()) > _NEARLY_SURE:
        log_probs = sharpened(log_probs)
    return filled(
        object.__new__(Prediction),
        probs=probs.clamp(0, 1),
        log_probs=log_probs,
        targets=None if targets is None else as_class_indices("targets", targets, probs),
        calibration=None,
        _logits=logits,
        _evidence=evidence,
        _ood_score=None,
        _logit_variance=None,
        _expected_entropy=mixture.expected_entropy,
        _class_std=mixture.class_std,
        _split_unavailable=None,
    )
