"""What fit trains on: tensors, a Dataset or a DataLoader as batches, in an order of each model's own."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)


def as_dataset(data: Any) -> Any:
    """Answers tensors and lists of inputs as a Dataset, and all else as it is.

    Raises:
        TypeError: The data is a tuple of something else.
    """
    if isinstance(data, (tuple, list)) and len(data) > 1 and all(isinstance(x, Tensor) for x in data):
        return TensorDataset(*data)
    if isinstance(data, tuple):
        kinds = ", ".join(type(entry).__name__ for entry in data)
        raise TypeError(
            f"data is a tuple of {kinds or 'nothing'}: expected tensors, the targets last. Arrays and lists become"
            " tensors with torch.as_tensor; inputs that stand for themselves belong in a list or a Dataset."
        )
    if isinstance(data, (tuple, list)):
        return Subset(data, range(len(data)))  # type: ignore[arg-type]  # of inputs; elsewhere a list is one of batches
    return data


def training_loader(data: Any, batch_size: int, generator: torch.Generator) -> DataLoader[Any]:
    """Answers data in shuffled batches; a DataLoader as it is.

    Raises:
        TypeError: The data is of an unknown type.
        ValueError: It is empty.
    """
    data = as_dataset(data)
    if isinstance(data, DataLoader):
        return data
    if not isinstance(data, Dataset) and (isinstance(data, Mapping) or not hasattr(data, "__getitem__")):
        raise TypeError(
            f"data is a {type(data).__name__}: expected a Dataset, a DataLoader, or a tuple of tensors, the targets"
            " last."
        )
    if len(cast(Any, data)) == 0:
        raise ValueError("data is empty: expected at least one input.")
    if type(data) is TensorDataset:
        rows = _Rows(data.tensors)
        return DataLoader(rows, batch_size=batch_size, shuffle=True, generator=generator, collate_fn=_as_they_are)
    return DataLoader(data, batch_size=batch_size, shuffle=True, generator=generator)


def member_loader(data: Any, batch_size: int, generator: torch.Generator) -> DataLoader[Any]:
    """Answers the batches of one member of an ensemble, in the order that its generator draws.

    A DataLoader that shuffles is made anew around the same Dataset; one that goes through its data in order does so for
    every member.

    Raises:
        TypeError: The data is of an unknown type.
        ValueError: It is empty, or a DataLoader whose sampler cannot be given another generator.
    """
    loader = training_loader(data, batch_size, generator)
    if loader is not data:
        return loader
    if isinstance(loader.dataset, IterableDataset):
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


def tensors_of(data: Any) -> tuple[Tensor, ...] | None:
    """Answers the tensors that the data consists of, or None: rows of these can be taken for many members at once."""
    dataset = as_dataset(data)
    return dataset.tensors if type(dataset) is TensorDataset and len(dataset) > 0 else None


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

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        chosen = torch.tensor(indices)
        return tuple(tensor[chosen] for tensor in self.tensors)


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


def _as_they_are(rows: Any) -> Any:
    return rows
