"""Numbers: how accurate, how well calibrated, how good at noticing what is out-of-domain, and when to answer.

Four rooms: ``metrics``, ``calibration`` (temperatures), ``deferral`` (policies), ``comparison`` (methods side by side);
``text`` prints numbers and names. Users call what is named here; plots and report build on it.
Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.detection import SCORES, Score, uncertainty
from hesitant.evaluation.calibration import Calibration, CalibrationWarning, calibrate
from hesitant.evaluation.comparison import (
    Comparison,
    Cost,
    Recommendation,
    compare,
    load_predictions,
    recommend,
    save_predictions,
)
from hesitant.evaluation.deferral import DeferralPolicy
from hesitant.evaluation.metrics import (
    Estimate,
    Reliability,
    RiskCoverage,
    StreamingMetrics,
    accuracy,
    adaptive_ece,
    aupr,
    aurc,
    auroc,
    bootstrap,
    brier,
    classwise_ece,
    e_aurc,
    ece,
    fpr95,
    nll,
    reliability,
    risk_coverage,
)
from hesitant.evaluation.text import decimals as decimals
from hesitant.evaluation.text import isolated as isolated
from hesitant.evaluation.text import without_controls as without_controls
from hesitant.evaluation.text import without_overrides as without_overrides

__all__ = [
    "SCORES",
    "Calibration",
    "CalibrationWarning",
    "Comparison",
    "Cost",
    "DeferralPolicy",
    "Estimate",
    "Recommendation",
    "Reliability",
    "RiskCoverage",
    "Score",
    "StreamingMetrics",
    "accuracy",
    "adaptive_ece",
    "aupr",
    "aurc",
    "auroc",
    "bootstrap",
    "brier",
    "calibrate",
    "classwise_ece",
    "compare",
    "e_aurc",
    "ece",
    "fpr95",
    "load_predictions",
    "nll",
    "recommend",
    "reliability",
    "risk_coverage",
    "save_predictions",
    "uncertainty",
]
