"""How often and how surely the labels are right: accuracy, negative log-likelihood and Brier score."""

from typing import TYPE_CHECKING

from torch import Tensor

from hesitant.evaluation.metrics.arguments import known_targets
from hesitant.evaluation.metrics.exact_sums import ExactSums
from hesitant.prediction import Prediction, in_parts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["accuracy", "brier", "nll"]


def accuracy(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None) -> float:
    """The share of inputs whose label is the target, in [0, 1]; a tie between classes goes to the first of them.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, or the targets do not fit.
    """
    return mean(hits(prediction, targets))


def nll(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None) -> float:
    """Negative log-likelihood `-mean_i log p_i[target_i]`, in nats, in [0, inf].

    Taken from `prediction.log_probs`, so a confidence that rounds to 1 still costs what it should. A target of
    probability 0 makes it infinite: nothing is hidden by clipping.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, or the targets do not fit.
    """
    return exact_mean(log_losses(prediction, targets))


def brier(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None) -> float:
    """Brier score `mean_i sum_c (p_i[c] - 1[c = target_i])^2`, in [0, 2].

    Brier's own sum over all classes (1950); the binary form that looks at one class alone is half of it.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, or the targets do not fit.
    """
    return exact_mean(squared_errors(prediction, targets))


def hits(prediction: Prediction, targets: "Tensor | ArrayLike | None") -> Tensor:
    """`(B,)` float64 on the CPU: 1 where the label is the target, 0 elsewhere."""
    return (prediction.labels == known_targets(prediction, targets)).cpu().double()


def log_losses(prediction: Prediction, targets: "Tensor | ArrayLike | None") -> Tensor:
    """`(B,)` float64 on the CPU: `-log p[target]` of each input."""
    known = known_targets(prediction, targets).unsqueeze(-1)
    return prediction.log_probs.gather(-1, known).squeeze(-1).cpu().double().abs()  # abs: no negative zero


def squared_errors(prediction: Prediction, targets: "Tensor | ArrayLike | None") -> Tensor:
    """`(B,)` float64 on the CPU: `sum_c (p[c] - 1[c = target])^2` of each input."""
    return in_parts(prediction.with_targets(known_targets(prediction, targets)), _squared_errors).cpu()


def exact_mean(values: Tensor) -> float:
    """The mean of `(B,)` numbers, rounded once: the same in any order, in any batches and on any number of threads."""
    return ExactSums().add(values).mean(len(values))


def mean(values: Tensor) -> float:
    """The mean of `(B,)` numbers, to rounding: of resamples."""
    return values.mean().item()


def _squared_errors(prediction: Prediction) -> Tensor:
    errors = prediction.probs.double()
    hit = known_targets(prediction, None).unsqueeze(-1)  # (b, 1)
    return errors.scatter(-1, hit, errors.gather(-1, hit) - 1).square().sum(dim=-1)
