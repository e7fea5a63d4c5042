"""sn_*: what a file says of a bounded layer and of what was recorded of it, whatever runs it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .case import Case, CaseError

Pair = tuple[int, int]


def recognises_dense(case: Case) -> bool:
    """Answers whether this is a case of a dense layer."""
    return case.has("kernel_before_build", "u_before_build") or _is_zero_kernel(case)


def kind_of_dense(case: Case) -> Literal["zero kernel", "training", "calls"]:
    """Answers what was recorded of a dense layer."""
    if _is_zero_kernel(case):
        return "zero kernel"
    if case.has("X", "Y"):
        return "training"
    if case.has("calls"):
        return "calls"
    raise CaseError(f"{case.path} is neither a series of calls nor a training: {sorted(case.keys)}.")


def _is_zero_kernel(case: Case) -> bool:
    return case.has("u_after_build", "kernel_after_call", "u_after_call") and not case.has("kernel_before_build")


def recognises_convolution(case: Case) -> bool:
    """Answers whether this is a case of a convolution."""
    return case.has("kernel_before", "u_before", "v_before", "calls")


@dataclass(frozen=True)
class Convolution:
    """The convolution that a file tells of."""

    strides: Pair
    dilation: Pair
    padding: str  # "same" or "valid"
    calls: list[int]  # after which something was recorded


def recorded_convolution(case: Case) -> Convolution:
    """Answers what a file says of its convolution, once all that it says agrees."""
    kernel, x = case.array("kernel_before"), case.array("x")
    if kernel.ndim != 4 or _pair(case, "kernel_size") != kernel.shape[:2]:
        raise CaseError(f"{case.path}: kernel_size={case.meta('kernel_size')}, but kernels are {kernel.shape}.")
    if tuple(case.meta("input_shape")) != x.shape:
        raise CaseError(f"{case.path}: input_shape={case.meta('input_shape')}, but x is {x.shape}.")
    if case.meta("padding") not in ("same", "valid"):
        raise CaseError(f"{case.path}: padding={case.meta('padding')!r} is not known: expected 'same' or 'valid'.")
    if case.meta("mode") not in ("eager", "tf.function"):
        raise CaseError(f"{case.path}: mode={case.meta('mode')!r} is not known: expected 'eager' or 'tf.function'.")
    calls = [int(call) for call in case.array("calls")]
    if case.meta("calls") != calls or not calls:
        raise CaseError(f"{case.path}: calls={case.meta('calls')} in meta and {calls} in the arrays.")
    return Convolution(_pair(case, "strides"), _pair(case, "dilation_rate"), case.meta("padding"), calls)


def _pair(case: Case, key: str) -> Pair:
    value = np.broadcast_to(np.asarray(case.meta(key)), (2,))
    return int(value[0]), int(value[1])
