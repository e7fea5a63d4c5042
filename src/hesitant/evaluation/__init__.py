"""Numbers: how accurate, how well calibrated, how good at noticing what is out-of-domain, and when to answer."""

from hesitant.evaluation.bootstrap import Estimate, bootstrap
from hesitant.evaluation.calibration import Reliability, adaptive_ece, classwise_ece, ece, reliability
from hesitant.evaluation.classification import accuracy, brier, nll
from hesitant.evaluation.comparison import Comparison, Cost, compare
from hesitant.evaluation.deferral import DeferralPolicy
from hesitant.evaluation.detection import aupr, auroc, fpr95
from hesitant.evaluation.prediction_files import load_predictions, save_predictions
from hesitant.evaluation.recommendation import Recommendation, recommend
from hesitant.evaluation.scores import SCORES, Score, uncertainty
from hesitant.evaluation.selective import RiskCoverage, aurc, e_aurc, risk_coverage
from hesitant.evaluation.temperature import Calibration, CalibrationWarning, calibrate

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
