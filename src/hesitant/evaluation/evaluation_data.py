"""Evaluation data that every method reads in one order, and whose inputs can be looked up by their place."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from hesitant.methods.batches import Batch, as_batch, batches, num_inputs
from hesitant.training_data import tensors_of

__all__ = ["EvaluationData"]


class EvaluationData:
    """Data as batches, which can be read again and again in the same order, and as inputs by their place.

    Tensors, a Dataset, and a DataLoader that goes through all of its Dataset, shuffled or not, are read in the order of
    the data, in bounded memory. A DataLoader with a sampler of its own, and any other iterable of batches, may give
    other inputs the next time, or none: it is read once, and its batches are kept.

    Args:
        data: A tensor; a tuple of tensors, the targets last; a dict of tensors, with `labels`; a Dataset; a DataLoader,
            or another iterable of batches.
        batch_size: Inputs in a batch; a DataLoader keeps its own.
        targets: Whether targets are wanted. Those of out-of-domain data may be classes that no model knows, and are
            left out.

    Raises:
        TypeError: `data` is nothing of the above.
        ValueError: `data` is empty, or `batch_size` is below 1.
    """

    def __init__(self, data: Any, *, batch_size: int, targets: bool) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1: 1024 is the usual number")
        self._batch_size, self._targets = batch_size, targets
        self._tensors = tensors_of(data)
        if self._tensors is None and isinstance(data, Tensor):
            self._tensors = (data,)
        self._source = _in_order(data, batch_size) if isinstance(data, DataLoader) else data
        self._kept: list[Batch] | None = None
        if self._tensors is None and not isinstance(self._source, Mapping) and not _has_places(self._source):
            self._kept = list(batches(data, batch_size))
            self._ends = list(accumulate(num_inputs(batch) for batch in self._kept))

    def __iter__(self) -> Iterator[Batch]:
        """The batches, from the first input on."""
        found = self._kept if self._kept is not None else batches(self._as_arguments(), self._batch_size)
        for batch in found:
            if self._tensors is not None and len(self._tensors) > 1:
                batch = Batch(batch.args[:-1], {}, batch.args[-1])
            yield batch if self._targets else replace(batch, targets=None)

    def __getitem__(self, row: int) -> Any:
        """The input at this place: what the model is called with, or what the Dataset holds, without its target."""
        if self._kept is not None:
            number = bisect_right(self._ends, row)
            start = self._ends[number - 1] if number > 0 else 0
            return _input(_row(self._kept[number], row - start))
        if self._tensors is not None:
            return _input(Batch(tuple(x[row] for x in (self._tensors[:-1] or self._tensors))))
        if isinstance(self._source, Mapping):
            return _input(_row(as_batch(self._source), row))
        dataset: Any = self._source.dataset if isinstance(self._source, DataLoader) else self._source
        return _input(as_batch(dataset[row]))

    def _as_arguments(self) -> Any:
        return self._source if self._tensors is None else self._tensors


def _has_places(source: Any) -> bool:
    """Whether inputs can be asked for by their place: of a Dataset, torch's or Hugging Face's, or a loader of one."""
    if isinstance(source, IterableDataset):
        return False
    return isinstance(source, (Dataset, DataLoader)) or hasattr(source, "column_names")


def _in_order(loader: DataLoader[Any], batch_size: int) -> DataLoader[Any] | None:
    """The loader again, in the order of its Dataset and with all of it; None where it chooses inputs in its own way."""
    sampler = loader.sampler
    visits_all = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(cast(Any, loader.dataset))
    )
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler or not visits_all:
        return None
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # without one, a loader draws from the global generator
    )


def _row(batch: Batch, row: int) -> Batch:
    def take(value: Any) -> Any:
        return value[row] if isinstance(value, (Tensor, list, tuple)) else value

    return Batch(tuple(take(value) for value in batch.args), {name: take(x) for name, x in batch.kwargs.items()})


def _input(batch: Batch) -> Any:
    if batch.kwargs:
        return batch.kwargs
    return batch.args[0] if len(batch.args) == 1 else cast(Any, batch.args)
