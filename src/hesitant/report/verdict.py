"""The verdict in words: which method to use, what it promises, and what speaks against the others."""

from dataclasses import dataclass

from hesitant.evaluation import isolated
from hesitant.evaluation.comparison import Comparison, Outcome, Recommendation

__all__ = ["KeyFigure", "Verdict", "limit", "listed", "percent", "verdict"]

_SMALL = 0.01  # a difference in coverage that the words pass over
_FIRST = {
    "nll": "has the lowest NLL",
    "parameters": "has the fewest parameters, at the same NLL",
    "order": "stands first, at the same NLL",
}
_NOTICED = 0.5  # the share of an out-of-domain set below which the verdict warns


@dataclass(frozen=True)
class KeyFigure:
    """A number that the verdict rests on: `93.1 %`, what it is a share of, and what it was counted on."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The verdict in words.

    Attributes:
        headline: one sentence: what to use, or that nothing can be promised.
        promise: what can be relied on.
        key_figures: the numbers behind it; none where nothing can be promised.
        reasons: why this method and not the others.
    """

    headline: str
    promise: str
    key_figures: tuple[KeyFigure, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """The headline and the promise."""
        return f"{self.headline} {self.promise}"


def verdict(comparison: Comparison, recommendation: Recommendation) -> Verdict:
    """The words for a recommendation."""
    name, outcome = isolated(recommendation.method), recommendation.outcomes[recommendation.method]
    alone = len(comparison.predictions) == 1
    most = limit(recommendation.max_risk)
    sure = limit(1 - recommendation.delta)
    if not recommendation.promised:
        subject = f"{name} cannot" if alone else "No method can"
        return Verdict(
            headline=f"{subject} promise an error rate of {most} or less.",
            promise=f"With {recommendation.num_calibration:,} inputs to choose a threshold on, and {sure} confidence, "
            + ("this is what the search says: " if alone else f"this is what the search says of {name}: ")
            + _sentence(outcome.refusal)
            + _shares(recommendation),
            key_figures=(),
            reasons=() if alone else (_fewest_errors(comparison, recommendation),),
        )
    does = f"answers {percent(outcome.coverage)} of inputs by itself"
    if outcome.handed_over:
        shares = [f"{percent(share)} of {isolated(of)}" for of, share in outcome.handed_over.items()]
        does += f" and hands over {listed(shares)}"
    headline = f"{name} {does}." if alone else f"Use {name}: it {does}."
    promise = (
        f"With {sure} confidence at most {most} of its answers are wrong, as long as inputs come from where the test "
        f"data came from."
        + (f" The other {percent(1 - outcome.coverage)} go to a person." if outcome.coverage < 1 else "")
    )
    return Verdict(
        headline=headline,
        promise=promise,
        key_figures=_key_figures(outcome, recommendation),
        reasons=() if alone else _reasons(comparison, recommendation),
    )


def percent(share: float) -> str:
    """A share that was counted, as `93.1 %`; what is not 0 or 1 never reads as 0 % or 100 %."""
    text = f"{100 * share:.1f}"
    if text == "0.0" and share > 0:
        return f"{100 * share:.1g} %" if share >= 1e-4 else "under 0.01 %"
    if text == "100.0" and share < 1:
        return "over 99.9 %"
    return f"{text.removesuffix('.0') if share in (0, 1) else text} %"


def limit(share: float) -> str:
    """A share that was asked for, as it was: `1 %`, `0.25 %`."""
    return f"{100 * share:.6g} %"


def listed(names: "tuple[str, ...] | list[str]") -> str:
    """Names as `A, B and C`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _key_figures(outcome: Outcome, recommendation: Recommendation) -> tuple[KeyFigure, ...]:
    figures = [
        KeyFigure(
            percent(outcome.coverage),
            "answered by itself",
            f"{outcome.num_answered:,} of {outcome.num_checked:,} inputs that had no part in choosing the threshold",
        )
    ]
    if outcome.risk is not None:
        figures.append(
            KeyFigure(
                percent(outcome.risk),
                "of these answers wrong",
                f"{outcome.num_wrong:,} of {outcome.num_answered:,}; at most {limit(recommendation.max_risk)} promised",
            )
        )
    for name, share in (outcome.handed_over or {}).items():
        figures.append(
            KeyFigure(percent(share), f"of {isolated(name)} handed over", "inputs that no class of the model fits")
        )
    return tuple(figures)


def _reasons(comparison: Comparison, recommendation: Recommendation) -> tuple[str, ...]:
    name, equals = isolated(recommendation.method), [isolated(other) for other in recommendation.equals]
    outcome = recommendation.outcomes[recommendation.method]
    reasons = []
    for other, share in (outcome.handed_over or {}).items():
        if share < _NOTICED:
            reasons.append(
                f"No method here is to be relied on to notice inputs like {isolated(other)}: {name} answers "
                f"{percent(1 - share)} of them."
            )
    if recommendation.decided_by is not None:
        reasons.append(
            f"{listed(equals)} did as well, as far as these data can tell; of those that did, {name} "
            f"{_FIRST[recommendation.decided_by]}."
        )
    for other, result in recommendation.outcomes.items():
        if other == recommendation.method or other in recommendation.equals:
            continue
        if result.policy is None:
            reasons.append(f"{isolated(other)} can promise nothing: {_sentence(result.refusal)}")
            continue
        answered = f"{isolated(other)} answers {percent(result.coverage)} by itself"
        theirs, ours = result.handed_over or {}, outcome.handed_over or {}
        missed = [
            f"{f'only {percent(theirs[of])}' if theirs[of] else 'nothing'} of {isolated(of)} "
            f"({name}: {percent(ours[of])})"
            for of in theirs
            if theirs[of] < ours[of]
        ]
        if missed:
            fewer = result.coverage < outcome.coverage - _SMALL
            answered += f"{' and' if fewer else ', but'} hands over {listed(missed)}"
        reasons.append(f"{answered}.")
    return tuple(reasons)


def _fewest_errors(comparison: Comparison, recommendation: Recommendation) -> str:
    """Which method to go on with where none can promise anything."""
    name = isolated(recommendation.method)
    if recommendation.equals:
        names = [name, *map(isolated, recommendation.equals)]
        return f"By their ranking of the inputs {listed(names)} cannot be told apart."
    return f"{name} makes the fewest errors at equal coverage (lowest AURC): the one to go on with."


def _shares(recommendation: Recommendation) -> str:
    """Why the refusal speaks of another delta and of fewer inputs."""
    parts = []
    if len(recommendation.outcomes) > 1:
        parts.append(f"delta={recommendation.delta:g} is shared out among the methods")
    if recommendation.guard > 0:
        parts.append(f"the {limit(recommendation.guard)} of inputs least like the training data are set aside")
    text = ", and ".join(parts)
    return f" ({text[0].upper()}{text[1:]}.)" if parts else ""


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
