"""What a detector was fitted to be, read from a folder as if anyone had written it."""

from collections.abc import Mapping

import torch
from torch import Tensor


def of_shape(tensors: Mapping[str, Tensor], name: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Answers one of these tensors, finite, of this shape and dtype.

    Raises:
        KeyError: It is missing.
        ValueError: It is another.
    """
    tensor = tensors[name]
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected finite {dtype} {shape}")
    return tensor
