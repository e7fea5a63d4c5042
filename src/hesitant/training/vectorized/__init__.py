"""Training all members of an ensemble as one: their weights stacked, one step for all by ``torch.func.vmap``.

``why_one_by_one`` tells what speaks against it; ``VectorizedRun`` is the run, with its data (``member_batches``) and
``checkpoints``; ``stack`` is the step, on ``weights``, where ``stacked_functions`` draws dropout.
``training/ensemble.py`` calls it, and trains one by one where it raises ``CannotStackError``: the members are the same
but for rounding, and for the masks of dropout.
"""

from hesitant.training.vectorized.eligibility import why_one_by_one
from hesitant.training.vectorized.run import VectorizedRun
from hesitant.training.vectorized.weights import CannotStackError

__all__ = ["CannotStackError", "VectorizedRun", "why_one_by_one"]
