"""hesitant makes a deep classifier know when it does not know."""

from hesitant.evaluation import DeferralPolicy, calibrate, compare
from hesitant.methods import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.prediction import Prediction
from hesitant.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "SNGP",
    "DeepEnsemble",
    "DeferralPolicy",
    "Deterministic",
    "History",
    "MCDropout",
    "Prediction",
    "calibrate",
    "compare",
    "fit",
]
