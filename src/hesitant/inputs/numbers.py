"""Numbers as tensors: arrays, frames, and targets however they are written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ONE = 1e-3  # by how much a soft target may miss 1: the rounding of a half precision


def is_array(value: Any) -> bool:
    """Whether a value is a tensor, or an array or a frame (NumPy, pandas, polars, JAX) that can become one."""
    return isinstance(value, (Tensor, np.ndarray)) or (
        not isinstance(value, type) and (hasattr(value, "to_numpy") or hasattr(value, "__array_interface__"))
    )


def as_tensor(name: str, value: Any) -> Tensor:
    """Answers an array or a frame as a tensor, without a copy where that can be; a tensor as it is.

    Float64 becomes torch's default type: that is what arrays are made of when nobody asks, and models are not.

    Raises:
        TypeError: It holds something else than numbers.
    """
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} is a {type(value).__name__} of dtype {array.dtype}: expected numbers. Encode what is text or of"
            " several kinds first."
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    native = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
    tensor = torch.from_numpy(native).reshape(array.shape)
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def targets_tensor(targets: Any) -> Tensor | None:
    """Answers targets as a tensor, whatever they mean: what a loss of one's own makes of them is its own affair.

    Raises:
        TypeError: They are no numbers.
        ValueError: They are lists of several lengths.
    """
    if targets is None:
        return None
    return as_tensor("targets", targets if is_array(targets) else _from_list(targets))


def as_targets(targets: Tensor | None) -> Tensor | None:
    """Answers targets as class indices ``(B,)`` int64, or, of soft ones, distributions ``(B, C)`` over the classes.

    Integers of any width, booleans, whole numbers written as floats, a column ``(B, 1)`` and one-hot rows all name
    classes.

    Raises:
        TypeError: They are complex.
        ValueError: A number is no class, or a row is no distribution.
    """
    if targets is None:
        return None
    tensor = targets.detach()
    if tensor.is_complex():
        raise TypeError(f"targets have dtype {tensor.dtype}: expected class indices.")
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if tensor.ndim == 2 and tensor.numel() > 0:
        return _as_distributions(tensor)
    if tensor.ndim != 1:
        raise ValueError(
            f"targets have shape {tuple(tensor.shape)}: expected class indices (B,), or probabilities (B, C)."
        )
    if tensor.is_floating_point():
        wrong = tensor != tensor.round()  # NaN too
        if bool(wrong.any()):
            raise ValueError(
                f"targets hold {tensor[wrong][0].item():g}: expected class indices 0, 1, ..., or probabilities (B, C)."
            )
    return tensor.long()


def as_class_targets(targets: Tensor | None) -> Tensor | None:
    """Answers targets as class indices ``(B,)`` int64, as :func:`as_targets` reads them.

    Raises:
        TypeError: As :func:`as_targets`.
        ValueError: As :func:`as_targets`, or they are soft: a model can be trained on these, and not judged by them.
    """
    found = as_targets(targets)
    if found is not None and found.ndim > 1:
        raise ValueError(
            f"targets are probabilities of shape {tuple(found.shape)}: to evaluate takes one class an input, such as"
            " targets.argmax(1)."
        )
    return found


def _from_list(targets: Any) -> Any:
    if isinstance(targets, Sequence) and len(targets) > 0 and isinstance(targets[0], Tensor):
        return torch.stack([torch.as_tensor(target) for target in targets])
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise TypeError(f"targets are a {type(targets).__name__}: expected class indices, as a tensor, array or list.")
    try:
        return np.asarray(targets)
    except ValueError as error:
        raise ValueError("targets are lists of several lengths: expected one class index for each input.") from error


def _as_distributions(tensor: Tensor) -> Tensor:
    rows = tensor if tensor.is_floating_point() else tensor.float()
    if bool((rows < 0).any()) or not bool(torch.isfinite(rows).all()):
        raise ValueError(
            f"targets of shape {tuple(tensor.shape)} hold numbers below 0 or none at all: expected class indices (B,),"
            " or probabilities (B, C) whose rows sum to 1."
        )
    sums = rows.double().sum(1)
    wrong = (sums - 1).abs() > _ONE
    if bool(wrong.any()):
        raise ValueError(
            f"targets[{int(wrong.nonzero()[0])}] sums to {sums[wrong][0].item():g}: expected class indices (B,), or"
            " probabilities (B, C) whose rows sum to 1. Several classes for one input at a time (multi-hot) are not one"
            " distribution: use a model for each class."
        )
    largest, label = rows.max(1)
    return label if bool((largest == 1).all()) else rows
