"""Out-of-domain scores: one number an input that says how unsure a prediction is of it, or how far it is.

``uncertainty`` answers each of ``SCORES`` of a prediction: deferral, comparison and plots rank inputs by it.
``FeatureDetector`` puts a detector of the literature beside a method, on the same weights and from the same forward
pass (``gaussian_distances``, ``kept_neighbors``, ``of_pytorch_ood``): who compares or guards calls it as a method.
Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.detection.feature_detector import DETECTORS, DetectorError, DetectorName, FeatureDetector
from hesitant.detection.scores import SCORES, Score, uncertainty
from hesitant.detection.scores import guarding_score as guarding_score

__all__ = [
    "DETECTORS",
    "SCORES",
    "DetectorError",
    "DetectorName",
    "FeatureDetector",
    "Score",
    "uncertainty",
]
