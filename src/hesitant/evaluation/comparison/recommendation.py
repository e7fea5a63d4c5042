"""Which method to use: the one that answers most within a promised risk, and hands over what it cannot know."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesitant.evaluation.comparison.compare import Comparison, for_json
from hesitant.evaluation.deferral import DeferralPolicy
from hesitant.prediction import Prediction

__all__ = ["Outcome", "Recommendation", "recommend"]

_SMALLEST_DIFFERENCE = 0.01  # a percentage point less is not worth worse probabilities
_NOISE = 1.96


@dataclass(frozen=True)
class Outcome:
    """What deferral comes to with one method, on the half of the data that its threshold was not chosen on.

    Attributes:
        policy: the promise; `None` where none can be made.
        refusal: why there is none, in the words of `DeferralPolicy.calibrate`; empty where there is one.
        num_checked: inputs in that half.
        num_answered: those among them that the policy accepts.
        num_wrong: wrong labels among these.
        handed_over: of each out-of-domain set, the share that the policy does not accept, in [0, 1].
    """

    policy: DeferralPolicy | None
    refusal: str
    num_checked: int
    num_answered: int = 0
    num_wrong: int = 0
    handed_over: Mapping[str, float] | None = None

    @property
    def coverage(self) -> float:
        """The share of inputs that are answered, in [0, 1]."""
        return self.num_answered / self.num_checked

    @property
    def risk(self) -> float | None:
        """The error rate among the answered inputs, in [0, 1]; `None` if none was answered."""
        return self.num_wrong / self.num_answered if self.num_answered else None


@dataclass(frozen=True, eq=False)
class Recommendation:
    """Which method to use, and what each one comes to.

    Attributes:
        method: the recommended one.
        equals: others that the data cannot tell from the best.
        decided_by: what set `method` apart from its equals: `"nll"`, `"parameters"` or `"order"`; `None` without any.
        outcomes: of each method.
        max_risk: the error rate among answered inputs that may be promised.
        delta: the probability with which one of the promises may fail.
        guard: the share of the calibration data that every policy hands over as least like the training data.
        check: `(B - B // 2,)` the rows of the data that thresholds were not chosen on.
        num_calibration: inputs on which they were chosen.
    """

    method: str
    equals: tuple[str, ...]
    decided_by: Literal["nll", "parameters", "order"] | None
    outcomes: Mapping[str, Outcome]
    max_risk: float
    delta: float
    guard: float
    check: Tensor
    num_calibration: int

    def to_dict(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and dicts, for JSON."""
        return {
            "method": self.method,
            "equals": list(self.equals),
            "decided_by": self.decided_by,
            "max_risk": self.max_risk,
            "delta": self.delta,
            "guard": self.guard,
            "num_calibration": self.num_calibration,
            "outcomes": {
                name: {
                    "threshold": None if outcome.policy is None else for_json(outcome.policy.threshold),
                    "guard_threshold": None if outcome.policy is None else for_json(outcome.policy.guard_threshold),
                    "refusal": outcome.refusal,
                    "num_checked": outcome.num_checked,
                    "num_answered": outcome.num_answered,
                    "num_wrong": outcome.num_wrong,
                    "handed_over": None if outcome.handed_over is None else dict(outcome.handed_over),
                }
                for name, outcome in self.outcomes.items()
            },
        }

    @property
    def promised(self) -> bool:
        """Whether any method can promise the risk; otherwise `method` is the one of the least AURC."""
        return self.outcomes[self.method].policy is not None


