"""A uniform sample of data that stands for all of it, where going through all of it is too much."""

from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from hesitant.inputs.data import Data, Examples, Loader, Rows, understood
from hesitant.inputs.worker_shares import over


def require_num_inputs(num_inputs: int | None) -> None:
    """Raises ValueError for a sample of less than one input; None is all."""
    if num_inputs is not None and num_inputs < 1:
        raise ValueError(f"num_inputs={num_inputs} must be at least 1, or None for all inputs.")


def data_sample(data: Any, num_inputs: int, seed: int) -> tuple[Data, float]:
    """Answers a uniform sample of data, without replacement, and how many inputs each of it stands for, ``N / n``.

    The same seed chooses the same inputs, of which all come in their order; of data with no more inputs than that, all.
    What a DataLoader's own sampler would choose has no part in it.

    Args:
        data: With a length; see :func:`understood`.
        num_inputs: n, at least 1.
        seed: Of the choice.

    Raises:
        ValueError: ``num_inputs`` is below 1, or the data has no length, or a Dataset gives whole batches.
    """
    require_num_inputs(num_inputs)
    kind = understood(data)
    loader = kind.loader if isinstance(kind, Loader) else None
    if isinstance(kind, (Rows, Examples)):
        length = kind.length
    elif loader is not None and loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset):
        length = len(loader.dataset)  # type: ignore[arg-type]
    else:
        raise ValueError(
            f"num_inputs={num_inputs}: of a {type(data).__name__} no sample can be chosen, as it does not say which"
            " inputs it has. Expected tensors, a Dataset, or a DataLoader with a batch_size over one."
        )
    if num_inputs >= length:
        return kind, 1.0
    chosen = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:num_inputs].sort().values
    return _part(kind, chosen), length / num_inputs


def _part(kind: Data, chosen: torch.Tensor) -> Data:
    if isinstance(kind, Rows):
        return Rows(kind.take(chosen), len(chosen))
    assert isinstance(kind, (Examples, Loader))
    if isinstance(kind, Examples):
        return Examples(Subset(kind.dataset, chosen.tolist()))
    loader: DataLoader[Any] = kind.loader
    return Loader(over(Subset(loader.dataset, chosen.tolist()), loader))
