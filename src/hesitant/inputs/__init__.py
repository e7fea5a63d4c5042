"""What data is, answered once: ``understood`` for all verbs, ``batches`` for who reads it.

A tuple is ``(inputs, targets)``; a list of tensors, or a dict of them, is several inputs of the model. Training goes
through data in an order of its own (``training_loader``, ``member_loader``), the workers of a distributed run share it
(``shared_batches``), a sample stands for it (``data_sample``), what is compared is read again and again in one order
(``RepeatableData``), and ``split`` parts data so that each use has inputs of its own. ``fit``, ``fit_covariance``,
``predict``, ``calibrate`` and ``compare`` read data through here.
"""

from hesitant.inputs.batch import Batch, map_tensors, num_inputs, tensors_of
from hesitant.inputs.collate import as_batch
from hesitant.inputs.data import Rows, batches, understood
from hesitant.inputs.data_sample import data_sample, require_num_inputs
from hesitant.inputs.numbers import as_class_targets, as_targets
from hesitant.inputs.repeatable import RepeatableData
from hesitant.inputs.split import split
from hesitant.inputs.training_order import Order, member_loader, rows_of, training_loader
from hesitant.inputs.worker_shares import batches_in_order, over, several_workers, shared_batches

__all__ = [
    "Batch",
    "Order",
    "RepeatableData",
    "Rows",
    "as_batch",
    "as_class_targets",
    "as_targets",
    "batches",
    "batches_in_order",
    "data_sample",
    "map_tensors",
    "member_loader",
    "num_inputs",
    "over",
    "require_num_inputs",
    "rows_of",
    "several_workers",
    "shared_batches",
    "split",
    "tensors_of",
    "training_loader",
    "understood",
]
