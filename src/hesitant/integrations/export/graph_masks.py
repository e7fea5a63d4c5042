"""The dropout masks of a graph: drawn by its own operations, or given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hesitant.methods.dropout import Mask, Masks


class GraphMasks(Masks):
    """The masks of some passes, which the graph draws at each run, or is given.

    Args:
        given: In the order in which they are asked for, each ``(S, ...)`` booleans; None draws.
        num_samples: S, how many passes.

    Attributes:
        kept: The masks so far.
        rates: Of each, how much of it is dropped.
    """

    def __init__(self, given: Sequence[Tensor] | None, num_samples: int) -> None:
        super().__init__([])
        self._given, self._num_samples = given, num_samples
        self.kept: list[Tensor] = []
        self.rates: list[float] = []

    def draw(self, shape: Sequence[int], drop_rate: float, device: torch.device) -> Mask:
        """Answers a mask for each pass, ``(S, *shape)`` booleans: False with probability ``drop_rate``."""
        if self._given is not None:
            kept = self._given[len(self.kept)]
        else:
            kept = torch.rand((self._num_samples, *shape), device=device) < 1 - drop_rate
        self.kept.append(kept)
        self.rates.append(drop_rate)
        return Mask(kept, 1.0 if drop_rate >= 1 else 1 - drop_rate)
