"""Metrics: numbers that say how good predictions are, and how sure one can be of these numbers.

``classification`` (accuracy, NLL, Brier), ``calibration_error`` (ECE in its kinds), ``detection`` (AUROC, AUPR, FPR95),
``selective`` (risk over coverage), ``streaming`` (what comes in batches; ``exact_sums``), ``bootstrap`` (intervals of
all), ``arguments`` (what they ask of theirs). Users call the metrics; comparison, deferral, plots and report count by
the rest.
"""

from hesitant.evaluation.metrics.arguments import as_scores, known_targets
from hesitant.evaluation.metrics.bootstrap import Estimate, bootstrap
from hesitant.evaluation.metrics.calibration_error import (
    Reliability,
    adaptive_ece,
    classwise_ece,
    confidences_and_hits,
    ece,
    error_in_equal_widths,
    reliability,
)
from hesitant.evaluation.metrics.classification import accuracy, brier, hits, log_losses, mean, nll
from hesitant.evaluation.metrics.detection import (
    aupr,
    aupr_of_ranks,
    auroc,
    auroc_of_ranks,
    fpr95,
    fpr95_of_ranks,
    ranks_of,
)
from hesitant.evaluation.metrics.selective import (
    RiskCoverage,
    area,
    aurc,
    by_rank,
    e_aurc,
    ranked_errors,
    risk_coverage,
)
from hesitant.evaluation.metrics.streaming import StreamingMetrics

__all__ = [
    "Estimate",
    "Reliability",
    "RiskCoverage",
    "StreamingMetrics",
    "accuracy",
    "adaptive_ece",
    "area",
    "as_scores",
    "aupr",
    "aupr_of_ranks",
    "aurc",
    "auroc",
    "auroc_of_ranks",
    "bootstrap",
    "brier",
    "by_rank",
    "classwise_ece",
    "confidences_and_hits",
    "e_aurc",
    "ece",
    "error_in_equal_widths",
    "fpr95",
    "fpr95_of_ranks",
    "hits",
    "known_targets",
    "log_losses",
    "mean",
    "nll",
    "ranked_errors",
    "ranks_of",
    "reliability",
    "risk_coverage",
]
