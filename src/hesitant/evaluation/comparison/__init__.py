"""Comparison: methods side by side on the same inputs, and which of them to use.

``compare`` asks the methods and makes a ``Comparison``: ``columns`` are its figures, ``noise`` tells which differences
are no more than that, ``table`` prints it. ``recommend`` chooses; ``prediction_files`` are predictions as files of any
framework. Users, the demos, the report and the ``hesitant evaluate`` command call it.
"""

from hesitant.evaluation.comparison.columns import Cost, figure_text
from hesitant.evaluation.comparison.compare import Comparison, Inputs, compare
from hesitant.evaluation.comparison.prediction_files import load_predictions, require_same_sets, save_predictions
from hesitant.evaluation.comparison.recommendation import Outcome, Recommendation, recommend
from hesitant.evaluation.comparison.table import cell

__all__ = [
    "Comparison",
    "Cost",
    "Inputs",
    "Outcome",
    "Recommendation",
    "cell",
    "compare",
    "figure_text",
    "load_predictions",
    "recommend",
    "require_same_sets",
    "save_predictions",
]
