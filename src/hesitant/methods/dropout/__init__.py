"""The inside of Monte Carlo dropout: passes of one model, each with dropout masks of its own.

Read in this order: ``passes`` decides which passes run together; ``dropping_replicas`` doubles the model so that its
dropout is active and all else is in eval mode (``training_reads`` tells which reads of ``training`` mean dropout);
``recorded_pass`` runs the first pass and notes what no drawn number reaches; ``replayed_passes`` run the others without
computing that again; ``light_pass`` is for models too small for either. ``operations`` knows what draws, ``masks``
draws. ``methods/mc_dropout.py`` calls ``DropoutPasses``; the training of ensembles draws from ``Masks``.
"""

from hesitant.methods.dropout.masks import Masks
from hesitant.methods.dropout.passes import DropoutPasses

__all__ = ["DropoutPasses", "Masks"]
