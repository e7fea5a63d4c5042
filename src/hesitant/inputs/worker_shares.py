"""Each worker's share of the data, so that all workers together see each input exactly once."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from hesitant.inputs.batch import Batch
from hesitant.inputs.batch_size import require_batch_size
from hesitant.inputs.data import Examples, Loader, Rows, batches, understood


def several_workers() -> bool:
    """Answers whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared_batches(data: Any, batch_size: int | None = None) -> Iterator[Batch]:
    """Gives this worker's share of the data in batches, so that all workers together see each input exactly once.

    The inputs of tensors, a Dataset, or a DataLoader over one that goes through it in order, shuffled or by a
    DistributedSampler, are dealt out among the workers of ``torch.distributed`` in order, without the duplicates with
    which a DistributedSampler evens out the shares and without dropping a last batch. Any other iterable is taken as it
    comes: in a distributed run each worker is expected to bring its own share.

    Raises:
        ValueError: In a distributed run, a DataLoader with a sampler of its own, whose inputs cannot be dealt out.
    """
    require_batch_size(batch_size)
    workers, rank = (dist.get_world_size(), dist.get_rank()) if several_workers() else (1, 0)
    kind = understood(data)
    if isinstance(kind, Loader):
        ordered = in_order(kind.loader)
        if ordered is None and workers > 1 and not isinstance(kind.loader.dataset, IterableDataset):
            raise ValueError(
                f"data is a DataLoader with the sampler {type(_sampler(kind.loader)).__name__}, whose inputs cannot be"
                f" dealt out among {workers} workers: pass the Dataset instead, or an iterable of each worker's own"
                " batches."
            )
        if ordered is not None:
            yield from _dealt(ordered, workers, rank)
            return
    elif isinstance(kind, Examples) and workers > 1:
        yield from _dealt(kind.loader(batch_size), workers, rank)
        return
    elif isinstance(kind, Rows) and workers > 1:
        if rank < kind.length:
            whole = kind.take(slice(rank, None, workers))
            yield from Rows(whole, len(range(rank, kind.length, workers))).batches(batch_size)
        return
    yield from kind.batches(batch_size)


def batches_in_order(data: Any, batch_size: int | None = None) -> Iterator[Batch]:
    """Gives data in batches, a shuffled DataLoader in the order of its Dataset: nothing is drawn for it.

    Raises:
        TypeError: As :func:`batches`.
        ValueError: As :func:`batches`.
    """
    kind = understood(data)
    ordered = in_order(kind.loader) if isinstance(kind, Loader) else None
    yield from batches(kind if ordered is None else Loader(ordered), batch_size)


def in_order(loader: "DataLoader[Any]") -> "DataLoader[Any] | None":
    """Answers a loader of the same Dataset, all of it and in its order; None where the loader chooses inputs itself."""
    if isinstance(loader.dataset, IterableDataset) or not _visits_all(loader):
        return None
    return over(loader.dataset, loader)


def _dealt(loader: "DataLoader[Any]", workers: int, rank: int) -> Iterator[Batch]:
    dataset: Any = loader.dataset
    if workers > 1:
        share = Subset(dataset, range(rank, len(dataset), workers))
        if len(share) == 0:
            return
        loader = over(share, loader)
    yield from Loader(loader).batches(None)


def over(dataset: Any, loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """Answers a loader of another Dataset, all of it and in its order, which is otherwise as this one is."""
    unbatched = loader.batch_sampler is None  # the Dataset gives whole batches
    return DataLoader(
        dataset,
        batch_size=None if unbatched else getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 1,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # without one, a loader draws from the global generator
    )


def _sampler(loader: "DataLoader[Any]") -> Any:
    """Answers what chooses the inputs: with a batch_sampler, ``loader.sampler`` is only a placeholder."""
    sampler: Any = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):  # accelerate's, around another
        sampler = sampler.batch_sampler
    if sampler is None:
        return loader.sampler
    return sampler.sampler if type(sampler) is BatchSampler else sampler


def _visits_all(loader: "DataLoader[Any]") -> bool:
    sampler = _sampler(loader)
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    seedable = type(sampler).__name__ == "SeedableRandomSampler"  # accelerate's, which this module must not import
    return seedable or isinstance(sampler, (SequentialSampler, DistributedSampler))
