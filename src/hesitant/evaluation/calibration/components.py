"""The distributions whose mean a method answers with, before its temperature: what a temperature is fitted to."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesitant.inputs import Batch, map_tensors
from hesitant.methods import SNGP, DeepEnsemble, MCDropout, Tempered, derived_seed

_ROUNDING = 2e-2  # of probabilities, in half precision


class Components(NamedTuple):
    """S distributions over C classes for each of B inputs: of dropout passes, of members, or a single one.

    Attributes:
        logits: ``(S, B, C)``; for an SNGP the posterior mean.
        variance: ``(S, B, C)`` of these logits, 0 for what has none; None if none has any.
        factors: ``(S,)`` the mean-field factor of each, 0 for what has none.
        weights: ``(S,)`` of each in the mean; they sum to 1.
        targets: ``(B,)``, where they are known.
    """

    logits: Tensor
    variance: Tensor | None
    factors: Tensor
    weights: Tensor
    targets: Tensor | None

    def mean_field(self, factor: float | None) -> Tensor:
        """Answers the mean-field logits ``(S, B, C)`` in float64, with one factor for all or with each its own."""
        logits = self.logits.double()
        if self.variance is None:
            return logits
        factors = self.factors if factor is None else torch.full_like(self.factors, factor)
        return logits / torch.sqrt(1 + factors.view(-1, 1, 1) * self.variance)

    def rows(self, chosen: Tensor | slice) -> "Components":
        """Answers the components of some inputs."""
        return self._replace(
            logits=self.logits[:, chosen],
            variance=None if self.variance is None else self.variance[:, chosen],
            targets=None if self.targets is None else self.targets[chosen],
        )


def components_of(method: Tempered, batch: Batch, *, seed: int, position: int) -> Components:
    """Answers the components of a method for a batch, on the CPU, without the method's own temperature.

    Those of methods within it are applied: what is fitted stands beside them.

    Args:
        method: What answers.
        batch: What it answers.
        seed: Of dropout masks.
        position: Of the batch: masks of an input's own are others for another batch.

    Raises:
        ValueError: An SNGP's model makes something else of its logits than the mean-field approximation.
    """
    found = _components(method, replace(batch, targets=None), 1.0, derived_seed(seed, position), seed)
    return found._replace(targets=None if batch.targets is None else batch.targets.cpu())


def _components(method: Tempered, batch: Batch, temperature: float, seed: int, shared_seed: int) -> Components:
    if isinstance(method, DeepEnsemble):
        parts = []
        for index, member in enumerate(method.members):
            within: Tempered = method.method_of(member)
            seeds = (derived_seed(number, index) for number in (seed, shared_seed))
            own = map_tensors(batch, Tensor.clone)  # a model may write to them
            parts.append(_components(within, own, temperature * within.temperature, *seeds))
        return _joined(parts)
    if isinstance(method, MCDropout):
        # The same sub-networks for all inputs, or masks of each input's own.
        drawn_by = shared_seed if method.masks == "shared" else seed
        logits = method.samples([batch], temperature=temperature, seed=drawn_by, log=True)
        each = torch.ones(len(logits), dtype=torch.float64)
        return Components(logits.cpu(), None, 0 * each, each / len(each), None)
    answering: Any = method
    prediction = answering.answer([batch], temperature=temperature, seed=seed).to("cpu")
    one = torch.ones(1, dtype=torch.float64)
    if not isinstance(method, SNGP):
        return Components(prediction.log_probs.unsqueeze(0), None, 0 * one, one, None)
    factor = method.gp.mean_field_factor
    answer = Components(
        (prediction.logits / temperature).unsqueeze(0),
        prediction.logit_variance.unsqueeze(0),
        (0.0 if factor is None or factor < 0 else factor) * one,
        one,
        None,
    )
    difference = (torch.softmax(answer.mean_field(None)[0], -1) - prediction.probs).abs().max()
    if not difference <= _ROUNDING:
        raise ValueError(
            f"the probabilities of an SNGP around {type(method.model).__name__} are not the softmax of its mean-field"
            f" logits (they differ by {float(difference):.2g}): a model that changes its classifier's logits has no"
            " factor to fit."
        )
    return answer


def _joined(parts: list[Components]) -> Components:
    """Answers the components of all members, each member of the same weight."""
    variances = [part.variance for part in parts]
    variance = None
    if any(v is not None for v in variances):
        variance = torch.cat(
            [torch.zeros_like(p.logits) if v is None else v for p, v in zip(parts, variances, strict=True)]
        )
    return Components(
        torch.cat([part.logits for part in parts]),
        variance,
        torch.cat([part.factors for part in parts]),
        torch.cat([part.weights / len(parts) for part in parts]),
        None,
    )
