"""The inside of Monte Carlo dropout: passes of one model, each with dropout masks of its own.

Read in this order: ``passes`` decides which passes run together; ``runner`` runs one on a double of the model
(``dropping_replicas``), whose dropout is active and all else in eval mode (``training_reads`` tells which reads of
``training`` mean dropout). A pass is a ``watched_pass``; ``replay`` runs the passes after the first together, without
computing again what dropout does not reach. Where the model is too small to be watched, its passes run as one
(``vectorized_passes``), or each is a ``light_pass`` (``whole_passes``); ``interception`` tells these what draws or
writes, and ``other_draws`` what it cannot tell. ``operations`` knows what draws, ``masks`` and ``masks_ahead`` draw.
``methods/mc_dropout.py`` calls ``DropoutPasses``; the training of ensembles draws from ``Masks``, and
``integrations/export`` draws each operation's masks within a graph.
"""

from hesitant.methods.dropout.dropping_replicas import dropping_replicas
from hesitant.methods.dropout.masks import Mask, Masks
from hesitant.methods.dropout.operations import (
    Layout,
    Repeated,
    draws,
    drop,
    is_dropout,
    layer_by_layer,
)
from hesitant.methods.dropout.other_draws import OtherDraws
from hesitant.methods.dropout.passes import DropoutPasses

__all__ = [
    "DropoutPasses",
    "Layout",
    "Mask",
    "Masks",
    "OtherDraws",
    "Repeated",
    "draws",
    "drop",
    "dropping_replicas",
    "is_dropout",
    "layer_by_layer",
]
