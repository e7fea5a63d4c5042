"""Out-of-domain scores: one number an input that says how unsure a prediction is of it.

``uncertainty`` answers each of ``SCORES``. Deferral, comparison and plots rank inputs by it.
"""

from hesitant.detection.scores import SCORES, Score, uncertainty

__all__ = ["SCORES", "Score", "uncertainty"]
