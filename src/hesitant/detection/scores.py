"""One number an input that says how unsure a prediction is: to detect by, to rank by, to defer by."""

from typing import Literal, get_args

import torch
from torch import Tensor

from hesitant.prediction import Prediction, dempster_shafer, in_parts, uniformity

__all__ = ["SCORES", "Score", "guarding_score", "uncertainty"]

Score = Literal[
    "confidence",
    "ood_score",
    "predictive_entropy",
    "mutual_information",
    "logit_variance",
    "dempster_shafer",
    "energy",
]
SCORES: tuple[Score, ...] = get_args(Score)


def uncertainty(prediction: Prediction, score: Score = "confidence") -> Tensor:
    """How unsure `prediction` is of each input: `(B,)` float64 on its device, higher means less sure.

    - `"confidence"`: `1 - max_c p_c`, in [0, 1 - 1/C], from the log-probabilities: where the confidences round to 1
      they keep their order, down to 1e-300 (Hendrycks and Gimpel 2017, https://arxiv.org/abs/1610.02136).
    - `"ood_score"`: `prediction.ood_score`, the default to detect by: what a detector gave, else
      `exp(-KL(uniform || softmax f))` in [0, 1], or `"predictive_entropy"` where there are no logits.
    - `"predictive_entropy"`: `-sum_c p_c log p_c`, in [0, log C], the total uncertainty.
    - `"mutual_information"`: total less aleatoric, in [0, log C] (Houlsby et al. 2011,
      https://arxiv.org/abs/1112.5745). Needs samples or members.
    - `"logit_variance"`: the mean over classes of the variance of the logits, at least 0. Needs SNGP.
    - `"dempster_shafer"`: `C / (C + sum_c exp f_c)`, in [0, 1] (Sensoy et al. 2018,
      https://arxiv.org/abs/1806.01768; of SNGP, Liu et al. 2020, https://arxiv.org/abs/2006.10108). Needs logits.
    - `"energy"`: `-log sum_c exp f_c` (Liu et al. 2020, https://arxiv.org/abs/2010.03759); ranks as
      `"dempster_shafer"` does, and does not round. Needs logits.

    `f` are the logits of `prediction.evidence`: before any temperature, their mean over passes or members, for SNGP the
    mean-field logits at their temperature. The last two change with a number that is added to all of them, which
    softmax does not see and training by cross-entropy does not determine; of a single logit they rank as the confidence
    does.

    Args:
        prediction: of `B >= 0` inputs.
        score: one of `SCORES`.

    Raises:
        UnavailableError: the method that made `prediction` cannot give this score.
        ValueError: `score` is none of `SCORES`.
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r}, expected one of {', '.join(map(repr, SCORES))}")
    return in_parts(prediction, lambda part: _of_part(part, score))


def guarding_score(prediction: Prediction) -> Score:
    """What a policy that answers by the confidence is to guard by: `"ood_score"`, where it asks a question of its own.

    Of two classes, made of their logits, it is the order of the confidence, as every function of a distribution over
    two is: it cannot tell an input between them from one that is neither. The variance of the logits depends on where
    an input lies and on no class, and is the answer where there is one.
    """
    if prediction.probs.shape[1] > 2 or "logit_variance" not in prediction.available:
        return "ood_score"
    by_default = (
        uniformity(prediction.evidence) if "evidence" in prediction.available else prediction.predictive_entropy
    )
    is_a_detectors = not torch.equal(prediction.ood_score, by_default.double())
    return "ood_score" if is_a_detectors else "logit_variance"


def _of_part(prediction: Prediction, score: Score) -> Tensor:
    if score == "confidence":
        return _complement(prediction.log_probs.double())
    if score == "ood_score":
        return prediction.ood_score
    if score == "predictive_entropy":
        return prediction.predictive_entropy.double()
    if score == "mutual_information":
        return prediction.mutual_information.double()
    if score == "logit_variance":
        return prediction.logit_variance.double().mean(dim=-1)
    if score == "energy":
        return prediction.energy.double()
    return dempster_shafer(prediction.evidence)


def _complement(log_probs: Tensor) -> Tensor:
    """`1 - max_c p_c` of float64 log-probabilities `(b, C)`."""
    largest, label = log_probs.max(dim=-1)  # (b,)
    complement = -torch.expm1(largest)
    saturated = largest == 0
    if bool(saturated.any()):  # where float32 could not hold even the logarithm of the largest, the others tell
        others = log_probs[saturated].exp().scatter(-1, label[saturated].unsqueeze(-1), 0.0)
        complement[saturated] = others.sum(dim=-1)
    return complement
