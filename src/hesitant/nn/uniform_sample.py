"""A uniform sample of bounded size, of rows that come in batches and are too many to keep."""

import math

import torch
from torch import Tensor


class UniformSample:
    """Keeps at most ``limit`` of the rows that it is given, each with the same chance, whatever their number.

    Every row draws a key, and those of the smallest keys stay (Vitter 1985, "Random Sampling with a Reservoir", ACM
    TOMS, in the form that merges). At most ``2 limit`` rows and one batch are held at a time. As long as there are no
    more than ``limit``, all of them are kept, in their order.

    Args:
        limit: How many rows to keep.
        seed: Of the keys.
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        self.limit = limit
        self._generator = torch.Generator().manual_seed(seed)
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._held = 0
        self._bound = math.inf  # no row of a greater key can stay

    def __len__(self) -> int:
        """How many rows it holds at present."""
        return self._held

    def add(self, rows: Tensor) -> None:
        """Gives it rows ``(n, D)``."""
        self.merge(rows.detach(), torch.rand(len(rows), dtype=torch.float64, generator=self._generator))

    def merge(self, rows: Tensor, keys: Tensor) -> None:
        """Gives it rows ``(n, D)`` that have drawn their keys ``(n,)``, on the CPU, elsewhere."""
        chosen = keys < self._bound
        if not bool(chosen.all()):
            rows, keys = rows[chosen.to(rows.device)], keys[chosen]
        self._parts.append((rows.clone(), keys))
        self._held += len(rows)
        if self._held > 2 * self.limit:
            self._shrink()

    def kept(self) -> tuple[Tensor, Tensor]:
        """Answers the rows that stay ``(n, D)``, and their keys ``(n,)``.

        Raises:
            ValueError: It was given none.
        """
        if self._held == 0:
            raise ValueError("the sample was given no rows: expected at least one.")
        if self._held > self.limit or len(self._parts) > 1:
            self._shrink()
        return self._parts[0]

    def _shrink(self) -> None:
        rows, keys = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        if len(keys) > self.limit:
            chosen = keys.topk(self.limit, largest=False).indices.sort().values
            rows, keys = rows[chosen.to(rows.device)], keys[chosen]
            self._bound = float(keys.max())
        self._parts, self._held = [(rows, keys)], len(rows)
