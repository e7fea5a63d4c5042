"""How far a figure would move on other inputs of the same kind: `.958 ± .004` in place of `.958`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hesitant.detection import Score
from hesitant.evaluation.metrics.arguments import as_scores
from hesitant.evaluation.metrics.calibration_error import (
    adaptive_ece,
    confidences_and_hits,
    ece,
    error_in_equal_masses,
    error_in_equal_widths,
)
from hesitant.evaluation.metrics.classification import accuracy, brier, hits, log_losses, mean, nll, squared_errors
from hesitant.evaluation.metrics.detection import (
    aupr,
    aupr_of_ranks,
    auroc,
    auroc_of_ranks,
    fpr95,
    fpr95_of_ranks,
    ranks_of,
)
from hesitant.evaluation.metrics.selective import area, aurc, by_rank, e_aurc, excess_area, ranked_errors
from hesitant.evaluation.text import decimals
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Estimate", "bootstrap"]


@dataclass(frozen=True)
class Estimate:
    """A figure and how sure it is; as text `.958 ± .004`, the figure and its standard error.

    Attributes:
        value: the metric of all inputs, and not a mean over resamples.
        standard_error: the standard deviation over resamples; inf where a resample is infinite.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    standard_error: float
    low: float
    high: float

    def __str__(self) -> str:
        """`.958 ± .004`; up to 6 decimals where a standard error would else read as 0."""
        places = next((places for places in range(3, 7) if self.standard_error >= 0.5 * 10**-places), 3)
        return f"{decimals(self.value, places)} ± {decimals(self.standard_error, places)}"


def bootstrap(
    metric: Callable[..., float],
    *args: "Prediction | Tensor | ArrayLike",
    num_resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Estimate:
    """`metric(*args)` with its standard error and percentile interval over resamples (Efron 1979, 1981).

    `bootstrap(accuracy, prediction)` draws `B` inputs with replacement, each with its target, and takes the metric of
    them, `num_resamples` times; targets that come as an argument of their own go with their inputs.
    `bootstrap(auroc, in_domain_scores, ood_scores)` draws from each argument by itself, as many as it has. The interval
    runs between the `(1 - level) / 2` and the `(1 + level) / 2` quantiles, rounded outwards to resamples. It speaks of
    other inputs, not of other training runs.

    A calibration error is biased upwards, the more the fewer the inputs, and a resample has fewer distinct ones: its
    interval may lie above the value itself.

    Where our own metrics resample, a number or two of each input stand for its row: 1,000 resamples cost seconds. Give
    options by `functools.partial(aurc, score="energy")`; a lambda works too, more slowly.

    Args:
        metric: answers a number for `args`. None of ours is undefined on a resample of where it is defined.
        args: Predictions, or one Prediction and its `(B,)` targets, or `(N,)` scores; at least one, of at least one
            input each.
        num_resamples: at least 2.
        level: of the interval, in (0, 1).
        generator: draws the resamples; None is a new one of seed 0, so that the same call has the same answer.

    Raises:
        TypeError: the scores are not numbers, or the targets not integers.
        ValueError: an option is out of range, there is nothing to resample, or `metric` answers NaN on a resample, for
            drawing again would hide that it is undefined there. What `metric` raises passes.
    """
    if not args:
        raise ValueError("args is empty, expected at least one Prediction or vector of scores: give what metric takes")
    if num_resamples < 2:
        raise ValueError(f"num_resamples is {num_resamples}, expected at least 2: 1000 is usual")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected to be in (0, 1): 0.95 is usual")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    sample = _sample(metric, args)
    values = torch.empty(num_resamples, dtype=torch.float64)
    for i in range(num_resamples):
        values[i] = sample.value(*(_drawn(inputs, generator) for inputs in sample.inputs))
    if bool(values.isnan().any()):
        raise ValueError(
            f"metric is nan on resample {int(values.isnan().nonzero()[0])} of {num_resamples}, expected a number: give "
            "one that is defined wherever an input is missing"
        )
    tail = (1 - level) / 2
    return Estimate(
        value=float(metric(*args)),
        standard_error=values.std().item() if bool(values.isfinite().all()) else float("inf"),
        low=values.quantile(tail, interpolation="lower").item(),
        high=values.quantile(1 - tail, interpolation="higher").item(),
    )


class _Sample(NamedTuple):
    """What is resampled, over its inputs, and the metric of it."""

    inputs: tuple[Prediction | Tensor, ...]  # a tensor's inputs are its last dimension
    value: Callable[..., float]


def _sample(metric: Callable[..., float], args: "tuple[Prediction | Tensor | ArrayLike, ...]") -> _Sample:
    if len(args) == 2 and isinstance(args[0], Prediction) and not isinstance(args[1], Prediction):
        args = (args[0].with_targets(args[1]),)  # drawn by themselves they would be the targets of others
    inputs = tuple(
        arg if isinstance(arg, Prediction) else as_scores(f"args[{position}]", arg) for position, arg in enumerate(args)
    )
    for position, arg in enumerate(inputs):
        if len(arg) == 0:
            raise ValueError(f"args[{position}] has 0 inputs, expected at least 1: there is nothing to resample")
    bound = metric if isinstance(metric, partial) and not metric.args else partial(metric)
    reduced = _REDUCED.get(bound.func)
    return _Sample(inputs, metric) if reduced is None else reduced(*inputs, **bound.keywords)


def _drawn(inputs: Prediction | Tensor, generator: torch.Generator) -> Prediction | Tensor:
    length = len(inputs) if isinstance(inputs, Prediction) else inputs.shape[-1]
    rows = torch.randint(length, (length,), generator=generator, device=generator.device)
    if isinstance(inputs, Prediction):
        return inputs[rows]
    return inputs.index_select(-1, rows.to(inputs.device))


def _mean_of(read: Callable[[Prediction, None], Tensor]) -> Callable[..., _Sample]:
    return lambda prediction: _Sample((read(prediction, None),), mean)


def _binned(error: Callable[[Tensor, int], float]) -> Callable[..., _Sample]:
    return lambda prediction, num_bins=15: _Sample(
        (confidences_and_hits(prediction, None),), lambda drawn: error(drawn, num_bins)
    )


def _ranked(summary: Callable[[Tensor, Tensor], float]) -> Callable[..., _Sample]:
    def reduced(prediction: Prediction, score: Score = "confidence") -> _Sample:
        _, ranks, wrong = ranked_errors(prediction, None, score)
        return _Sample((torch.stack([ranks, wrong]),), lambda drawn: summary(*by_rank(drawn)))

    return reduced


def _detecting(of_ranks: Callable[[Tensor, Tensor], float]) -> Callable[..., _Sample]:
    return lambda in_domain_scores, ood_scores: _Sample(ranks_of(in_domain_scores, ood_scores), of_ranks)


# Each reads its arguments once; what it needs of an input is a number or two, drawn in place of rows of probabilities.
_REDUCED: dict[Callable[..., float], Callable[..., _Sample]] = {
    accuracy: _mean_of(hits),
    nll: _mean_of(log_losses),
    brier: _mean_of(squared_errors),
    ece: _binned(error_in_equal_widths),
    adaptive_ece: _binned(error_in_equal_masses),
    aurc: _ranked(area),
    e_aurc: _ranked(excess_area),
    auroc: _detecting(auroc_of_ranks),
    aupr: _detecting(aupr_of_ranks),
    fpr95: _detecting(fpr95_of_ranks),
}