def recommend(
    comparison: Comparison,
    *,
    max_risk: float = 0.01,
    delta: float = 0.05,
    guard: float = 0.05,
    seed: int = 0,
) -> Recommendation:
    """The method that handles the largest share of inputs rightly within the promised risk.

    The data are split at random. On one half each method's `DeferralPolicy` is calibrated, with `delta` shared out
    among the methods, so that all promises hold together with probability `1 - delta` and the best may be chosen among
    them. With out-of-domain sets, a policy also hands over whatever is less like the training data, by the
    comparison's `ood_score`, than all but the share `guard` of the calibration data (see `DeferralPolicy.calibrate`,
    also for what it guards SNGPs of two classes by).
    On the other half a method is worth its coverage; with out-of-domain sets, the mean of its coverage and of the
    share of these sets that it hands over, each set alike. Methods within a percentage point of the best, or within
    1.96 standard errors, are not told apart. Among them the one of the lowest NLL is taken; of those with the same NLL
    the one of the fewest parameters (where they are not known, after all others); then the one that stands first. Where
    no method can promise anything, the least AURC decides in the same way. The same predictions always have the same
    answer: what was measured with a clock has no part in it.

    Args:
        comparison: of one method or more.
        max_risk: in (0, 1).
        delta: in (0, 1).
        guard: in [0, 1); without out-of-domain sets it is not applied.
        seed: of the split of the data.

    Raises:
        ValueError: `max_risk`, `delta` or `guard` is out of range.
    """
    for name, value in (("max_risk", max_risk), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}, expected a number between 0 and 1: 0.01 is one in a hundred")
    if not 0 <= guard < 1:
        raise ValueError(f"guard is {guard}, expected a share of at least 0 and below 1: 0.05 is one in twenty")
    guard = guard if comparison.ood else 0.0
    order = torch.randperm(comparison.num_inputs, generator=torch.Generator().manual_seed(seed))
    calibration, check = order[: len(order) // 2], order[len(order) // 2 :]
    outcomes: dict[str, Outcome] = {}
    worth: dict[str, list[Tensor]] = {}
    for name, prediction in comparison.predictions.items():
        ood = {other: of_methods[name] for other, of_methods in comparison.ood.items()}
        if len(calibration) == 0:
            outcomes[name] = Outcome(None, "half of one input is none to choose a threshold on", len(check))
            continue
        try:
            policy = DeferralPolicy.calibrate(
                prediction[calibration],
                max_risk=max_risk,
                delta=delta / len(comparison.predictions),
                score=comparison.score,
                guard=guard,
                guard_score=None if comparison.ood_score == "ood_score" else comparison.ood_score,
            )
        except ValueError as error:
            outcomes[name] = Outcome(None, str(error), len(check))
            continue
        outcomes[name], worth[name] = _outcome(policy, prediction[check], ood)
    # Where nothing is promised, AURC; a column in which all methods are alike has no mark.
    alike = _alike(worth) if worth else list(comparison.best["aurc"] or comparison.predictions)
    method, decided_by = _first_of(comparison, alike)
    return Recommendation(
        method=method,
        equals=tuple(name for name in alike if name != method),
        decided_by=decided_by,
        outcomes=outcomes,
        max_risk=max_risk,
        delta=delta,
        guard=guard,
        check=check,
        num_calibration=len(calibration),
    )


def _outcome(policy: DeferralPolicy, check: Prediction, ood: Mapping[str, Prediction]) -> tuple[Outcome, list[Tensor]]:
    """What the policy comes to, and for each data set whether each input was handled as it should be."""
    accepted = policy.accept(check)
    wrong = check.labels != check.targets
    handed_over = {name: ~policy.accept(prediction) for name, prediction in ood.items()}
    outcome = Outcome(
        policy,
        "",
        len(check),
        num_answered=int(accepted.sum()),
        num_wrong=int((accepted & wrong).sum()),
        handed_over={name: mask.double().mean().item() for name, mask in handed_over.items()},
    )
    return outcome, [accepted.double(), *(mask.double() for mask in handed_over.values())]


def _alike(worth: Mapping[str, list[Tensor]]) -> list[str]:
    """The methods that are worth as much as the best, as far as the data can tell."""

    def weighted(parts: list[Tensor]) -> list[tuple[float, Tensor]]:
        data, *others = parts
        return [(0.5 if others else 1.0, data), *((0.5 / len(others), part) for part in others)]

    values = {
        name: sum(weight * part.mean().item() for weight, part in weighted(parts)) for name, parts in worth.items()
    }
    best = max(values, key=lambda name: values[name])
    alike = []
    for name, parts in worth.items():
        differences = [first - other for first, other in zip(worth[best], parts, strict=True)]
        variance = sum(weight**2 * part.var(correction=0).item() / len(part) for weight, part in weighted(differences))
        if values[best] - values[name] <= max(_SMALLEST_DIFFERENCE, _NOISE * math.sqrt(variance)):
            alike.append(name)
    return alike


def _first_of(comparison: Comparison, alike: Sequence[str]) -> tuple[str, Literal["nll", "parameters", "order"] | None]:
    """Which of methods that are worth the same is taken, and by what."""
    left = list(alike)
    keys: tuple[Literal["nll", "parameters"], ...] = ("nll", "parameters")
    for key in keys:
        if len(left) > 1:
            figures = {name: comparison.figures[name][key] for name in left}
            values = {name: math.inf if figure is None else figure for name, figure in figures.items()}
            left = [name for name in left if values[name] == min(values.values())]
            if len(left) == 1:
                return left[0], key
    return left[0], None if len(alike) == 1 else "order"
