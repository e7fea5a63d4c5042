"""Data that is read again and again in one order, and whose inputs can be looked up by their place."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from torch import Tensor

from hesitant.inputs.batch import Batch, mapped, num_inputs
from hesitant.inputs.batch_size import require_batch_size
from hesitant.inputs.data import Data, Examples, Loader, Rows, batches, example_of, understood
from hesitant.inputs.worker_shares import in_order


class RepeatableData:
    """Data as batches, which can be read again and again in the same order, and as inputs by their place.

    Tensors, a Dataset, and a DataLoader that goes through all of its Dataset, shuffled or not, are read in the order of
    the data, in bounded memory. A DataLoader with a sampler of its own, and any other iterable of batches, may give
    other inputs the next time, or none: it is read once, and its batches are kept.

    Args:
        data: As :func:`understood` has it.
        batch_size: Inputs in a batch; a DataLoader keeps its own, and None chooses by the inputs' size.
        targets: Whether targets are wanted. Those of out-of-domain data may be classes that no model knows, and are
            left out.

    Raises:
        TypeError: The data is of an unknown kind.
        ValueError: It is empty, or ``batch_size`` is below 1.
    """

    def __init__(self, data: Any, *, batch_size: int | None, targets: bool) -> None:
        require_batch_size(batch_size)
        self._batch_size, self._targets = batch_size, targets
        self._source: Data = understood(data)
        self._kept: list[Batch] | None = None
        if isinstance(self._source, Loader):
            ordered = in_order(self._source.loader)
            self._source = self._source if ordered is None else Loader(ordered)
            places = ordered is not None and ordered.batch_sampler is not None
        else:
            places = isinstance(self._source, (Rows, Examples))
        if not places:
            self._kept = list(batches(self._source, batch_size))
            self._ends = list(accumulate(num_inputs(batch) for batch in self._kept))

    def __iter__(self) -> Iterator[Batch]:
        """The batches, from the first input on."""
        for batch in self._kept if self._kept is not None else batches(self._source, self._batch_size):
            yield batch if self._targets else replace(batch, targets=None)

    def __getitem__(self, row: int) -> Any:
        """The input at this place: what the model is called with, or what the Dataset holds, without its target."""
        if self._kept is not None:
            number = bisect_right(self._ends, row)
            place = row - (self._ends[number - 1] if number > 0 else 0)
            batch = self._kept[number]
            return _input(
                Batch(mapped(batch.args, lambda t: _at(t, place)), mapped(batch.kwargs, lambda t: _at(t, place)))
            )
        if isinstance(self._source, Loader):
            return _input(example_of(self._source.loader.dataset[row]))
        assert isinstance(self._source, (Rows, Examples))
        return _input(self._source.example(row))


def _at(tensor: Tensor, place: int) -> Tensor:
    return tensor[place] if tensor.ndim > 0 else tensor


def _input(example: Batch) -> Any:
    if example.kwargs:
        return example.kwargs
    return example.args[0] if len(example.args) == 1 else list(example.args)
