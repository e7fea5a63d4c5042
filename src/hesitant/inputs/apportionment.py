"""Sharing out whole things in given proportions: the sizes of parts, and what each part gets of every class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["shared_out", "sizes_of"]


def sizes_of(fractions: Sequence[float], total: int) -> list[int]:
    """Answers whole numbers that sum to `total`, in these proportions: rounded by the largest remainders.

    Each is its exact share rounded up or down; of equal remainders the earlier is rounded up.
    """
    exact = np.asarray(fractions, np.float64) / sum(fractions) * total
    # 0.29 * 100 is 28.999999999999996: what misses a whole number by rounding alone is that number.
    sizes = np.floor(exact + 1e-9 * np.maximum(exact, 1)).astype(np.int64)
    first = np.argsort(sizes - exact, kind="stable")
    sizes[first[: total - int(sizes.sum())]] += 1
    return [int(size) for size in sizes]


def shared_out(
    classes: NDArray[np.int64],  # (C,) how many there are of each
    parts: NDArray[np.int64],  # (K,) how many each part holds, the same sum
    ties: NDArray[np.uint64],  # (C, K)
) -> NDArray[np.int64]:
    """Answers how many of each class go to each part `(C, K)`.

    Rows sum to `classes`, columns to `parts`, and each number is its exact share, `classes * parts / sum`, rounded up
    or down. Shares with the largest remainders are rounded up first, among equal ones those of the smallest `ties`;
    what then stands in the way of the sums is moved.

    That it can always be done: the remainders themselves are a flow that meets all sums, and where capacities are whole
    numbers a flow of fractions can be made one of whole numbers (Bacharach 1966, "Matrix Rounding Problems", Management
    Science).
    """
    products, total = np.outer(classes, parts), int(parts.sum())
    table, remainders = products // total, products % total
    missing_in_class = classes - table.sum(1)
    missing_in_part = parts - table.sum(0)
    may = remainders > 0  # be rounded up and has not been
    up = np.zeros_like(may)
    for place in np.lexsort((ties.ravel(), -remainders.ravel())):
        c, k = int(place) // len(parts), int(place) % len(parts)
        if may[c, k] and missing_in_class[c] and missing_in_part[k]:
            may[c, k], up[c, k] = False, True
            missing_in_class[c] -= 1
            missing_in_part[k] -= 1
    for unserved in np.flatnonzero(missing_in_class):
        for _ in range(missing_in_class[unserved]):
            missing_in_part[_give(int(unserved), may, up, missing_in_part)] -= 1
    return table + up


def _give(c: int, may: NDArray[np.bool_], up: NDArray[np.bool_], missing_in_part: NDArray[np.int64]) -> int:
    """Rounds one more share of class `c` up and answers the part that has one more for it, others having moved."""
    came_from: dict[int, tuple[int, int | None]] = {k: (c, None) for k in _places(may[c])}
    waiting = list(came_from)
    while missing_in_part[waiting[0]] == 0:
        full = waiting.pop(0)
        for other in _places(up[:, full]):  # who could go elsewhere
            for k in _places(may[other]):
                if k not in came_from:
                    came_from[k] = (other, full)
                    waiting.append(k)
    last = k = waiting[0]
    while True:
        row, before = came_from[k]
        may[row, k], up[row, k] = False, True
        if before is None:
            return last
        may[row, before], up[row, before] = True, False
        k = before


def _places(mask: NDArray[np.bool_]) -> list[int]:
    return [int(place) for place in np.flatnonzero(mask)]
