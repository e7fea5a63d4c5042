"""Arguments as tensors, checked: what is wrong with one is said by its name."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["as_finite", "as_floating", "as_part", "as_rows", "as_tensor"]


def as_tensor(name: str, value: "Tensor | ArrayLike", *, device: torch.device | None = None) -> Tensor:
    """`value` as a detached tensor on `device`; arrays and lists are copied.

    Raises:
        TypeError: `value` is nothing that a tensor can be made of.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device)
    try:
        return torch.tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is {type(value).__name__}, expected a tensor: pass torch.as_tensor({name})") from error


def as_floating(name: str, value: "Tensor | ArrayLike", *, device: torch.device | None = None) -> Tensor:
    """`value` as a floating tensor of at least float32.

    Raises:
        TypeError: `value` holds integers, booleans or complex numbers.
    """
    tensor = as_tensor(name, value, device=device)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected a floating dtype: pass {name}.float()")
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def as_finite(
    name: str,
    value: "Tensor | ArrayLike",
    shape: tuple[int, ...],
    *,
    like: Tensor,
    minimum: float | None = None,
) -> Tensor:
    """`value` as finite numbers of `shape`, of the device and dtype of `like`, none below `minimum`.

    Raises:
        TypeError: `value` is not floating.
        ValueError: the shape differs, or a number is not finite or below `minimum`.
    """
    tensor = as_floating(name, value, device=like.device).to(like.dtype)
    if tensor.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}: pass one entry for each input"
        )
    floating = torch.finfo(tensor.dtype)
    least = floating.min if minimum is None else minimum
    if tensor.numel() > 0:
        low, high = torch.stack(torch.aminmax(tensor)).tolist()  # one pass, where a mask takes several; NaN is in both
        if not (low >= least and high <= floating.max):
            wrong = ~((tensor >= least) & (tensor <= floating.max))
            place = tuple(wrong.nonzero()[0].tolist())
            raise ValueError(
                f"{name}{list(place)} is {tensor[place].item()}, expected a finite number"
                f"{'' if minimum is None else f' of at least {minimum:g}'}: look for the input or weight that made it"
            )
    return tensor


def as_part(
    name: str, value: Tensor | None, shape: tuple[int, ...], *, like: Tensor, minimum: float | None = None
) -> Tensor | None:
    """`as_finite` of a field that a prediction may lack."""
    return None if value is None else as_finite(name, value, shape, like=like, minimum=minimum)


def as_rows(index: "int | slice | Tensor | ArrayLike", length: int, device: torch.device) -> Tensor | slice:
    """What chooses the inputs that `index` names, of `length` ones: a slice, a boolean mask, or 1-D int64 indices.

    Raises:
        IndexError: `index` is out of range, has no such form, or is a mask of another length.
    """
    if isinstance(index, slice):
        start, stop, step = index.indices(length)
        return index if step > 0 else torch.arange(start, stop, step, device=device)
    if isinstance(index, tuple):
        raise IndexError(f"index {index} has several parts, expected one: a Prediction is indexed by its inputs alone")
    rows = as_tensor("index", index, device=device)
    if rows.numel() == 0 and rows.dtype != torch.bool:
        rows = rows.long()  # an empty list has no dtype of its own
    if rows.dtype == torch.bool:
        if rows.shape != (length,):
            raise IndexError(
                f"the mask has shape {tuple(rows.shape)}, expected ({length},): one boolean for each input"
            )
        return rows
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.uint8 or rows.dim() > 1:
        raise IndexError(
            f"index has dtype {rows.dtype} and shape {tuple(rows.shape)}, expected 1-D integers, a boolean mask, a "
            "slice or an integer: convert with .long() or .bool()"
        )
    rows = rows.long().reshape(-1)
    outside = (rows < -length) | (rows >= length)
    if bool(outside.any()):
        raise IndexError(f"index {int(rows[outside][0])} is out of range for a Prediction of {length} inputs")
    return rows
