"""What data is: the one place that answers, for fit, fit_covariance, predict, calibrate and compare alike."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hesitant.inputs.batch import Batch, mapped
from hesitant.inputs.batch_size import chosen_batch_size, require_batch_size
from hesitant.inputs.collate import TARGET_KEYS, as_batch, collate, keeping_tuples
from hesitant.inputs.numbers import is_array

_ACCEPTED = (
    "expected a tensor, an array or a frame of numbers; a list or a dict of these, where the model has several inputs;"
    " (inputs, targets); a Dataset, a DataLoader, or a list of examples"
)
_UNSIZED_BATCH = 128


@dataclass(frozen=True)
class Rows:
    """Tensors of one length, all inputs in them.

    Attributes:
        whole: All inputs as one batch.
        length: N, how many there are.
    """

    whole: Batch
    length: int

    def batches(self, batch_size: int | None) -> Iterator[Batch]:
        """Gives the inputs in batches of slices."""
        size = batch_size or chosen_batch_size(self.whole, self.length)
        for start in range(0, self.length, size):
            yield self.take(slice(start, start + size))

    def take(self, chosen: slice | Tensor) -> Batch:
        """Answers some inputs; what has another length, such as a flag of the model's, is there for all of them."""

        def picked(tensor: Tensor) -> Tensor:
            if isinstance(chosen, slice):
                return tensor[chosen]
            # Half the time of indexing, which answers the same.
            return tensor.index_select(0, chosen.to(tensor.device).flatten()).unflatten(0, chosen.shape)

        def rows(tensor: Tensor) -> Tensor:
            return picked(tensor) if tensor.ndim > 0 and tensor.shape[0] == self.length else tensor

        whole = self.whole
        targets = None if whole.targets is None else picked(whole.targets)
        return Batch(mapped(whole.args, rows), mapped(whole.kwargs, rows), targets)

    def example(self, row: int) -> Batch:
        """Answers one input, without a batch axis."""
        taken = self.take(slice(row, row + 1))
        return Batch(mapped(taken.args, _first), mapped(taken.kwargs, _first))


@dataclass(frozen=True)
class Examples:
    """Examples by their place: a Dataset, torch's or Hugging Face's, or a list."""

    dataset: Any

    @property
    def length(self) -> int:
        """How many there are."""
        return len(self.dataset)

    def batches(self, batch_size: int | None) -> Iterator[Batch]:
        """Gives the examples in batches, in their order."""
        yield from Loader(self.loader(batch_size)).batches(None)

    def loader(self, batch_size: int | None) -> "DataLoader[Any]":
        """Answers a DataLoader of the examples in their order."""
        size = batch_size or chosen_batch_size(as_batch(collate([self.dataset[0]])), 1)
        # Without a generator of its own, a loader draws from the global one.
        return DataLoader(self.dataset, batch_size=size, collate_fn=collate, generator=torch.Generator())

    def example(self, row: int) -> Batch:
        """Answers one example as its own Dataset has it, its target left out."""
        return example_of(self.dataset[row])


@dataclass(frozen=True)
class Loader:
    """A DataLoader, which keeps its own batches; its tuples stay tuples."""

    loader: "DataLoader[Any]"

    def batches(self, batch_size: int | None) -> Iterator[Batch]:
        """Gives its batches."""
        for item in self.loader:
            yield as_batch(item)


@dataclass(frozen=True)
class Unsized:
    """An IterableDataset: examples that come as they come."""

    dataset: "IterableDataset[Any]"

    def batches(self, batch_size: int | None) -> Iterator[Batch]:
        """Gives the examples in batches."""
        yield from Loader(self.loader(batch_size)).batches(None)

    def loader(self, batch_size: int | None) -> "DataLoader[Any]":
        """Answers a DataLoader of the examples."""
        size = batch_size or _UNSIZED_BATCH
        return DataLoader(self.dataset, batch_size=size, collate_fn=collate, generator=torch.Generator())


@dataclass(frozen=True)
class Stream:
    """Any other iterable, of batches."""

    items: Iterable[Any]

    def batches(self, batch_size: int | None) -> Iterator[Batch]:
        """Gives its batches."""
        for item in self.items:
            yield as_batch(item)


Data = Rows | Examples | Loader | Unsized | Stream


