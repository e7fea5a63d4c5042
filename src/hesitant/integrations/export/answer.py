"""What a method answers, as tensors of a graph: the formulas of ``Prediction``, without a look at any number."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hesitant.methods import Outputs, log_probs_of, tempered
from hesitant.prediction import as_floating, energy_of, entropy, evidence_of, two_class_logits, uniformity

_SERIES = 1e-4  # below, four terms of log1p's series are exact in float64


class Answer(NamedTuple):
    """What a method answers about B inputs: the fields of a ``Prediction``, of the same meaning.

    Attributes:
        probs: ``(B, C)``.
        log_probs: ``(B, C)`` float64.
        logits: ``(B, C)`` before any temperature; None where the model answers probabilities.
        evidence: ``(B, C)``, the logits that scores look at; None where there are none.
        distance: ``(B,)``, what a method's own detector answers as ``ood_score``.
        logit_variance: ``(B, C)``, of SNGP.
        expected_entropy: ``(B,)`` float64, the aleatoric part.
    """

    probs: Tensor
    log_probs: Tensor
    expected_entropy: Tensor
    logits: Tensor | None = None
    evidence: Tensor | None = None
    distance: Tensor | None = None
    logit_variance: Tensor | None = None

    @property
    def predictive_entropy(self) -> Tensor:
        """``(B,)`` float64, the total uncertainty."""
        return entropy(self.log_probs.exp(), self.log_probs)

    @property
    def ood_score(self) -> Tensor:
        """``(B,)`` float64, as that of a ``Prediction``."""
        if self.distance is not None:
            return self.distance.double()
        return self.predictive_entropy if self.evidence is None else uniformity(self.evidence)

    @property
    def energy(self) -> Tensor:
        """``(B,)`` float64, as that of a ``Prediction``: where there are logits."""
        assert self.evidence is not None
        return energy_of(self.evidence).double()

    @property
    def dempster_shafer(self) -> Tensor:
        """``C / (C + exp(-energy))`` ``(B,)`` float64, as ``prediction.dempster_shafer``: where there are logits."""
        # Not torch.sigmoid: that of ONNX Runtime loses all digits of what is below 1e-20.
        return 1 / (1 + torch.exp(-self.energy - math.log(self.probs.shape[1])))

    @property
    def complement(self) -> Tensor:
        """``1 - max_c p_c`` ``(B,)`` float64, also where the largest probability rounds to 1."""
        return _rest(self.log_probs)[1].squeeze(-1)


def answer_of(
    output: Tensor,
    outputs: Outputs,
    temperature: float,
    *,
    mean_logits: Tensor | None = None,
    evidence: Tensor | None = None,
    logit_variance: Tensor | None = None,
    distance: Tensor | None = None,
) -> Answer:
    """Answers what ``prediction_of`` does, of a model's output ``(B, C)`` at a temperature."""
    if outputs == "logits":
        output = as_floating("logits", output)
        evidence = evidence_of(output) if evidence is None else evidence
        mean_logits = output if mean_logits is None else mean_logits
        scaled = two_class_logits(output if temperature == 1 else output / temperature)
        probs, log_probs = torch.softmax(scaled, -1), torch.log_softmax(scaled.double(), -1)
    else:
        exact = tempered(log_probs_of(output, outputs).double(), temperature)
        probs, log_probs = exact.exp().to(torch.promote_types(output.dtype, torch.float32)), exact
    log_probs = _sharpened(log_probs)
    return Answer(
        probs,
        log_probs,
        entropy(log_probs.exp(), log_probs),
        logits=None if mean_logits is None else two_class_logits(mean_logits),
        evidence=evidence,
        distance=distance,
        logit_variance=None if logit_variance is None else two_class_logits(logit_variance),
    )


def answer_of_passes(logits: Tensor, outputs: Outputs, temperature: float, *, single: bool) -> Answer:
    """Answers the mean of several passes.

    Args:
        logits: ``(S, B, C)``, or log-probabilities where the model answers with probabilities.
        outputs: What the model answers.
        temperature: What divides the logits of each pass.
        single: Whether the model answers a single logit.
    """
    exact = logits.double()
    if outputs == "logits":
        log_passes = torch.log_softmax(exact if temperature == 1 else exact / temperature, -1)
    else:
        log_passes = tempered(exact, temperature)
    passes = log_passes.exp()
    mean_logits = logits.mean(0) if outputs == "logits" else None
    return Answer(
        passes.mean(0).to(logits.dtype),
        _sharpened(torch.logsumexp(log_passes, 0) - math.log(logits.shape[0])),
        entropy(passes, log_passes).mean(0),
        logits=mean_logits,
        evidence=None if mean_logits is None else evidence_of(mean_logits[:, 1:] if single else mean_logits),
    )


def mixed(answers: Sequence[Answer]) -> Answer:
    """Answers the mean of members' answers, each with the same weight."""
    logits, evidence, variance, distance = (
        _all_of([getattr(answer, name) for answer in answers])
        for name in ("logits", "evidence", "logit_variance", "distance")
    )
    log_probs = torch.stack([answer.log_probs for answer in answers])
    return Answer(
        torch.stack([answer.probs for answer in answers]).mean(0),
        _sharpened(torch.logsumexp(log_probs, 0) - math.log(len(answers))),
        torch.stack([answer.expected_entropy for answer in answers]).mean(0),
        logits=None if logits is None else logits.mean(0),
        evidence=None if evidence is None else evidence.mean(0),
        distance=None if distance is None else distance.mean(0),
        logit_variance=None if variance is None or logits is None else variance.mean(0) + logits.var(0, correction=0),
    )


def _all_of(parts: list[Tensor | None]) -> Tensor | None:
    """Answers them as one tensor ``(S, ...)``, if none is missing."""
    given = [part for part in parts if part is not None]
    return torch.stack(given) if len(given) == len(parts) else None


def _rest(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Answers which class is the largest ``(B, 1)``, and what the others sum to ``(B, 1)``."""
    label = log_probs.argmax(dim=-1, keepdim=True)
    return label, log_probs.exp().scatter(-1, label, 0.0).sum(dim=-1, keepdim=True)


def _sharpened(log_probs: Tensor) -> Tensor:
    """Answers the logarithms ``(B, C)`` float64, the largest by what the others leave, where that is more exact.

    ``prediction.sharpened`` for a graph: ONNX has no log1p, and ``log(1 + x)`` forgets a small x.
    """
    label, rest = _rest(log_probs)
    small = rest.clamp(max=_SERIES)
    series = -small * (1 + small * (1 / 2 + small * (1 / 3 + small / 4)))
    return log_probs.scatter(-1, label, torch.where(rest < _SERIES, series, log_probs.amax(-1, keepdim=True)))
