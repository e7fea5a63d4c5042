"""Which figures a deferral policy can have: those that no calibration can have made are refused by name."""

import math
import re
from typing import Protocol

from hesitant.detection import SCORES

__all__ = ["check_guard", "check_score", "check_share", "require_possible"]

_LEAST_SHARE = 1e-12  # a risk that it takes 3e12 inputs to promise
_MOST_INPUTS = 2**53
_MAY_BE_NEGATIVE = ("energy", "ood_score")  # a detector's score is what it is


class Figures(Protocol):
    """The figures of a `DeferralPolicy`, which says what they mean."""

    @property
    def threshold(self) -> float: ...
    @property
    def score(self) -> str: ...
    @property
    def max_risk(self) -> float | None: ...
    @property
    def delta(self) -> float | None: ...
    @property
    def budget(self) -> float | None: ...
    @property
    def num_calibration(self) -> int: ...
    @property
    def num_accepted(self) -> int: ...
    @property
    def num_errors(self) -> int | None: ...
    @property
    def guard(self) -> float: ...
    @property
    def guard_score(self) -> str: ...
    @property
    def guard_threshold(self) -> float: ...
    @property
    def calibration(self) -> str | None: ...


def require_possible(policy: Figures) -> None:
    """Checks every attribute, and that they can be those of one policy.

    Raises:
        TypeError: an attribute has the wrong type.
        ValueError: an attribute is out of range, or they contradict each other.
    """
    for name, value in (("max_risk", policy.max_risk), ("delta", policy.delta), ("budget", policy.budget)):
        if value is not None:
            check_share(name, value)
    check_guard(policy.guard, policy.budget)
    check_score("score", policy.score)
    check_score("guard_score", policy.guard_score)
    for name, threshold in (("threshold", policy.threshold), ("guard_threshold", policy.guard_threshold)):
        _check_real(name, threshold)
        if not threshold > -math.inf:
            raise ValueError(f"{name} is {threshold}, expected a number, or inf: calibrate the policy")
    if policy.guard == 0 and math.isfinite(policy.guard_threshold):
        raise ValueError(
            f"guard is 0 and guard_threshold {policy.guard_threshold}, expected inf: calibrate the policy with a guard"
        )
    if (policy.max_risk is None) != (policy.delta is None) or (policy.max_risk is None) == (policy.budget is None):
        raise ValueError(
            f"max_risk is {policy.max_risk}, delta {policy.delta}, budget {policy.budget}, expected max_risk and "
            "delta, or budget alone: calibrate the policy for the one or the other"
        )
    if policy.calibration is not None:
        _check_digest(policy.calibration)
    _check_counts(policy)
    _check_promise(policy)


def check_share(name: str, value: float) -> None:
    """Checks a risk, a probability or a budget.

    Raises:
        TypeError: it is no number.
        ValueError: it is not within (0, 1), or next to 0.
    """
    _check_real(name, value)
    if not _LEAST_SHARE <= value < 1:
        raise ValueError(f"{name} is {value}, expected a number from {_LEAST_SHARE:g} to below 1: 0.01 is one in 100")


def check_guard(guard: float, budget: float | None) -> None:
    """Checks the share that a guard hands over.

    Raises:
        TypeError: it is no number.
        ValueError: it is not in [0, 1), or not below the budget.
    """
    _check_real("guard", guard)
    if not 0 <= guard < 1:
        raise ValueError(f"guard is {guard}, expected a share of at least 0 and below 1: 0.05 is one in twenty")
    if budget is not None and guard >= budget:
        raise ValueError(
            f"guard is {guard} and budget {budget}, expected less: the guard hands over a part of the budget"
        )


def _check_real(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected a number: pass a float")
    if isinstance(value, int) and abs(value) > _MOST_INPUTS:
        raise ValueError(f"{name} is an integer of {len(str(abs(value)))} digits, expected a number: pass a float")


def _check_digest(value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"calibration is {value!r}, expected 16 hex digits or None: calibrate the policy")
    if re.fullmatch("[0-9a-f]{16}", value) is None:
        raise ValueError(f"calibration is {value!r}, expected 16 hex digits or None: calibrate the policy")


def check_score(name: str, score: str) -> None:
    """Checks the name of a score, the argument `name`.

    Raises:
        ValueError: there is no such score.
    """
    if score not in SCORES:
        raise ValueError(f"{name} is {score!r}, expected one of {', '.join(map(repr, SCORES))}")


def _check_counts(policy: Figures) -> None:
    errors = 0 if policy.num_errors is None else policy.num_errors
    for name, count in (
        ("num_calibration", policy.num_calibration),
        ("num_accepted", policy.num_accepted),
        ("num_errors", errors),
    ):
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"{name} is {count!r}, expected an integer: calibrate the policy")
    if not (0 <= errors <= policy.num_accepted <= policy.num_calibration <= _MOST_INPUTS and policy.num_accepted > 0):
        raise ValueError(
            f"num_errors is {policy.num_errors}, num_accepted {policy.num_accepted}, num_calibration "
            f"{policy.num_calibration}, expected 0 <= errors <= accepted <= calibration, and one accepted: calibrate "
            "the policy"
        )
    everything = math.isinf(policy.threshold) and math.isinf(policy.guard_threshold)
    if everything and policy.num_accepted < policy.num_calibration:
        raise ValueError(
            f"threshold is inf and num_accepted {policy.num_accepted}, expected all {policy.num_calibration}: "
            "calibrate the policy"
        )
    if policy.threshold <= 0 and policy.score not in _MAY_BE_NEGATIVE:
        raise ValueError(
            f"threshold is {policy.threshold} and num_accepted {policy.num_accepted}, expected more than 0, which no "
            f"{policy.score} score is below: calibrate the policy"
        )


def _check_promise(policy: Figures) -> None:
    """That the counts can bear it: what is necessary, without the binomial tails, which need SciPy."""
    if policy.budget is not None and policy.guard == 0:  # a guard hands over all that ties
        kept = policy.num_calibration + 1 - policy.budget * (policy.num_calibration + 1)
        if policy.num_accepted < kept * (1 - 1e-9):
            raise ValueError(
                f"budget is {policy.budget}, num_accepted {policy.num_accepted} of {policy.num_calibration}, expected "
                f"{math.ceil(kept * (1 - 1e-9))} or more: calibrate the policy"
            )
    if policy.max_risk is None or policy.delta is None:
        return
    if policy.num_errors is None:
        raise ValueError("num_errors is None, expected a number with max_risk: calibrate the policy")
    # With an error rate of max_risk, no error at all is already more likely than delta.
    too_few = policy.num_accepted * math.log1p(-policy.max_risk) > math.log(policy.delta) * (1 - 1e-9)
    # The median of a binomial variable is at most its mean, rounded up: so many errors are likelier than a half.
    too_many = policy.delta < 0.5 and policy.num_errors >= policy.max_risk * policy.num_accepted
    if too_few or too_many:
        raise ValueError(
            f"max_risk is {policy.max_risk}, delta {policy.delta}, and num_errors {policy.num_errors} of num_accepted "
            f"{policy.num_accepted}, which cannot promise it: calibrate the policy"
        )
