"""A uniform sample of bounded size, of rows that come in batches and are too many to keep."""

import math

import torch
from torch import Tensor

_ALIKE = 1e-3  # of a row's length: what a row that is computed again, among others, may differ by
_NUMBERS_AT_ONCE = 2**24


class UniformSample:
    """Keeps at most ``limit`` of the rows that it is given, each with the same chance, whatever their number.

    Every row draws a key, and those of the smallest keys stay (Vitter 1985, "Random Sampling with a Reservoir", ACM
    TOMS, in the form that merges). At most ``2 limit`` rows and one batch are held at a time. As long as there are no
    more than ``limit``, all of them are kept, in their order. What is taken out again leaves its place empty until
    further rows come: what stays is a uniform sample of the rest.

    Args:
        limit: How many rows to keep.
        seed: Of the keys. Samples that are to be merged want different ones.
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        self.limit = limit
        self._generator = torch.Generator().manual_seed(seed)
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._held = 0
        self.bound = math.inf  # of all rows those stay whose key is at most this

    def __len__(self) -> int:
        """How many rows it holds at present."""
        return self._held

    def add(self, rows: Tensor) -> None:
        """Gives it rows ``(n, D)``."""
        self.merge(rows.detach(), torch.rand(len(rows), dtype=torch.float64, generator=self._generator))

    def merge(self, rows: Tensor, keys: Tensor) -> None:
        """Gives it rows ``(n, D)`` that have drawn their keys ``(n,)``, on the CPU, elsewhere."""
        chosen = keys <= self.bound
        if not bool(chosen.all()):
            rows, keys = rows[chosen.to(rows.device)], keys[chosen]
        rows = rows.to(self._parts[0][0].device, copy=True) if self._parts else rows.clone()
        self._parts.append((rows, keys))
        self._held += len(rows)
        if self._held > 2 * self.limit:
            self._shrink()

    def absorb(self, other: "UniformSample") -> None:
        """Gives it what another sample keeps: it is then one of the rows of both."""
        if len(other):
            self.merge(*other.kept())
        self._lower_bound(other.bound)

    def part_with(self, other: "UniformSample") -> None:
        """Takes out what an absorbed sample has brought. The other's keys tell which rows."""
        if len(self) and len(other):
            (rows, keys), (_, gone) = self.kept(), other.kept()
            self._hold(rows, keys, ~torch.isin(keys, gone))

    def discard(self, rows: Tensor) -> None:
        """Takes out those of the rows ``(n, D)`` that it keeps, each once, and their directions alone count."""
        if len(self) == 0:
            return
        held, keys = self.kept()
        directions = torch.nn.functional.normalize(held.float(), dim=-1)
        wanted = torch.nn.functional.normalize(rows.detach().to(held.device).float(), dim=-1)
        stays = torch.ones(len(held), dtype=torch.bool, device=held.device)
        for part in wanted.split(max(1, _NUMBERS_AT_ONCE // len(held))):
            for row, nearest in zip(part, (part @ directions.T).argmax(1).tolist(), strict=True):
                if not stays[nearest]:  # it has gone for another row, which is alike
                    nearest = int((directions @ row).masked_fill(~stays, -math.inf).argmax())
                if float(torch.linalg.vector_norm(directions[nearest] - row)) <= _ALIKE:
                    stays[nearest] = False
        self._hold(held, keys, stays.cpu())

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

    def _lower_bound(self, bound: float) -> None:
        if bound < self.bound:
            self.bound = bound
            if len(self):
                rows, keys = self.kept()
                self._hold(rows, keys, keys <= bound)

    def _hold(self, rows: Tensor, keys: Tensor, chosen: Tensor) -> None:
        self._parts = [(rows[chosen.to(rows.device)], keys[chosen])]
        self._held = len(self._parts[0][1])

    def _shrink(self) -> None:
        rows, keys = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        if len(keys) > self.limit:
            chosen = keys.topk(self.limit, largest=False).indices.sort().values
            rows, keys = rows[chosen.to(rows.device)], keys[chosen]
            self.bound = float(keys.max())
        self._parts, self._held = [(rows, keys)], len(rows)
