"""Whether a confidence of .9 is right nine times in ten: calibration errors and the diagram behind them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesitant.evaluation.metrics.arguments import known_targets
from hesitant.evaluation.metrics.classification import hits
from hesitant.evaluation.metrics.exact_sums import ExactSums
from hesitant.prediction import Prediction, parts_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Reliability", "adaptive_ece", "classwise_ece", "ece", "reliability"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """The inputs in bins by confidence, and how often each bin is right; the tensors are float64 on the CPU.

    Attributes:
        edges: `(num_bins + 1,)`, not decreasing: bin `k` holds the confidences in `[edges[k], edges[k + 1])`, the last
            its upper edge too. Of equal width from 0 to 1; adaptive, from the least confidence to the largest.
        counts: `(num_bins,)`, the inputs in each bin.
        accuracy: `(num_bins,)` in [0, 1], NaN where the bin is empty.
        confidence: `(num_bins,)` in [0, 1], the mean confidence, NaN where the bin is empty.
        ece: `sum_k counts_k / B |accuracy_k - confidence_k|`.
    """

    edges: Tensor
    counts: Tensor
    accuracy: Tensor
    confidence: Tensor
    ece: float


def ece(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None, num_bins: int = 15) -> float:
    """Expected calibration error of the confidence, `sum_b n_b / B |accuracy_b - confidence_b|`, in [0, 1].

    The bins are of equal width and contain their lower edge, the last its upper one too: `[k / num_bins,
    (k + 1) / num_bins)`, as in NumPy, netcal and uncertainty-baselines. Torchmetrics' differs only in giving a
    confidence of exactly 1 a bin of its own. With two classes too it is the confidence of the label that counts, in
    [1/2, 1], not the probability of class 1. Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        num_bins: at least 1.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, the targets do not fit, or `num_bins` is below 1.
    """
    bins = ConfidenceBins(num_bins)
    bins.add(confidences_and_hits(prediction, targets))
    return bins.ece()


def adaptive_ece(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None, num_bins: int = 15) -> float:
    """Expected calibration error of the confidence over bins of equally many inputs, in [0, 1].

    As `ece`, but bin `k` begins at the confidence of rank `floor(k B / num_bins)`, counted from 0 and from the least
    (Nguyen and O'Connor 2015, https://arxiv.org/abs/1508.05154; Nixon et al. 2019, https://arxiv.org/abs/1904.01685).
    Equal confidences are never split, as the order of the data would else decide: all go to the last bin that begins at
    their value, and bins that this leaves empty count nothing.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        num_bins: at least 1.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, the targets do not fit, or `num_bins` is below 1.
    """
    return error_in_equal_masses(confidences_and_hits(prediction, targets), num_bins)


def classwise_ece(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None, num_bins: int = 15) -> float:
    """The mean over classes of the calibration error of each probability, in [0, 1].

    `1/C sum_c sum_b n_bc / B |share of targets c in bin - mean p_c in bin|`, bins of equal width as in `ece`, each
    class with its own (Kull et al. 2019, https://arxiv.org/abs/1910.12656; the marginal calibration error of
    Kumar et al. 2019, https://arxiv.org/abs/1909.10155, with absolute differences). A class that never occurs counts
    with the probability that it was given. With many classes most terms are near 0: compare at equal `C` alone.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        num_bins: at least 1.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, the targets do not fit, or `num_bins` is below 1.
    """
    num_classes, edges = prediction.probs.shape[1], _equal_widths(num_bins)
    gaps = torch.zeros(num_classes * num_bins, dtype=torch.float64)  # n_bc (mean p - share), summed part by part
    for part in parts_of(prediction.with_targets(known_targets(prediction, targets))):
        probs, hit = part.probs.cpu().double(), known_targets(part, None).cpu().unsqueeze(-1)
        bins = _places(probs, edges) + num_bins * torch.arange(num_classes)  # (b, C)
        excess = probs.scatter(-1, hit, probs.gather(-1, hit) - 1)
        gaps += torch.bincount(bins.flatten(), weights=excess.flatten(), minlength=len(gaps))
    return min(gaps.abs().sum().item() / (len(prediction) * num_classes), 1.0)


def reliability(
    prediction: Prediction,
    targets: "Tensor | ArrayLike | None" = None,
    num_bins: int = 15,
    adaptive: bool = False,
) -> Reliability:
    """The reliability diagram: accuracy and mean confidence in bins by confidence (Guo et al. 2017, figure 1).

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        num_bins: at least 1.
        adaptive: bins of equally many inputs, as in `adaptive_ece`, in place of equal width, as in `ece`.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, the targets do not fit, or `num_bins` is below 1.
    """
    counted = confidences_and_hits(prediction, targets)
    confidence, hit = counted
    edges = _equal_masses(confidence, num_bins) if adaptive else _equal_widths(num_bins)
    counts, sum_of_confidences, sum_of_hits = _sums(confidence, hit, edges)
    if adaptive:
        error = _error(sum_of_confidences, sum_of_hits, len(hit))
    else:
        bins = ConfidenceBins(num_bins)
        bins.add(counted)
        error = bins.ece()
    return Reliability(
        edges=edges,
        counts=counts,
        accuracy=sum_of_hits / counts,
        confidence=sum_of_confidences / counts,
        ece=error,
    )


class ConfidenceBins:
    """The inputs in bins of equal width by confidence, as `ece` counts them, added batch by batch without rounding.

    Args:
        num_bins: at least 1.

    Raises:
        ValueError: `num_bins` is below 1.
    """

    def __init__(self, num_bins: int = 15) -> None:
        self._edges = _equal_widths(num_bins)
        self._confidences, self._hits = ExactSums(num_bins), [0] * num_bins
        self.num_inputs = 0

    @property
    def num_right(self) -> int:
        """How many inputs had the label that is their target."""
        return sum(self._hits)

    def add(self, confidences_and_hits: Tensor) -> None:
        """Adds inputs by their `(2, B)` confidences and hits."""
        confidence, hit = confidences_and_hits
        places = _places(confidence, self._edges)
        self._confidences.add(confidence, places)
        counted = torch.bincount(places, weights=hit, minlength=len(self._hits))
        self._hits = [before + int(more) for before, more in zip(self._hits, counted.tolist(), strict=True)]
        self.num_inputs += len(hit)

    def merge(self, other: "ConfidenceBins") -> None:
        """Adds what another has counted."""
        self._confidences.merge(other._confidences)
        self._hits = [mine + its for mine, its in zip(self._hits, other._hits, strict=True)]
        self.num_inputs += other.num_inputs

    def ece(self) -> float:
        """`ece` of all predictions that were added, of which there is one at least."""
        return min(self._confidences.mean_gap(self._hits, self.num_inputs), 1.0)


def confidences_and_hits(prediction: Prediction, targets: "Tensor | ArrayLike | None") -> Tensor:
    """`(2, B)` float64 on the CPU: the confidence of each input, and whether its label is the target."""
    hit = hits(prediction, targets)
    return torch.stack([prediction.confidence.cpu().double(), hit])


def error_in_equal_widths(confidences_and_hits: Tensor, num_bins: int = 15) -> float:
    """`ece` of `(2, B)` confidences and hits."""
    confidence, hit = confidences_and_hits
    return _error(*_sums(confidence, hit, _equal_widths(num_bins))[1:], len(hit))


def error_in_equal_masses(confidences_and_hits: Tensor, num_bins: int = 15) -> float:
    """`adaptive_ece` of `(2, B)` confidences and hits."""
    confidence, hit = confidences_and_hits
    return _error(*_sums(confidence, hit, _equal_masses(confidence, num_bins))[1:], len(hit))


def _equal_widths(num_bins: int) -> Tensor:
    return _from_zero(num_bins).double() / num_bins


def _equal_masses(confidence: Tensor, num_bins: int) -> Tensor:
    first = _from_zero(num_bins) * len(confidence) // num_bins
    return confidence.sort().values[first.clamp(max=len(confidence) - 1)]


def _from_zero(num_bins: int) -> Tensor:
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, expected at least 1: 15 is the field's usual number")
    return torch.arange(num_bins + 1)


def _places(values: Tensor, edges: Tensor) -> Tensor:
    return torch.bucketize(values, edges[1:-1], right=True)


def _sums(confidence: Tensor, hit: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number of inputs in each bin, the sum of their confidences and that of their hits."""
    places, num_bins = _places(confidence, edges), len(edges) - 1
    return (
        torch.bincount(places, minlength=num_bins).double(),
        torch.bincount(places, weights=confidence, minlength=num_bins),
        torch.bincount(places, weights=hit, minlength=num_bins),
    )


def _error(sum_of_confidences: Tensor, sum_of_hits: Tensor, num_inputs: int) -> float:
    return min((sum_of_confidences - sum_of_hits).abs().sum().item() / num_inputs, 1.0)
