"""From examples to a batch, and from what a loader gives to a :class:`Batch`: here a tuple stays a tuple."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, default_convert

from hesitant.inputs.batch import Batch
from hesitant.inputs.numbers import as_tensor, is_array, targets_tensor

TARGET_KEYS = ("labels", "label")


def as_batch(item: Any) -> Batch:
    """Answers a batch however it is written: ``(inputs, targets)``, or inputs alone.

    Inputs are a tensor (an array, a frame of numbers), a list of several, or a dict of them by the names of the model's
    arguments, in which ``labels`` or ``label`` holds the targets.

    Raises:
        TypeError: It is nothing of that kind.
        ValueError: It has two sets of targets.
    """
    if isinstance(item, Batch):
        return item
    if not isinstance(item, tuple):
        return _as_inputs(item)
    if len(item) not in (1, 2):
        raise ValueError(
            f"a tuple of {len(item)} ({_kinds(item)}) was given: a tuple is (inputs, targets). Several inputs of the"
            " model are a list: ([first, second], targets)."
        )
    batch = _as_inputs(item[0])
    if len(item) == 1 or item[1] is None:
        return batch
    if batch.targets is not None:
        raise ValueError(
            "a tuple (inputs, targets) was given whose inputs are a dict with targets of its own: leave out the one or"
            " the other."
        )
    return Batch(batch.args, batch.kwargs, targets_tensor(item[1]))


def _as_inputs(item: Any) -> Batch:
    if is_array(item):
        return Batch((as_tensor("inputs", item),))
    if isinstance(item, Mapping):
        keys = [key for key in TARGET_KEYS if key in item]
        kwargs = {
            key: as_tensor(f"inputs[{key!r}]", value) if is_array(value) else value
            for key, value in item.items()
            if key not in TARGET_KEYS
        }
        return Batch((), kwargs, targets_tensor(item[keys[0]]) if keys else None)
    if isinstance(item, list) and item and all(is_array(entry) or isinstance(entry, Mapping) for entry in item):
        return Batch(tuple(_converted(f"inputs[{place}]", entry) for place, entry in enumerate(item)))
    what = f"list of {_kinds(item) or 'nothing'}" if isinstance(item, list) else type(item).__name__
    raise TypeError(
        f"the inputs of a batch are a {what}: expected a tensor or an array, a list of several, or a dict of them. A"
        " tuple is (inputs, targets)."
    )


def _converted(name: str, value: Any) -> Any:
    if is_array(value):
        return as_tensor(name, value)
    if isinstance(value, Mapping):
        return {key: _converted(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    return value


def collate(examples: Sequence[Any]) -> Any:
    """Answers examples as one batch of their kind: ``torch.utils.data.default_collate`` makes a list of a tuple.

    Raises:
        TypeError: They hold something that is no number, or are of several kinds.
        ValueError: They are of several shapes.
    """
    first = examples[0]
    if not all(type(example) is type(first) for example in examples):
        raise TypeError(f"examples are of several kinds ({_kinds(examples)}): expected all of one.")
    if isinstance(first, tuple):
        return tuple(collate(list(part)) for part in zip(*examples, strict=True))
    if isinstance(first, Mapping):
        return {
            key: _stacked(f"the examples' {key!r}", [example[key] for example in examples])
            for key, value in first.items()
            if not isinstance(value, str)  # what a tokenizer has read, kept beside its numbers
        }
    if isinstance(first, list) and all(is_array(entry) for entry in first):
        return [_stacked("the examples", list(part)) for part in zip(*examples, strict=True)]
    return _stacked("the examples", list(examples))


def keeping_tuples(loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """Answers a loader whose batches tell ``(inputs, targets)`` from several inputs: torch's own make a list of both.

    A loader with a ``collate_fn`` of its own is answered as it is.
    """
    inner = getattr(loader, "base_dataloader", None)  # accelerate's, which iterates over another
    if isinstance(inner, DataLoader):
        copied: Any = copy.copy(loader)
        copied.base_dataloader = keeping_tuples(inner)
        return copied
    if loader.collate_fn is default_collate:
        function: Any = collate
    elif loader.collate_fn is default_convert:  # the Dataset gives whole batches
        function = _as_it_is
    else:
        return loader
    copied = copy.copy(loader)
    copied.collate_fn = function
    copied._iterator = None
    return copied


def _as_it_is(batch: Any) -> Any:
    return batch


def _stacked(name: str, values: list[Any]) -> Any:
    first = values[0]
    try:
        if isinstance(first, Tensor):
            return default_collate(values)
        if is_array(first):
            return torch.stack([as_tensor(name, value) for value in values])
        if isinstance(first, (bool, int, float, np.number, np.bool_)):
            return as_tensor(name, np.asarray(values))
        if isinstance(first, (list, tuple)):
            return as_tensor(name, np.asarray(values))
    except (RuntimeError, ValueError) as error:
        shapes = sorted({tuple(np.shape(value)) for value in values if not isinstance(value, (list, tuple))})
        lengths = sorted({len(value) for value in values if isinstance(value, (list, tuple))})
        raise ValueError(
            f"{name} are of several shapes ({str(shapes or lengths)[:80]}) and make no batch: bring them to one (crop,"
            " or padding='max_length' of a tokenizer), or pass a DataLoader with a collate_fn that does."
        ) from error
    raise TypeError(
        f"{name} are a {type(first).__name__}: expected tensors, arrays or numbers. Transform them in the Dataset"
        " (torchvision's ToTensor, a tokenizer), or pass a DataLoader with a collate_fn that does."
    )


def _kinds(entries: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(type(entry).__name__ for entry in entries))
