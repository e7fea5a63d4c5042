"""Training: ``fit``, for one model or an ensemble.

``fit`` gathers its arguments (``settings``) and hands over to ``loop`` for one model, to ``ensemble`` for several; the
room ``vectorized`` trains the members of an ensemble as one. Beside the loop: when the learning rate moves
(``schedule``), checkpoints (``checkpoint``, ``run_identity``, ``state_as_json``, ``progress``), how it went
(``history``). The demos and users call it; nothing below does.
"""

from hesitant.training.fit import fit
from hesitant.training.history import EnsembleHistory, History
from hesitant.training.settings import Loss, MixedPrecision, cross_entropy

__all__ = ["EnsembleHistory", "History", "Loss", "MixedPrecision", "cross_entropy", "fit"]
