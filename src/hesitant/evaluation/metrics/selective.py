"""Selective prediction: the error rate among the inputs that are answered, and the area under it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesitant.detection import Score, uncertainty
from hesitant.evaluation.metrics.classification import hits
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["RiskCoverage", "aurc", "e_aurc", "risk_coverage"]


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Risk against coverage, for each threshold that makes a difference; the tensors are float64 on the CPU.

    Entry `k` accepts the inputs whose uncertainty is at most `threshold[k]`; inputs of equal uncertainty are accepted
    together, so there is one entry for each of the `K` distinct ones.

    Attributes:
        coverage: `(K,)` in (0, 1], increasing: the share of inputs that are accepted; the last is 1.
        risk: `(K,)` in [0, 1]: the error rate among them.
        threshold: `(K,)` increasing, the uncertainties themselves.
        aurc: as `aurc` answers.
        e_aurc: as `e_aurc` answers.
        num_inputs: `B`.
    """

    coverage: Tensor
    risk: Tensor
    threshold: Tensor
    aurc: float
    e_aurc: float
    num_inputs: int


def risk_coverage(
    prediction: Prediction, targets: "Tensor | ArrayLike | None" = None, score: Score = "confidence"
) -> RiskCoverage:
    """The error rate among the inputs accepted, the least uncertain first (Geifman and El-Yaniv 2017).

    `coverage(t) = mean_i 1[u_i <= t]`, `risk(t) = sum_i 1[u_i <= t, label_i != target_i] / sum_i 1[u_i <= t]`;
    https://arxiv.org/abs/1705.08500.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        score: what to rank by, as in `uncertainty`.

    Raises:
        TypeError: `targets` are not integers.
        UnavailableError: `prediction` has no such score.
        ValueError: there are no inputs or no targets, the targets do not fit, or `score` is unknown.
    """
    threshold, ranks, wrong = ranked_errors(prediction, targets, score)
    accepted, errors = by_rank(torch.stack([ranks, wrong]))
    coverage = accepted.cumsum(0)
    return RiskCoverage(
        coverage=coverage / len(ranks),
        risk=errors.cumsum(0) / coverage,
        threshold=threshold,
        aurc=area(accepted, errors),
        e_aurc=excess_area(accepted, errors),
        num_inputs=len(ranks),
    )


def aurc(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None, score: Score = "confidence") -> float:
    """The area under the risk-coverage curve, `1/B sum_n risk(n accepted)`, in [0, 1]; lower is better.

    Geifman et al. 2019, https://arxiv.org/abs/1805.08206. It mixes accuracy with ranking: a constant score
    has the error rate. Inputs of equal score are accepted in random order, and the area is the expectation over these
    orders, `risk(n) = (E + (n - m) e / t) / n` for the `m` inputs with `E` errors before and the `t` tied with `e`
    errors: it depends on no order of the data, and coarser scores are neither helped nor punished by it.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        score: what to rank by, as in `uncertainty`.

    Raises:
        TypeError: `targets` are not integers.
        UnavailableError: `prediction` has no such score.
        ValueError: there are no inputs or no targets, the targets do not fit, or `score` is unknown.
    """
    return risk_coverage(prediction, targets, score).aurc


def e_aurc(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None, score: Score = "confidence") -> float:
    """What `aurc` loses to the best score for the same labels, in [0, 1]: 0 where no error comes before a right answer.

    `aurc - best`, `best = 1/B sum_{j=1..E} j / (B - E + j)` for `E` errors, which the best score accepts last. Geifman
    et al. 2019, https://arxiv.org/abs/1805.08206, who approximate the sum by `r + (1 - r) log(1 - r)` with
    `r = E / B`; ours is exact. Ties as in `aurc`.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        score: what to rank by, as in `uncertainty`.

    Raises:
        TypeError: `targets` are not integers.
        UnavailableError: `prediction` has no such score.
        ValueError: there are no inputs or no targets, the targets do not fit, or `score` is unknown.
    """
    return risk_coverage(prediction, targets, score).e_aurc


def ranked_errors(
    prediction: Prediction, targets: "Tensor | ArrayLike | None", score: Score
) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct uncertainties `(K,)`, and of each input its place among them and whether it is wrong, `(B,)`."""
    wrong = 1 - hits(prediction, targets)
    threshold, ranks = torch.unique(uncertainty(prediction, score).cpu(), return_inverse=True)
    return threshold, ranks.double(), wrong


def by_rank(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """Number of inputs and of errors for each rank of `(2, B)` ranks and errors, the least first."""
    ranks = ranked[0].long()
    return torch.bincount(ranks).double(), torch.bincount(ranks, weights=ranked[1])


def area(numbers: Tensor, errors: Tensor) -> float:
    """`aurc` of `(K,)` inputs and errors of each rank."""
    # A rank without inputs, which a resample may have, is 0 / 0 and repeated 0 times.
    expected = torch.repeat_interleave(errors / numbers, numbers.long()).cumsum(0)  # errors among the first n inputs
    return (expected / torch.arange(1, len(expected) + 1, dtype=torch.float64)).mean().clamp(0, 1).item()


def excess_area(numbers: Tensor, errors: Tensor) -> float:
    """`e_aurc` of `(K,)` inputs and errors of each rank."""
    total = int(numbers.sum())
    last = torch.arange(1, int(errors.sum()) + 1, dtype=torch.float64)
    best = (last / (total - len(last) + last)).sum().item() / total
    return max(area(numbers, errors) - best, 0.0)
