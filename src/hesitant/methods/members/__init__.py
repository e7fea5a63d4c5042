"""The inside of a deep ensemble: were its members made apart, are they alike, and what do plain ones answer?

``require_own_weights`` refuses members that share weights; ``why_not_stackable`` tells whether one model can run with
the weights of all; ``DeterministicMembers`` asks plain models, one after another or as one.
``methods/deep_ensemble.py`` calls all of it; the vectorised training asks whether members are stackable, and runs them
by ``BatchedKernelsAlone`` too.
"""

from hesitant.methods.members.deterministic_members import (
    BatchedKernelsAlone,
    DeterministicMembers,
    require_same_shapes,
)
from hesitant.methods.members.independence import require_own_weights
from hesitant.methods.members.stackable import plain_attributes, why_not_stackable

__all__ = [
    "BatchedKernelsAlone",
    "DeterministicMembers",
    "plain_attributes",
    "require_own_weights",
    "require_same_shapes",
    "why_not_stackable",
]
