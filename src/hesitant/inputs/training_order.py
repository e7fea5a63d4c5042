"""Data as training goes through it: shuffled, in an order of each model's own."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from hesitant.inputs.batch import Batch
from hesitant.inputs.collate import collate
from hesitant.inputs.data import Loader, Rows, Stream, Unsized, understood


def training_loader(data: Any, batch_size: int, generator: torch.Generator) -> "DataLoader[Any]":
    """Answers data in shuffled batches; a DataLoader, or a stream, in its own.

    Raises:
        TypeError: The data is of an unknown kind, or an iterator, which can be gone through once alone.
        ValueError: It is empty.
    """
    kind = understood(data)
    if isinstance(kind, Loader):
        return kind.loader
    if isinstance(kind, Unsized):
        return kind.loader(batch_size)
    if isinstance(kind, Stream):
        if isinstance(kind.items, Iterator):
            raise TypeError(
                f"data is a {type(kind.items).__name__}, which can be gone through once: expected tensors, a Dataset, a"
                " DataLoader, or an iterable that begins anew each time."
            )
        return DataLoader(_Batches(kind), batch_size=None, collate_fn=_as_they_are, generator=generator)
    if isinstance(kind, Rows):
        rows = _Rows(kind)
        return DataLoader(rows, batch_size=batch_size, shuffle=True, generator=generator, collate_fn=_as_they_are)
    return DataLoader(kind.dataset, batch_size=batch_size, shuffle=True, generator=generator, collate_fn=collate)


def member_loader(data: Any, batch_size: int, generator: torch.Generator) -> "DataLoader[Any]":
    """Answers the batches of one member of an ensemble, in the order that its generator draws.

    A DataLoader that shuffles is made anew around the same Dataset; one that goes through its data in order does so for
    every member.

    Raises:
        TypeError: The data is of an unknown kind.
        ValueError: It is empty, or a DataLoader whose sampler cannot be given another generator.
    """
    loader = training_loader(data, batch_size, generator)
    if not isinstance(understood(data), Loader) or isinstance(loader.dataset, IterableDataset):
        return loader
    batched = loader.batch_sampler is not None
    plain = type(loader.batch_sampler) is BatchSampler
    sampler: Any = loader.sampler if plain or not batched else loader.batch_sampler
    if hasattr(sampler, "generator"):
        sampler = copy.copy(sampler)
        sampler.generator = generator
    elif not isinstance(sampler, SequentialSampler):
        raise ValueError(
            f"data is a DataLoader with the sampler {type(sampler).__name__}, which has no generator: all members would"
            " share one order. Give the sampler an attribute 'generator' that it draws from, or pass the Dataset."
        )
    order: dict[str, Any] = {"batch_sampler": sampler}
    if plain or not batched:
        order = {"sampler": sampler, "batch_size": loader.batch_size}
    if plain:
        order["drop_last"] = loader.drop_last
    if loader.num_workers:
        order |= {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    return DataLoader(
        loader.dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        **order,
    )


def rows_of(data: Any) -> Rows | None:
    """Answers the tensors that the data consists of, or None: rows of these can be taken for many members at once."""
    kind = understood(data)
    return kind if isinstance(kind, Rows) else None


class Order:
    """The order in which :func:`training_loader` gives so many inputs, epoch after epoch, from the same generator."""

    def __init__(self, length: int, generator: torch.Generator) -> None:
        self._loader = DataLoader(
            _Positions(length), batch_size=length, shuffle=True, generator=generator, collate_fn=_as_they_are
        )

    def draw(self) -> Tensor:
        """Answers the positions ``(length,)`` of the next epoch."""
        (order,) = self._loader
        return order


class _Rows(Dataset[Any]):
    """Tensors, indexed a batch at a time: collating single rows costs more than a step of a small network."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.length

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Any:
        return self.rows.take(torch.tensor(indices))


class _Positions(Dataset[Any]):
    """The positions themselves, a batch at a time."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices)


class _Batches(IterableDataset[Batch]):
    """A stream of batches."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Batch]:
        return self.stream.batches(None)


def _as_they_are(rows: Any) -> Any:
    return rows
