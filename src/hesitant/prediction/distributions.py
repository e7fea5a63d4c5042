"""Tensors whose rows are distributions over classes: checked on the way in, and exact where they saturate."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesitant.prediction.arguments import as_floating, as_tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "as_class_indices",
    "as_distributions",
    "as_log_probs",
    "entropy",
    "exact_log",
    "sharpened",
    "two_class_logits",
]


def _tolerance(dtype: torch.dtype) -> float:
    """How far from 1 a row may sum: 1e-4, or twice the machine epsilon of a half precision."""
    return max(1e-4, 2 * torch.finfo(dtype).eps)


def as_distributions(name: str, value: "Tensor | ArrayLike") -> Tensor:
    """`value` as `(..., B, C)` distributions in at least float32; rows of half precision are divided by their sums.

    Raises:
        TypeError: `value` is not floating.
        ValueError: a shape is wrong, a number is not in [0, 1] or not finite, or a row does not sum to 1.
    """
    given = as_tensor(name, value)
    probs = as_floating(name, given)
    if probs.dim() < 2 or probs.shape[-1] < 2:
        raise ValueError(
            f"{name} has shape {tuple(probs.shape)}, expected (B, C) with C >= 2: for a binary model's probability p "
            "of class 1, shape (B,), pass torch.stack([1 - p, p], dim=-1)"
        )
    slack = 2 * max(torch.finfo(given.dtype).eps, torch.finfo(torch.float32).eps)  # a mean of ones may round to above 1
    inside = (probs >= -slack) & (probs <= 1 + slack)  # False for NaN too
    if not bool(inside.all()):
        place = tuple((~inside).nonzero()[0].tolist())
        raise ValueError(
            f"{name}{list(place)} is {probs[place].item():.6g}, expected a probability in [0, 1]: if these are logits, "
            "use Prediction.from_logits(logits)"
        )
    allowed = _tolerance(given.dtype)
    sums = probs.sum(dim=-1)
    wrong = (sums - 1).abs() > allowed
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{name}{list(place)} sums to {sums[place].item():.6g}, expected 1 within {allowed:.2g}: divide by the row "
            "sums, or if these are logits, use Prediction.from_logits(logits)"
        )
    # A half precision's rows miss 1 by up to its epsilon: more than entropies and their differences can bear.
    return (probs if probs.dtype == given.dtype else probs / sums.unsqueeze(-1)).clamp(0, 1)


def as_log_probs(name: str, value: "Tensor | ArrayLike", probs: Tensor) -> Tensor:
    """`value` as the `(..., B, C)` logarithms of `probs`, clamped to at most 0; `exact_log` says what is sharpened.

    Raises:
        TypeError: `value` is not floating.
        ValueError: the shape differs from that of `probs`, or `exp(value)` differs from `probs`.
    """
    given = as_tensor(name, value, device=probs.device)
    log_probs = as_floating(name, given).to(probs.dtype)
    if log_probs.shape != probs.shape:
        raise ValueError(f"{name} has shape {tuple(log_probs.shape)}, expected {tuple(probs.shape)}, that of probs")
    # Half precision holds a log-probability of -10 to 1e-2 alone: its error is relative to the logarithm, not to p.
    allowed = _tolerance(given.dtype)
    wrong = ~((log_probs.exp() - probs).abs() <= allowed)
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{name}{list(place)} is {log_probs[place].item():.6g}, expected the logarithm of the probability "
            f"{probs[place].item():.6g}: pass torch.log_softmax(logits, dim=-1), or leave it out"
        )
    return sharpened(log_probs.clamp(max=0) if given.dtype.itemsize >= 4 else torch.log_softmax(log_probs, dim=-1))


def as_class_indices(name: str, value: "Tensor | ArrayLike", probs: Tensor) -> Tensor:
    """`value` as `(B,)` int64 class indices of the `(B, C)` `probs`, on their device.

    Raises:
        TypeError: `value` does not hold integers.
        ValueError: its length is not `B`, or an index is outside [0, C).
    """
    targets = as_tensor(name, value, device=probs.device)
    integers = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if not integers and targets.numel() > 0:  # an empty list has no dtype of its own
        raise TypeError(
            f"{name} has dtype {targets.dtype}, expected integers in [0, {probs.shape[1]}): pass {name}.long()"
        )
    if targets.shape != probs.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(targets.shape)}, expected ({probs.shape[0]},), one class index for each input: "
            f"squeeze it, or take {name}.argmax(dim=-1) of a one-hot encoding"
        )
    targets = targets.long()
    wrong = (targets < 0) | (targets >= probs.shape[1])
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}[{row}] is {int(targets[row])}, expected a class index in [0, {probs.shape[1]}): number the "
            "classes from 0, and leave out inputs without a class"
        )
    return targets


def exact_log(probs: Tensor) -> Tensor:
    """`log p` of `(..., C)` distributions, exact also where the largest probability rounds to 1.

    There `log p = log1p(-rest)`, `rest` the sum of the others: a probability near 1 holds it to 1e-7 in float32, its
    complement to 1e-45. Without this all saturated predictions would tie.
    """
    return sharpened(probs.log())


def entropy(probs: Tensor, log_probs: Tensor) -> Tensor:
    """`H(p) = -sum_c p_c log p_c` over the last dimension, in nats, with `0 log 0 = 0`."""
    # The least positive float64 has a logarithm of -745: what is clamped is multiplied by 0.
    return (probs * log_probs.clamp(min=-1e3)).sum(dim=-1).neg()


def two_class_logits(logits: Tensor) -> Tensor:
    """The single logit `z` of `(B,)` or `(B, 1)` as the two logits `[0, z]`; `(B, C)` as it is."""
    if logits.dim() == 2 and logits.shape[1] > 1:
        return logits
    logits = logits.reshape(-1)
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)  # (B, 2)


def sharpened(log_probs: Tensor) -> Tensor:
    """The logarithms of `(..., C)` distributions, the largest by what the others leave, where that is more exact."""
    largest, label = log_probs.max(dim=-1, keepdim=True)
    rest = log_probs.exp().scatter(-1, label, 0.0).sum(dim=-1, keepdim=True)
    # Only where the complement is the more exact of the two, and where the row sums to 1 but for rounding.
    rounding = 8 * torch.finfo(log_probs.dtype).eps
    better = (rest < 1e-3) & ((largest.exp() + rest - 1).abs() <= rounding)
    return log_probs.scatter(-1, label, torch.where(better, torch.log1p(-rest.clamp(max=0.5)), largest))
