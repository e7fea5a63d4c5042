"""Turns what a person has (tensors, dicts of them, a Dataset, a DataLoader) into batches for a model."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from hesitant.methods.workers import several_workers
from hesitant.simplex import two_class_logits

TARGET_KEYS = ("labels", "label")


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward pass, and the targets where they are known."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    targets: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Answers the batch with its tensors on ``device``."""
        moved = map_tensors(self, lambda tensor: tensor.to(device))
        return replace(moved, targets=None if self.targets is None else self.targets.to(device))


def batches(inputs: Any, batch_size: int) -> Iterator[Batch]:
    """Answers inputs in batches of at most ``batch_size``, in their own order.

    A tensor, several in a tuple or list, or a mapping of them are what the model is called with, sliced along the
    first axis. A Dataset is collated; a DataLoader, or any iterable of batches, keeps its own batch size. There the
    last entry of a tuple is the target, as are the entries ``labels`` and ``label`` of a mapping, wherever it comes
    from.

    Raises:
        ValueError: ``batch_size`` is below 1, the inputs are empty, or their lengths differ.
        TypeError: The inputs are nothing of the above.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if isinstance(inputs, (Tensor, Mapping)) or _is_several_tensors(inputs):
        yield from _slices(inputs, batch_size)
        return
    empty = True
    for item in _loader(inputs, batch_size):
        empty = False
        yield as_batch(item)
    if empty:
        raise ValueError("inputs hold no batch: expected at least one input.")


def shared_batches(data: Any, batch_size: int) -> Iterator[Batch]:
    """Answers this worker's share of the data in batches, so that all workers together see each input exactly once.

    The inputs of tensors, a Dataset, or a DataLoader over one that goes through it in order, shuffled or by a
    DistributedSampler, are dealt out among the workers of ``torch.distributed`` in order, without the duplicates with
    which a DistributedSampler evens out the shares and without dropping a last batch. Any other iterable is taken as it
    comes: in a distributed run each worker is expected to bring its own share.

    Raises:
        ValueError: In a distributed run, a DataLoader with a sampler of its own, whose inputs cannot be dealt out.
    """
    workers, rank = (dist.get_world_size(), dist.get_rank()) if several_workers() else (1, 0)
    if isinstance(data, (Tensor, Mapping)) or _is_several_tensors(data):
        if workers > 1:
            data = _take(data, slice(rank, None, workers))
            if _length(data) == 0:
                return
        yield from batches(data, batch_size)
        return
    loader = _loader(data, batch_size)
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        if _visits_all(loader):
            dataset: Any = loader.dataset
            share: Any = dataset if workers == 1 else Subset(dataset, range(rank, len(dataset), workers))
            if len(share) == 0:
                return
            unbatched = loader.batch_sampler is None  # the Dataset gives whole batches
            loader = DataLoader(
                share,
                batch_size=None if unbatched else getattr(loader.batch_sampler, "batch_size", None) or batch_size,
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
                generator=torch.Generator(),  # without one, a loader draws from the global generator
            )
        elif workers > 1:
            raise ValueError(
                f"data is a DataLoader with the sampler {type(_sampler(loader)).__name__}, whose inputs cannot be"
                f" dealt out among {workers} workers: pass the Dataset instead, or an iterable of each worker's own"
                " batches."
            )
    for item in loader:
        yield as_batch(item)


def as_batch(item: Any) -> Batch:
    """Answers one collated item of a Dataset or DataLoader as a :class:`Batch`."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        targets = next((item[key] for key in TARGET_KEYS if key in item), None)
        return Batch((), {key: value for key, value in item.items() if key not in TARGET_KEYS}, targets)
    if isinstance(item, Tensor):
        return Batch((item,))
    if not isinstance(item, (tuple, list)) or not item:
        raise TypeError(
            f"a batch is a {type(item).__name__}: expected a tensor, a tuple (x, target) or a dict of tensors."
        )
    *first, targets = item if len(item) > 1 else (*item, None)
    if len(first) == 1 and isinstance(first[0], Mapping):
        return Batch((), dict(first[0]), targets)
    return Batch(tuple(first), {}, targets)


