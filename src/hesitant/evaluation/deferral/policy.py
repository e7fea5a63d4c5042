"""Which inputs to answer and which to hand over to a person, with a promise of how many answers are wrong."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesitant.detection import Score, guarding_score, uncertainty
from hesitant.evaluation.deferral.fixed_sequence import FixedSequences, RankedErrors, inputs_needed, least_promise
from hesitant.evaluation.deferral.possible_policies import (
    check_guard,
    check_score,
    check_share,
    require_possible,
)
from hesitant.evaluation.metrics import known_targets
from hesitant.files import parse_json, write_text
from hesitant.methods import saved_policy
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["DeferralPolicy"]

_VERSION = 4
_LARGEST_FILE = 2**16  # bytes: save writes a few hundred
_MAX_RISK, _DELTA = 0.01, 0.05
_MAY_BE_INFINITE = ("threshold", "guard_threshold")


@dataclass(frozen=True)
class DeferralPolicy:
    """Answers the inputs whose uncertainty is below a threshold, and hands the others over.

    Made by `DeferralPolicy.calibrate`, either for a risk (`max_risk` and `delta` are set) or for a `budget`.

    **Two questions, two scores.** *Is the answer wrong?* is asked of inputs like the calibration data; there the
    confidence is the best order that there is, if it is right (Chow 1970), and `score` is that by default. *Is the
    input anything the model knows?* no confidence answers: a model may be sure of what it was never shown. A policy
    with a `guard` asks that too, by `guard_score`, and answers what passes both.

    **Which data may be used for what.** Five parts of the data, of which no two share an input: *train* sets the
    weights (and SNGP's covariance); *validation* says when to stop, and which of several models or settings to take;
    *tune* is for `hesitant.calibrate`, which fits a temperature or a mean-field factor; on *choose* the
    policy is calibrated; *test* is for what is reported. Validation and tune may be one part. Choose may be no other:
    on data that served to make the model, it is more confident and more accurate than on new ones, and the promise
    would be broken unseen. Once a policy has been looked at on test, and another one made for that reason, test is
    choose, and a new test is due. `hesitant.data.split` makes disjoint parts, stratified by class, from a seed.

    Example:
        >>> import torch
        >>> from hesitant import DeferralPolicy, Prediction
        >>> confidence = torch.linspace(0.5, 1, 2000)
        >>> probs = torch.stack([1 - confidence, confidence], dim=1)
        >>> targets = (torch.arange(2000) >= 400).long()  # wrong where it is least sure
        >>> prediction = Prediction(probs, targets=targets)
        >>> policy = DeferralPolicy.calibrate(prediction, max_risk=0.05)
        >>> policy.accept(Prediction([[0.45, 0.55], [0.01, 0.99]]))
        tensor([False,  True])

    Attributes:
        threshold: an input is answered if `uncertainty(prediction, score)` is below it; infinite: all are answered.
        score: one of `SCORES`.
        num_calibration: the inputs that the threshold was found on.
        num_accepted: those among them that are answered.
        num_errors: those among the answered that were wrong; None where the targets were not known.
        max_risk: the error rate among answered inputs that is promised, in (0, 1); None for a budget.
        delta: the probability of calibration data that break the promise, in (0, 1); None for a budget.
        budget: the share of inputs to hand over, in (0, 1); None for a risk.
        guard: the share of inputs that are handed over as least like the training data, in [0, 1); 0 guards nothing.
        guard_score: one of `SCORES`, by which they are the least alike.
        guard_threshold: an input is answered only if its `guard_score` is below it, too; infinite: all are.
        calibration: of the method that made the calibration predictions, and of its temperature, mean-field factor and
            posterior, a digest of 16 hex digits: predictions of another one are refused. None for predictions that were
            made by hand.

    Raises:
        TypeError: an attribute has the wrong type.
        ValueError: an attribute is out of range, or they contradict each other: no calibration can have made them.
    """

    threshold: float
    score: Score
    num_calibration: int
    num_accepted: int
    num_errors: int | None = None
    max_risk: float | None = None
    delta: float | None = None
    budget: float | None = None
    guard: float = 0.0
    guard_score: Score = "ood_score"
    guard_threshold: float = math.inf
    calibration: str | None = None

    def __post_init__(self) -> None:
        require_possible(self)

    @classmethod
    def calibrate(
        cls,
        prediction: Prediction,
        *,
        targets: "Tensor | ArrayLike | None" = None,
        max_risk: float = _MAX_RISK,
        delta: float = _DELTA,
        score: Score = "confidence",
        budget: float | None = None,
        guard: float = 0.0,
        guard_score: Score | None = None,
    ) -> "DeferralPolicy":
        """The policy that answers the most inputs for a promised risk, or hands over a given share of them.

        **For a risk.** With probability `1 - delta` over the calibration data, `P(wrong | answered) <= max_risk` for
        new inputs: the error rate in the population, about which that of a finite sample scatters. Thresholds are
        tested in a fixed sequence by exact binomial tails. Nothing is assumed about the model, nor that its
        uncertainties mean anything: bad ones cost coverage, not the promise. The module
        `hesitant.evaluation.deferral.fixed_sequence` states the argument and its sources.

        **For a budget.** Hands over the most uncertain part: of new inputs at most `budget`, on average over
        calibration data. For one policy the share scatters: where scores do not tie it is a `Beta(B + 1 - k, k)`
        variable with `k = ceil((1 - budget) (B + 1))`; for a tenth of 1,000 inputs, 8 to 12 % in 19 cases of 20. Tied
        inputs are kept together, on the side that hands over less. No risk is promised, and no targets are needed.

        **With a guard.** First the share `guard` of the calibration data with the largest `guard_score` is set aside,
        whether right or wrong, and likewise of new inputs on average; the rest of a budget, or the promise, is of the
        others. The threshold is an order statistic `t`, taken without the targets; given `t`, the inputs below it are
        independent draws of those that the policy may answer, so the promise is as exact as without. It is the price
        of handing over the unknown: a model that makes few errors may promise the risk for all of its own data, and
        would then answer anything. Nothing is promised about how much of the unknown is handed over.

        **What breaks either promise.** Calibration data and new inputs must be independent draws of one kind. Inputs
        from elsewhere (another camera, another year, out-of-domain ones), frames of one video, or data from which the
        hard cases were taken out, are not. Nor may the calibration data have served for anything else: a model that was
        trained, stopped early or tempered on them is more confident and more accurate on them than on others
        (`DeferralPolicy` says which data may be used for what). Nor may one policy be chosen of several made on the
        same data: each may fail with probability `delta`, and the best-looking does so more often. Give each of ten
        `delta / 10`, and all hold together.

        Args:
            prediction: of `B >= 1` inputs that the model has not seen.
            targets: `(B,)` integers in [0, C); by default those of `prediction`.
            max_risk: in (0, 1).
            delta: in (0, 1).
            score: what to rank by, as in `uncertainty`.
            budget: in (0, 1); hands over this share, without `max_risk` and `delta`.
            guard: in [0, 1), below `budget`; .05 is one in twenty of one's own inputs. None where it is less than one
                of the calibration data.
            guard_score: what the guard ranks by, as in `uncertainty`. None is `"ood_score"`, but of two classes, where
                that ranks as the confidence does, `"logit_variance"` if the method has one (SNGP).

        Raises:
            TypeError: `targets` are not integers, or a number is none.
            UnavailableError: `prediction` has no such score.
            ValueError: nothing can be promised (says what could be, and about how many inputs it would take); a number
                is out of range; there are no inputs or targets, or they do not fit.
            ImportError: SciPy is not installed.
        """
        check_score("score", score)
        guard_score = guarding_score(prediction) if guard_score is None else guard_score
        check_score("guard_score", guard_score)
        for name, value in (("max_risk", max_risk), ("delta", delta), ("budget", budget)):
            if value is not None:
                check_share(name, value)
        check_guard(guard, budget)
        if guard > 0:
            return cls._guarded(prediction, targets, max_risk, delta, score, budget, guard, guard_score)
        if budget is None:
            return cls._for_risk(prediction, known_targets(prediction, targets), score, max_risk, delta)
        if (max_risk, delta) != (_MAX_RISK, _DELTA):
            raise ValueError(
                f"budget is {budget} and max_risk {max_risk}, delta {delta}: a budget promises no risk. Leave out "
                "max_risk and delta, or budget"
            )
        known = prediction.targets is not None or targets is not None
        return cls._for_budget(prediction, known_targets(prediction, targets) if known else None, score, budget)

    @classmethod
    def _guarded(
        cls,
        prediction: Prediction,
        targets: "Tensor | ArrayLike | None",
        max_risk: float,
        delta: float,
        score: Score,
        budget: float | None,
        guard: float,
        guard_score: Score,
    ) -> "DeferralPolicy":
        scores = _scores(prediction, guard_score)
        set_aside = math.floor(round(guard * (len(scores) + 1), 9))  # of the inputs and a new one
        ceiling = scores.sort().values[len(scores) - set_aside].item() if set_aside > 0 else math.inf
        if not bool((scores < ceiling).any()):
            raise ValueError(
                f"guard is {guard:g}, and the {guard_score} of all {len(scores)} inputs is {ceiling:g}: it tells none"
                " of them apart, and would set all aside. Guard by another score, or not (guard=0)"
            )
        if targets is not None:
            prediction = prediction.with_targets(targets)
        policy = cls.calibrate(
            prediction[(scores < ceiling).to(prediction.probs.device)],
            max_risk=max_risk,
            delta=delta,
            score=score,
            budget=None if budget is None else (budget - guard) / (1 - guard),
        )
        return replace(
            policy,
            num_calibration=len(scores),
            budget=budget,
            guard=guard,
            guard_score=guard_score,
            guard_threshold=ceiling,
        )

    @classmethod
    def _for_risk(
        cls, prediction: Prediction, targets: Tensor, score: Score, max_risk: float, delta: float
    ) -> "DeferralPolicy":
        scores, order = _scores(prediction, score).sort()
        wrong = (prediction.labels != targets).cpu()[order]
        errors = torch.cat([torch.zeros(1, dtype=torch.int64), wrong.cumsum(0)])  # (B + 1,)
        ranked = RankedErrors(scores.numpy(), errors.numpy())
        accepted = FixedSequences.plan(len(ranked), max_risk, delta).largest_accepted(ranked)
        if accepted == 0:
            raise ValueError(_refusal(ranked, max_risk, delta))
        return cls(
            threshold=float(scores[accepted]) if accepted < len(scores) else math.inf,
            score=score,
            num_calibration=len(scores),
            num_accepted=accepted,
            num_errors=int(errors[accepted]),
            max_risk=max_risk,
            delta=delta,
            calibration=prediction.calibration,
        )

    @classmethod
    def _for_budget(
        cls, prediction: Prediction, targets: Tensor | None, score: Score, budget: float
    ) -> "DeferralPolicy":
        handed_over = math.floor(round(budget * (len(prediction) + 1), 9))  # of the inputs and a new one
        if handed_over == 0:
            raise ValueError(
                f"prediction has {len(prediction)} inputs, expected at least {math.ceil(round(1 / budget, 9)) - 1}: a "
                f"budget of {budget:g} hands over less than one of so few. Calibrate on more, or raise the budget"
            )
        scores = _scores(prediction, score)
        kept = max(len(scores) + 1 - handed_over, 1)
        largest = scores.sort().values[kept - 1].item()
        accepted = scores <= largest
        return cls(
            threshold=math.nextafter(largest, math.inf),
            score=score,
            num_calibration=len(scores),
            num_accepted=int(accepted.sum()),
            num_errors=None if targets is None else int((accepted & (prediction.labels != targets).cpu()).sum()),
            budget=budget,
            calibration=prediction.calibration,
        )

    @property
    def coverage(self) -> float:
        """The share of the calibration inputs that are answered, in [0, 1]."""
        return self.num_accepted / self.num_calibration

    @property
    def risk_bound(self) -> float | None:
        """`max_risk`, which the error rate among answered inputs is promised not to exceed; None for a budget."""
        return self.max_risk

    @property
    def risk(self) -> float | None:
        """The error rate among the answered calibration inputs, in [0, 1]; None without targets or without answers.

        What was seen, not what is promised: the threshold was chosen on these inputs.
        """
        return None if self.num_errors is None or self.num_accepted == 0 else self.num_errors / self.num_accepted

    def accept(self, prediction: Prediction) -> Tensor:
        """Which inputs to answer: `(B,)` booleans on the device of `prediction`; the others go to a person.

        The same on every device: the scores are compared on the CPU, in float64.

        Args:
            prediction: of `B >= 0` inputs, made as the calibration data's was.

        Raises:
            UnavailableError: `prediction` does not have a score of this policy.
            ValueError: it was made by another method, or after another calibration, than the calibration data's.
        """
        _require_same_calibration(self.calibration, prediction.calibration)
        accepted = _scores(prediction, self.score) < self.threshold
        if self.guard > 0:
            accepted &= _scores(prediction, self.guard_score) < self.guard_threshold
        return accepted.to(prediction.probs.device)

    def save(self, path: str | Path) -> None:
        """Writes the policy to a JSON file, whole or not at all; `load` answers it with the same bits.

        Args:
            path: of the file; one that is there is replaced.

        Raises:
            OSError: it cannot be written.
        """
        write_text(path, json.dumps(self.saved_content(), indent=2, allow_nan=False) + "\n")

    def saved_content(self) -> dict[str, Any]:
        """What `save` writes, for who saves it among other things: as JSON, by which `load` knows it again."""
        content: dict[str, Any] = {"format": "hesitant.DeferralPolicy", "version": _VERSION, **asdict(self)}
        for name in _MAY_BE_INFINITE:
            if math.isinf(content[name]):
                content[name] = "inf"  # JSON has no such number
        return content

    @classmethod
    def load(cls, path: str | Path) -> "DeferralPolicy":
        """The policy that `save` wrote to `path`, or that a model was saved with in the folder `path`.

        Raises:
            OSError: the file is not there, or cannot be read.
            ValueError: it holds something else, or another version, or was changed to what cannot be, or the folder
                has no policy; the error names the file and what is wrong.
        """
        if Path(path).is_dir():
            content = saved_policy(path)
            if content is None:
                raise ValueError(f"{path} holds a model without a policy: save it again, with policy=...")
            return cls._of(content, path)
        with Path(path).open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise ValueError(f"{path} is too large to be a policy: pass a file that DeferralPolicy.save wrote")
        try:
            content = parse_json(text.decode("utf-8"))
        except ValueError as error:  # of JSON or of UTF-8
            raise ValueError(f"{path} is no JSON ({error}): pass a file that DeferralPolicy.save wrote") from error
        return cls._of(content, path)

    @classmethod
    def _of(cls, content: Any, path: str | Path) -> "DeferralPolicy":
        if not isinstance(content, dict) or content.pop("format", None) != "hesitant.DeferralPolicy":
            raise ValueError(f"{path} holds no DeferralPolicy: pass a file that DeferralPolicy.save wrote")
        version = content.pop("version", None)
        if type(version) is not int or version != _VERSION:
            raise ValueError(
                f"{path} has version {version!r}, expected {_VERSION}: load it with the hesitant that wrote it, or "
                "calibrate again"
            )
        names = {field.name for field in fields(cls)}
        if content.keys() != names:
            raise ValueError(
                f"{path} lacks {sorted(names - content.keys())} and has {sorted(content.keys() - names)} besides: "
                "calibrate and save the policy again"
            )
        for name in _MAY_BE_INFINITE:
            if content[name] == "inf":
                content[name] = math.inf
        try:
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} was changed: {error}") from error

    def __repr__(self) -> str:
        """What it promises, and what it answered of the calibration data."""
        everything = math.isinf(self.threshold)
        rule = "answers everything" if everything else f"answers {self.score} score < {self.threshold:.4g}"
        if math.isfinite(self.guard_threshold):
            rule += f"{' with' if everything else ','} {self.guard_score} < {self.guard_threshold:.4g}"
        if self.max_risk is not None and self.delta is not None:
            promise = f"risk <= {self.max_risk:.4g} with probability {1 - self.delta:.4g}"
        else:
            promise = f"hands over {self.budget:.4g}"
        seen = "" if self.risk is None else f" with error rate {self.risk:.3g}"
        return f"DeferralPolicy({rule}; {promise}; {self.coverage:.1%} of {self.num_calibration} inputs{seen})"


def _require_same_calibration(policy: str | None, prediction: str | None) -> None:
    if policy == prediction:
        return
    if policy is None:
        reason = f"a method made prediction ({prediction}), those that the policy was calibrated on were made by hand"
    elif prediction is None:
        reason = f"prediction was made by hand, those that the policy was calibrated on by a method ({policy})"
    else:
        reason = (
            f"prediction was made by another method, or with another temperature, mean-field factor or posterior "
            f"({prediction}), than those that the policy was calibrated on ({policy})"
        )
    raise ValueError(f"{reason}: predict as for the calibration data, or calibrate a policy for predictions like this")


def _scores(prediction: Prediction, score: Score) -> Tensor:
    # On the CPU: another device's last bit would decide about inputs that lie on the threshold.
    return uncertainty(prediction.to("cpu"), score)


def _refusal(ranked: RankedErrors, max_risk: float, delta: float) -> str:
    inputs, errors = len(ranked), int(ranked.errors[-1])
    without_error = math.ceil(math.log(delta) / math.log1p(-max_risk))
    could = least_promise(ranked, max_risk, delta)
    instead = (
        ". On these inputs not even a risk below 1 can be promised"
        if could is None
        else f", or ask for less: on these inputs max_risk={could:g} could be promised (decide before looking at the "
        "data it is calibrated on)"
    )
    if inputs < without_error:
        what = (
            f"it takes {without_error} inputs answered without an error, {without_error - inputs} more at least. "
            "Calibrate on more inputs"
        )
    else:
        needed = inputs_needed(ranked, max_risk, delta)
        what = (
            "even among the most confident ones errors are too frequent to hope that more inputs would do. Take a "
            "better model or another score"
            if needed is None
            else f"about {max(needed, inputs + 1)} inputs of this kind would do. Calibrate on more inputs"
        )
    return (
        f"max_risk={max_risk:g} cannot be promised at delta={delta:g} from {inputs} inputs, {errors} of them wrong: "
        f"{what}{instead}"
    )
