"""What a method answers, as tensors of a graph: the formulas of ``Prediction``, without a look at any number."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hesitant.methods import Outputs, energy_of_output, log_probs_of, tempered
from hesitant.prediction import as_floating, energy_of, entropy, two_class_logits

_SERIES = 1e-4  # below, four terms of log1p's series are exact in float64


class Answer(NamedTuple):
    """What a method answers about B inputs: the fields of a ``Prediction``, of the same meaning.

    Attributes:
        probs: ``(B, C)``.
        log_probs: ``(B, C)`` float64.
        logits: ``(B, C)`` before any temperature; None where the model answers probabilities.
        energy: ``(B,)``; None where there are no logits.
        distance: ``(B,)``, what a method's own detector answers as ``ood_score``.
        logit_variance: ``(B, C)``, of SNGP.
        expected_entropy: ``(B,)`` float64, the aleatoric part.
    """

    probs: Tensor
    log_probs: Tensor
    expected_entropy: Tensor
    logits: Tensor | None = None
    energy: Tensor | None = None
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
        if self.energy is None:
            return self.predictive_entropy
        return self.dempster_shafer

    @property
    def dempster_shafer(self) -> Tensor:
        """``C / (C + exp(-energy))`` ``(B,)`` float64, as ``prediction.dempster_shafer``: where there are logits."""
        assert self.energy is not None
        # Not torch.sigmoid: that of ONNX Runtime loses all digits of what is below 1e-20.
        return 1 / (1 + torch.exp(-self.energy.double() - math.log(self.probs.shape[1])))

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
    energy: Tensor | None = None,
    logit_variance: Tensor | None = None,
    distance: Tensor | None = None,
) -> Answer:
    """Answers what ``prediction_of`` does, of a model's output ``(B, C)`` at a temperature."""
    if outputs == "logits":
        output = as_floating("logits", output)
        energy = energy_of_output(output) if energy is None else energy
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
        energy=energy,
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
        energy=None if mean_logits is None else energy_of(mean_logits, single=single),
    )


def mixed(answers: Sequence[Answer], evidence: Sequence[Tensor] | None) -> Answer:
    """Answers the mean of members' answers, each with the same weight.

    Args:
        answers: Of the members.
        evidence: ``(B, C)`` of each, the logits that its ``energy`` is of; None where a member has none.
    """
    logits = energy = variance = distance = None
    if evidence is not None:
        given = torch.stack([answer.logits for answer in answers if answer.logits is not None])
        logits = given.mean(0)
        total = torch.stack([_shifted(each, answer) for each, answer in zip(evidence, answers, strict=True)])
        energy = energy_of(total.mean(0))
        variances = [answer.logit_variance for answer in answers if answer.logit_variance is not None]
        if len(variances) == len(answers):
            variance = torch.stack(variances).mean(0) + given.var(0, correction=0)
    distances = [answer.distance for answer in answers if answer.distance is not None]
    if len(distances) == len(answers):
        distance = torch.stack(distances).mean(0)
    log_probs = torch.stack([answer.log_probs for answer in answers])
    return Answer(
        torch.stack([answer.probs for answer in answers]).mean(0),
        _sharpened(torch.logsumexp(log_probs, 0) - math.log(len(answers))),
        torch.stack([answer.expected_entropy for answer in answers]).mean(0),
        logits=logits,
        energy=energy,
        distance=distance,
        logit_variance=variance,
    )


def _shifted(evidence: Tensor, answer: Answer) -> Tensor:
    """Answers a member's logits in float64, shifted to its energy: they may be ``[0, z]``, or posterior means."""
    assert answer.energy is not None
    return evidence.double().log_softmax(-1) - answer.energy.double().unsqueeze(-1)


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
