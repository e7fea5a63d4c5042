"""The masks of passes that run apart, drawn for all of them at once: a tenth of what each draw by itself would cost."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hesitant.methods.dropout.masks import Mask, Masks
from hesitant.methods.random_state import PassSeed

_MOST_AHEAD = 2**18  # numbers of a mask for all passes: of larger ones a pass draws its own as fast

_Asked = tuple[tuple[int, ...], float, torch.device]  # shape, rate and place of a draw


class MasksAhead:
    """The masks of some passes, drawn for all of them when the first asks.

    Args:
        seeds: Of each pass.
    """

    def __init__(self, seeds: "Sequence[tuple[int, ...] | PassSeed]") -> None:
        self.seeds = seeds
        self._masks: Masks | None = None
        self._asked: list[_Asked] = []
        self._kept: list[Mask] = []
        self._noise: dict[tuple[int, torch.dtype], Tensor] = {}
        self._noises: dict[tuple[int, torch.dtype], Sequence[Tensor]] = {}

    def of(self, *indices: int) -> "MasksOfSome":
        """Answers the masks of some of the passes, which draw what they would without the others."""
        return MasksOfSome(self, indices)

    def kept(self, draw: int, asked: _Asked) -> Mask | None:
        """Answers the masks of all passes for a draw, by its number.

        None where they are large, or the first pass asked for others.
        """
        if math.prod(asked[0]) * len(self.seeds) > _MOST_AHEAD:
            return None
        if draw == len(self._asked):
            self._masks = self._masks or Masks(self.seeds)
            self._kept.append(self._masks.draw(*asked))
            self._asked.append(asked)
        return self._kept[draw] if self._asked[draw] == asked else None

    def noise(self, draw: int, dtype: torch.dtype) -> Tensor:
        """Answers what the passes' inputs are to be multiplied by, ``(S, ...)``: 0, or one over the keep rate."""
        if (draw, dtype) not in self._noise:
            kept, keep_rate = self._kept[draw]
            self._noise[draw, dtype] = kept.to(dtype).mul_(1 / keep_rate)
        return self._noise[draw, dtype]

    def noises(self, draw: int, dtype: torch.dtype) -> Sequence[Tensor]:
        """Answers the same of each pass."""
        if (draw, dtype) not in self._noises:
            self._noises[draw, dtype] = self.noise(draw, dtype).unbind(0)
        return self._noises[draw, dtype]


class MasksOfSome(Masks):
    """The masks of some passes among others; see :class:`MasksAhead`."""

    def __init__(self, ahead: MasksAhead, indices: Sequence[int]) -> None:
        self._ahead, self._indices = ahead, indices
        self._all = len(indices) == len(ahead.seeds)
        self._seeds = [ahead.seeds[index] for index in indices]
        self._others = {}
        self._asked: list[_Asked] = []
        self._alone: Masks | None = None

    def draw(self, shape: Sequence[int], drop_rate: float, device: torch.device) -> Mask:
        """Answers a mask for each pass, ``(s, *shape)``."""
        asked = (tuple(shape), drop_rate, device)
        found = self._found(asked)
        if found is None:
            return self._drawn_alone(asked)
        kept = self._ahead.kept(found, asked)
        assert kept is not None
        return Mask(kept.kept[list(self._indices)], kept.keep_rate)

    def noise(self, x: Tensor, drop_rate: float) -> Tensor:
        """Answers what a tensor of each pass ``(...)`` is to be multiplied by, ``(s, ...)``, to be read only."""
        asked = (x.shape, drop_rate, x.device)
        found = self._found(asked)
        if found is None:
            kept, keep_rate = self._drawn_alone(asked)
            return kept.to(x.dtype).mul_(1 / keep_rate)
        noise = self._ahead.noise(found, x.dtype)
        return noise if self._all else noise[list(self._indices)]

    def dropped(self, x: Tensor, drop_rate: float) -> Tensor:
        """Answers the dropout of a tensor, where this is one pass."""
        asked = (x.shape, drop_rate, x.device)
        found = self._found(asked)
        if found is not None:
            return x * self._ahead.noises(found, x.dtype)[self._indices[0]]
        kept, keep_rate = self._drawn_alone(asked)
        return kept[0].to(x.dtype).mul_(x).mul_(1 / keep_rate)

    def _found(self, asked: _Asked) -> int | None:
        """Answers the number of a draw that is made ahead."""
        draw = len(self._asked)
        if self._alone is not None or self._ahead.kept(draw, asked) is None:
            return None
        self._asked.append(asked)
        return draw

    def _drawn_alone(self, asked: _Asked) -> Mask:
        if self._alone is None:
            self._alone = Masks(self._seeds)  # draws anew what it has drawn, and goes its own way from here
            for before in self._asked:
                self._alone.draw(*before)
        return self._alone.draw(*asked)
