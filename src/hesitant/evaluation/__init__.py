"""Numbers: how accurate, how well calibrated, and how good at noticing what is out-of-domain."""

from hesitant.evaluation.metrics import accuracy, auroc, brier, ece, nll

__all__ = ["accuracy", "auroc", "brier", "ece", "nll"]