def logits_of(output: Any) -> Tensor:
    """Answers the logits in what a model answered: a tensor, an object or dict with ``logits``, or a tuple's first.

    Raises:
        TypeError: There are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return logits_of(output["logits"])
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(
        f"the model answered a {type(output).__name__}: expected a tensor of logits (B, C), or something that carries"
        " them as .logits."
    )


def with_logits(output: Any, log_probs: Tensor, targets: Tensor | None) -> Any:
    """Answers a copy of what a model answered with ``log_probs`` ``(B, C)`` for its logits.

    The logits of a binary model with a single one become the one whose sigmoid is the probability of class 1. A loss
    becomes the mean cross-entropy with ``targets``, or None where there are none.
    """
    before = logits_of(output)
    if before.ndim == 1 or before.shape[-1] == 1:
        log_probs = (log_probs[:, 1] - log_probs[:, 0]).reshape(before.shape)
    if isinstance(output, Tensor):
        return log_probs
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        return type(output)((log_probs, *output[1:]))
    output = copy.copy(output)
    if hasattr(output, "logits"):
        output.logits = log_probs
    else:
        output["logits"] = log_probs
    if getattr(output, "loss", None) is not None:
        output.loss = None if targets is None else F.nll_loss(F.log_softmax(two_class_logits(log_probs), -1), targets)
    return output


def num_inputs(batch: Batch) -> int:
    """Answers B, the length of the first tensor that a forward pass is given.

    Raises:
        TypeError: It is given none.
    """
    for value in (*batch.args, *batch.kwargs.values()):
        if isinstance(value, Tensor):
            return len(value)
    raise TypeError("a batch holds no tensor: expected the inputs along the first axis of one.")


def tensors_of(batch: Batch) -> list[Tensor]:
    """Answers the tensors among the inputs."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Answers the batch with ``function`` of each of its inputs; its targets stay."""
    return Batch(_mapped(batch.args, function), _mapped(batch.kwargs, function), batch.targets)


def _is_several_tensors(inputs: Any) -> bool:
    return isinstance(inputs, (tuple, list)) and bool(inputs) and all(isinstance(x, Tensor) for x in inputs)


def _loader(inputs: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(inputs, Dataset) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "column_names")):
        return DataLoader(inputs, batch_size=batch_size, generator=torch.Generator())
    if isinstance(inputs, Iterable) and not hasattr(inputs, "__array__") and not isinstance(inputs, str):
        return inputs
    raise TypeError(
        f"inputs are a {type(inputs).__name__}: expected a tensor, several or a dict of them, a Dataset or a"
        " DataLoader."
        " Arrays become tensors with torch.from_numpy(array)."
    )


def _sampler(loader: DataLoader[Any]) -> Any:
    """Answers what chooses the inputs: with a batch_sampler, ``loader.sampler`` is only a placeholder."""
    sampler: Any = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):  # accelerate's, around another
        sampler = sampler.batch_sampler
    if sampler is None:
        return loader.sampler
    return sampler.sampler if type(sampler) is BatchSampler else sampler


def _visits_all(loader: DataLoader[Any]) -> bool:
    sampler = _sampler(loader)
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    seedable = type(sampler).__name__ == "SeedableRandomSampler"  # accelerate's, which this module must not import
    return seedable or isinstance(sampler, (SequentialSampler, DistributedSampler))


def _slices(inputs: Any, batch_size: int) -> Iterator[Batch]:
    length = _length(inputs)
    if length == 0:
        raise ValueError("inputs are empty: expected at least one input.")
    for start in range(0, length, batch_size):
        part = _take(inputs, slice(start, start + batch_size))
        if isinstance(part, Tensor):
            yield Batch((part,))
        elif isinstance(part, Mapping):
            yield as_batch(part)
        else:
            yield Batch(tuple(part))


def _take(inputs: Any, index: slice) -> Any:
    if isinstance(inputs, Mapping):
        return {key: value[index] if isinstance(value, Tensor) else value for key, value in inputs.items()}
    return inputs[index] if isinstance(inputs, Tensor) else [x[index] for x in inputs]


def _length(inputs: Any) -> int:
    if isinstance(inputs, Mapping):
        tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    else:
        tensors = dict(enumerate([inputs] if isinstance(inputs, Tensor) else inputs))
    if any(value.ndim == 0 for value in tensors.values()):
        raise ValueError("inputs hold a tensor without axes: expected the batch along the first axis of each.")
    lengths = {key: len(value) for key, value in tensors.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"inputs have the lengths {lengths}: expected tensors of one length along the first axis.")
    return next(iter(lengths.values()))


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(entry, function) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(entry, function) for entry in value)
    return value