def understood(data: Any) -> Data:
    """Answers what data is.

    A tuple is ``(inputs, targets)``; a list of tensors, or a dict of them, is several inputs of the model, and a dict's
    ``labels`` or ``label`` are the targets. Arrays and frames of numbers are tensors. A Dataset (torch's, Hugging
    Face's), a DataLoader or a list of examples gives items of these kinds; any other iterable, a generator too, gives
    batches of them.

    Raises:
        TypeError: It is nothing of that.
        ValueError: It is empty, or its parts have several lengths.
    """
    if isinstance(data, (Rows, Examples, Loader, Unsized, Stream)):
        return data
    if isinstance(data, DataLoader):
        return Loader(keeping_tuples(data))
    if isinstance(data, IterableDataset):
        return Unsized(data)
    if _is_dataset(data):
        return _examples(data)
    if isinstance(data, list) and not data:
        raise ValueError("data is an empty list: expected at least one input.")
    if isinstance(data, list) and not all(is_array(entry) for entry in data):
        if all(isinstance(entry, Batch) for entry in data):
            return Stream(data)
        if isinstance(data[0], (str, bytes, int, float)):
            raise TypeError(f"data is a list of {type(data[0]).__name__}: {_ACCEPTED}.")
        return _examples(data)
    if is_array(data) or isinstance(data, (Mapping, tuple, list)):
        return _rows(data)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return Stream(data)
    raise TypeError(f"data is a {type(data).__name__}: {_ACCEPTED}.")


def batches(data: Any, batch_size: int | None = None) -> Iterator[Batch]:
    """Gives data in batches, in its own order; see :func:`understood` for what it may be.

    Args:
        data: The inputs, with targets or without.
        batch_size: Inputs in a batch where the data has no batches of its own; None chooses by their size, so that
            images of 224 x 224 come 32 at a time and rows of a table 1,024.

    Raises:
        TypeError: The data is of an unknown kind.
        ValueError: ``batch_size`` is below 1, or the data is empty, or its parts have several lengths.
    """
    require_batch_size(batch_size)
    empty = True
    for batch in understood(data).batches(batch_size):
        empty = False
        yield batch
    if empty:
        raise ValueError("data holds no batch: expected at least one input.")


def example_of(item: Any) -> Batch:
    """Answers an item of a Dataset as it is, its target left out."""
    if isinstance(item, tuple):
        item = item[0]
    if isinstance(item, Mapping):
        return Batch((), {key: value for key, value in item.items() if key not in TARGET_KEYS})
    return Batch((item,))


def _is_dataset(data: Any) -> bool:
    return isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "column_names"))


def _examples(dataset: Any) -> Examples:
    if isinstance(dataset, Mapping):
        raise TypeError(f"data is a {type(dataset).__name__} of the parts {list(dataset)}: name one, data['train'].")
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"data is a {type(dataset).__name__} without a length: make it an IterableDataset, or add one.")
    if len(dataset) == 0:
        raise ValueError("data is empty: expected at least one input.")
    return Examples(dataset)


def _rows(data: Any) -> Rows:
    if isinstance(data, tuple) and any(_is_dataset(entry) or isinstance(entry, DataLoader) for entry in data):
        raise TypeError(f"data is a tuple that holds a {type(data[0]).__name__}: {_ACCEPTED}.")
    whole = as_batch(data)
    lengths: dict[str, int] = {}
    named = {**{f"inputs[{i}]": value for i, value in enumerate(whole.args)}, **whole.kwargs}
    if whole.targets is not None:
        named["targets"] = whole.targets
    for name, value in named.items():
        if isinstance(value, Tensor):
            if value.ndim == 0 and name.startswith("inputs"):
                raise ValueError(f"{name} is a tensor without axes: expected the inputs along the first axis.")
            if value.ndim > 0:
                lengths[name] = value.shape[0]
    if not lengths:
        raise TypeError(f"data is a {type(data).__name__} without a tensor: {_ACCEPTED}.")
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"data has parts of the lengths {lengths}: expected one length along the first axis. A tuple is (inputs,"
            " targets); several inputs of the model are a list or a dict."
        )
    length = next(iter(lengths.values()))
    if length == 0:
        raise ValueError("data is empty: expected at least one input.")
    return Rows(whole, length)


def _first(tensor: Tensor) -> Tensor:
    return tensor[0] if tensor.ndim > 0 else tensor
