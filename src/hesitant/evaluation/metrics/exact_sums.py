"""Sums without rounding: of the same numbers one sum, in whatever order, batches, threads or workers they come."""

import torch
from torch import Tensor

# Every float64 is a whole multiple of 2^-1126, at the 53 bits that its mantissa is read with.
_UNIT = 1126
_HALF = 26


class ExactSums:
    """The sums of float64 numbers in bins, each an integer of any length: 300 bytes a bin, however many are added.

    The manner of Kulisch's long accumulator (Kulisch 2013, "Computer Arithmetic and Validity").

    Args:
        num_bins: K.
    """

    def __init__(self, num_bins: int = 1) -> None:
        self._sums = [0] * num_bins
        self._infinite = [0] * num_bins

    def add(self, values: Tensor, places: Tensor | None = None) -> "ExactSums":
        """Adds ``(n,)`` numbers, none of them NaN or -inf, each to the bin of its place ``(n,)``; answers itself."""
        values = values.double().cpu()
        places = torch.zeros(len(values), dtype=torch.int64) if places is None else places
        infinite = torch.isinf(values)
        if bool(infinite.any()):
            for place in places[infinite].tolist():
                self._infinite[place] += 1
            values, places = values[~infinite], places[~infinite]
        fractions, exponents = torch.frexp(values)  # of at most 53 bits, in (-1, 1)
        whole = (fractions * 2.0**53).long()
        shifts, which = torch.unique(exponents + (_UNIT - 53), return_inverse=True)
        # Of two halves no int64 overflows below 2^36 numbers.
        cells = places * len(shifts) + which
        parts = torch.zeros(2, len(self._sums) * len(shifts), dtype=torch.int64)
        parts[0].index_add_(0, cells, whole >> _HALF)
        parts[1].index_add_(0, cells, whole & (2**_HALF - 1))
        for cell, (high, low) in enumerate(parts.T.tolist()):
            if high or low:
                self._sums[cell // len(shifts)] += ((high << _HALF) + low) << int(shifts[cell % len(shifts)])
        return self

    def merge(self, other: "ExactSums") -> None:
        """Adds what another has summed."""
        self._sums = [mine + its for mine, its in zip(self._sums, other._sums, strict=True)]
        self._infinite = [mine + its for mine, its in zip(self._infinite, other._infinite, strict=True)]

    def mean(self, count: int) -> float:
        """Answers the sum of all bins divided by a number, rounded once."""
        return float("inf") if any(self._infinite) else sum(self._sums) / (count << _UNIT)

    def mean_gap(self, counts: list[int], count: int) -> float:
        """Answers ``sum_k |sum_k - counts_k|`` divided by a number, rounded once."""
        gaps = (abs(total - (number << _UNIT)) for total, number in zip(self._sums, counts, strict=True))
        return sum(gaps) / (count << _UNIT)
