"""Metrics of predictions that come in batches, on one worker or on several, and are too many to keep."""

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

from hesitant.detection import Score, uncertainty
from hesitant.evaluation.metrics.arguments import known_targets
from hesitant.evaluation.metrics.calibration_error import ConfidenceBins, confidences_and_hits
from hesitant.evaluation.metrics.classification import log_losses, squared_errors
from hesitant.evaluation.metrics.detection import auroc
from hesitant.evaluation.metrics.exact_sums import ExactSums
from hesitant.inputs import several_workers
from hesitant.nn import UniformSample
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["StreamingMetrics"]

_UNBOUNDED = 2**62


class StreamingMetrics:
    """Accuracy, NLL, Brier score, ECE, and AUROC against named out-of-domain sets, of predictions that come in batches.

    The numbers are those that :func:`accuracy`, :func:`nll`, :func:`brier`, :func:`ece` and :func:`auroc` have for all
    predictions at once, bit for bit: sums are kept without rounding, so neither the batches nor the order in which
    workers are merged has a part in them. Of an input nothing is kept but, where out-of-domain sets are asked for, its
    score: 8 bytes, of at most ``max_scores`` inputs of each set.

    Example:
        >>> import torch
        >>> from hesitant import Prediction
        >>> from hesitant.evaluation import StreamingMetrics
        >>> metrics, other = StreamingMetrics(), StreamingMetrics()
        >>> metrics.update(Prediction([[0.7, 0.3]], targets=[0]))
        >>> other.update(Prediction([[0.4, 0.6]], targets=[0]))
        >>> metrics.merge(other)
        >>> metrics.compute()["accuracy"]
        0.5

    Args:
        num_bins: Of the ECE.
        score: What tells out-of-domain inputs, as in :func:`~hesitant.detection.uncertainty`; None keeps no scores.
        max_scores: The most scores that are kept of a set. Beyond, the AUROC is that of a uniform sample; None keeps
            all.
        seed: Of that sample; let workers have seeds of their own.

    Raises:
        ValueError: ``num_bins`` or ``max_scores`` is below 1.
    """

    def __init__(
        self, *, num_bins: int = 15, score: Score | None = "ood_score", max_scores: int | None = None, seed: int = 0
    ) -> None:
        if max_scores is not None and max_scores < 1:
            raise ValueError(f"max_scores is {max_scores}, expected at least 1, or None to keep all")
        self.num_bins, self.score, self.max_scores, self.seed = num_bins, score, max_scores, seed
        self.reset()

    @property
    def num_inputs(self) -> int:
        """How many in-domain predictions were added."""
        return self._bins.num_inputs

    def reset(self) -> None:
        """Forgets all predictions."""
        self._log_losses, self._squared_errors = ExactSums(), ExactSums()
        self._bins = ConfidenceBins(self.num_bins)
        self._in_domain = self._sample()
        self._ood: dict[str, UniformSample] = {}

    def update(self, prediction: Prediction, targets: "Tensor | ArrayLike | None" = None) -> None:
        """Adds a batch of in-domain predictions.

        Args:
            prediction: of `B >= 1` inputs.
            targets: `(B,)` integers in [0, C); by default those of `prediction`.

        Raises:
            TypeError: `targets` are not integers.
            UnavailableError: `prediction` has no such score.
            ValueError: there are no inputs or no targets, or the targets do not fit. Nothing was added.
        """
        known = known_targets(prediction, targets)
        scores = None if self.score is None else uncertainty(prediction, self.score).cpu()
        self._log_losses.add(log_losses(prediction, known))
        self._squared_errors.add(squared_errors(prediction, known))
        self._bins.add(confidences_and_hits(prediction, known))
        if scores is not None:
            self._in_domain.add(scores.unsqueeze(1))

    def update_ood(self, name: str, prediction: Prediction) -> None:
        """Adds a batch of predictions for inputs of an out-of-domain set; targets, if there are any, mean nothing.

        Raises:
            UnavailableError: `prediction` has no such score.
            ValueError: No score is kept.
        """
        if self.score is None:
            raise ValueError(f"score is None, so that {name!r} cannot be told from what is in-domain: give a score")
        self._ood.setdefault(name, self._sample()).add(uncertainty(prediction, self.score).cpu().unsqueeze(1))

    def merge(self, other: "StreamingMetrics") -> None:
        """Adds all predictions that another has been given; in which order several are merged is the same.

        Raises:
            ValueError: The other has other options.
        """
        for option in ("num_bins", "score", "max_scores"):
            mine, its = getattr(self, option), getattr(other, option)
            if mine != its:
                raise ValueError(
                    f"{option} is {mine!r} here and {its!r} there, expected the same: what is summed differs"
                )
        self._log_losses.merge(other._log_losses)
        self._squared_errors.merge(other._squared_errors)
        self._bins.merge(other._bins)
        _pour(other._in_domain, self._in_domain)
        for name, sample in other._ood.items():
            _pour(sample, self._ood.setdefault(name, self._sample()))

    def of_all_workers(self) -> "StreamingMetrics":
        """Answers those of all workers of `torch.distributed` merged, the same on each; all call this.

        In a run of one worker that is a copy. A sampler that fills workers' shares up to one length counts some inputs
        twice: then so do the metrics.
        """
        everyone = [self]
        if several_workers():
            everyone *= dist.get_world_size()
            dist.all_gather_object(everyone, self)
        merged = StreamingMetrics(num_bins=self.num_bins, score=self.score, max_scores=self.max_scores, seed=self.seed)
        for metrics in everyone:
            merged.merge(metrics)
        return merged

    def compute(self) -> dict[str, float]:
        """Answers `accuracy`, `nll`, `brier`, `ece`, and `auroc_NAME` of each out-of-domain set.

        Raises:
            ValueError: There were no in-domain predictions, or none of an out-of-domain set.
        """
        if self.num_inputs == 0:
            raise ValueError("there are no in-domain predictions, expected at least 1: update(prediction) first")
        answer = {
            "accuracy": self._bins.num_right / self.num_inputs,
            "nll": self._log_losses.mean(self.num_inputs),
            "brier": self._squared_errors.mean(self.num_inputs),
            "ece": self._bins.ece(),
        }
        for name in sorted(self._ood):
            in_domain, ood = (sample.kept()[0].squeeze(1) for sample in (self._in_domain, self._ood[name]))
            answer[f"auroc_{name}"] = auroc(in_domain, ood)
        return answer

    def _sample(self) -> UniformSample:
        return UniformSample(_UNBOUNDED if self.max_scores is None else self.max_scores, self.seed)


def _pour(source: UniformSample, target: UniformSample) -> None:
    if len(source):
        target.merge(*source.kept())
