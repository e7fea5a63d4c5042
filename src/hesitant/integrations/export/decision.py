"""A deferral policy within a graph: the same scores, the same comparison, and a tie decided as it was."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesitant.detection import Score
from hesitant.evaluation import DeferralPolicy
from hesitant.integrations.export.answer import Answer

_EPSILON = float(torch.finfo(torch.float32).eps)
_ROUNDINGS = 2  # of float32, by which scores of one input differ between torch and a runtime
_EXACT = 1e-3  # below, a confidence's complement is the sum of the other probabilities, exact in relation to itself
_RELATIVE: tuple[Score, ...] = ("ood_score", "dempster_shafer", "logit_variance")  # exact so wherever they are
_LEAST = float(torch.finfo(torch.float32).smallest_normal) * _EPSILON  # what float32 tells from 0

_SCORES: dict[Score, Callable[[Answer], Tensor]] = {
    "confidence": lambda answer: answer.complement,
    "ood_score": lambda answer: answer.ood_score,
    "predictive_entropy": lambda answer: answer.predictive_entropy,
    "mutual_information": lambda answer: answer.predictive_entropy - answer.expected_entropy,
    "logit_variance": lambda answer: _known(answer.logit_variance).double().mean(-1),
    "dempster_shafer": lambda answer: answer.dempster_shafer,
    "energy": lambda answer: answer.energy,
}


def accepted(answer: Answer, policy: DeferralPolicy) -> Tensor:
    """Answers which inputs to answer, ``(B,)`` booleans, as ``policy.accept`` does.

    A runtime rounds its own way, so that a score that equals the threshold here is a hair above or below it there. A
    threshold is the score of a calibration input: many inputs may have it to the bit (repeated ones, saturated ones).
    So a score within the rounding of the threshold is decided as one that equals it: handed over under a promised risk
    and by a guard, whose thresholds are scores of inputs that were handed over; answered under a budget, whose
    threshold is just above the score of an input that was answered. What is NaN is handed over.
    """
    kept = _below(answer, policy.score, policy.threshold, ties_are_kept=policy.max_risk is None)
    if policy.guard > 0:
        kept = kept & _below(answer, policy.guard_score, policy.guard_threshold, ties_are_kept=False)
    return kept


def _below(answer: Answer, score: Score, threshold: float, *, ties_are_kept: bool) -> Tensor:
    scores = _SCORES[score](answer)
    if math.isinf(threshold):
        return scores == scores
    is_relative = score in _RELATIVE and not (score == "ood_score" and answer.distance is not None)
    rounding = _rounding(threshold, answer.probs.shape[1], is_relative=is_relative)
    return scores < (threshold + rounding if ties_are_kept else threshold - rounding)


def _rounding(threshold: float, num_classes: int, *, is_relative: bool) -> float:
    """Answers by how much the scores of an input at the threshold may differ.

    Logarithms have an absolute rounding, and a score ``exp L`` has that part of itself, as often as ``L`` is large.
    """
    size = abs(threshold)
    if not is_relative and size >= _EXACT:
        return _ROUNDINGS * _EPSILON * max(1.0, size)
    logarithm = abs(math.log(size)) if size > 0 else 0.0
    # What float32 cannot tell from 0, a confidence tells by float64.
    least = _ROUNDINGS * _LEAST if size >= _LEAST else 0.0
    return least + _ROUNDINGS * _EPSILON * size * (1 + logarithm + math.log(num_classes))


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # policy.accept has been asked about a prediction of this method before
    return tensor
