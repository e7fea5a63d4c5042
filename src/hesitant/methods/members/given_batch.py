"""A batch as the members of an ensemble are given it, one after the other."""

import torch
from torch import Tensor

from hesitant.inputs import Batch, map_tensors, tensors_of


class GivenBatch:
    """Gives one copy of a batch to all members, and another once a member has written to it.

    A write is seen by the count that autograd keeps of them; one through ``.data`` is not. Where there is no count, as
    in inference mode, each member has a copy of its own.

    Args:
        batch: What all are to be given.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._copy: Batch | None = None
        self._device: torch.device | None = None
        self._versions: list[int] | None = None

    def on(self, device: torch.device) -> Batch:
        """Answers the batch on a device, as it was at first."""
        copy = self._copy
        if copy is None or device != self._device or self._versions is None or self._versions != _versions(copy):
            copy = map_tensors(self._batch.to(device), Tensor.clone)
            self._copy, self._device, self._versions = copy, device, _versions(copy)
        return copy


def _versions(batch: Batch) -> list[int] | None:
    tensors = tensors_of(batch)
    return None if any(tensor.is_inference() for tensor in tensors) else [tensor._version for tensor in tensors]
