"""Pictures: what a model believes and how unsure it is, whether that can be relied on, and what a threshold does.

Every function takes an `Axes` and returns it (`ax=None` makes one). No global style is touched. Colours come from
perceptually uniform maps and from the Okabe-Ito palette; whatever is told apart by colour also differs in shape or
hatching, so that print and colour-blind readers lose nothing. ``style`` has what all share. Users, the demos and the
report call it.
"""

from hesitant.plots.calibration import reliability_diagram
from hesitant.plots.images import scan
from hesitant.plots.model_surface import uncertainty_surface
from hesitant.plots.scores import score_histogram
from hesitant.plots.selective import risk_coverage_curves
from hesitant.plots.style import (
    CLASS_COLORS,
    CLASS_MARKERS,
    INK,
    MUTED,
    OOD_COLOR,
    OOD_MARKER,
    PROBABILITY_MAP,
    UNCERTAINTY_MAP,
    bare,
    short,
)
from hesitant.plots.surfaces import points, surface

__all__ = [
    "CLASS_COLORS",
    "CLASS_MARKERS",
    "INK",
    "MUTED",
    "OOD_COLOR",
    "OOD_MARKER",
    "PROBABILITY_MAP",
    "UNCERTAINTY_MAP",
    "bare",
    "points",
    "reliability_diagram",
    "risk_coverage_curves",
    "scan",
    "score_histogram",
    "short",
    "surface",
    "uncertainty_surface",
]
