"""Draws dropout masks at a tenth of the cost of Bernoulli draws, where the keep rate that they realise is known."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hesitant.methods.random_state import PassSeed, derived_seed, seed_sequence

_FEW_WORDS = 512  # of which a generator gives few faster raw
_EXACT_ENOUGH = 1e-3  # relative to the rarer of keeping and dropping


class Mask(NamedTuple):
    """What is kept, and how often: what stays is to be divided by ``keep_rate``, and the mean is that of the input."""

    kept: Tensor
    keep_rate: float


class Masks:
    """The dropout masks of some passes: each pass has a stream of its own, whichever others it is drawn with.

    On the CPU a mask compares random bits of a fast generator (SFC64) with a threshold, 16 bits a number or as many as
    the rate asks for; elsewhere the device draws it.

    Args:
        seeds: Of each pass: numbers that are not negative, or a seed made of them.

    Attributes:
        shapes: Of the masks drawn so far.
    """

    def __init__(self, seeds: "Sequence[tuple[int, ...] | PassSeed]") -> None:
        self._seeds = list(seeds)
        sequences: Iterable[Any] = (s if isinstance(s, PassSeed) else seed_sequence(*s) for s in seeds)
        self._streams = [np.random.Generator(np.random.SFC64(sequence)) for sequence in sequences]
        self.shapes: list[tuple[int, ...]] = []
        self._generators: list[torch.Generator] = []
        self._others: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device) -> torch.Generator:
        """Answers what draws on a device whatever is no dropout mask: of all passes together."""
        if device not in self._others:
            self._others[device] = generator_of(self._seeds[0], device)
        return self._others[device]

    def draw(self, shape: Sequence[int], drop_rate: float, device: torch.device) -> Mask:
        """Answers a mask for each pass, ``(S, *shape)`` int8: 0 with probability ``drop_rate`` and else 1."""
        shape = tuple(shape)
        self.shapes.append(shape)
        all_shape = (len(self._streams), *shape)
        if drop_rate >= 1:
            return Mask(torch.zeros(all_shape, dtype=torch.int8, device=device), 1.0)
        if device.type != "cpu":
            return self._draw_on(device, all_shape, drop_rate)
        width, threshold = _threshold(drop_rate)
        numbers = math.prod(shape)
        num_words = -(-numbers * width // 64)
        if num_words <= _FEW_WORDS:
            words = np.empty((len(self._streams), num_words), dtype=np.uint64)
            for stream, row in zip(self._streams, words, strict=True):
                row[:] = stream.bit_generator.random_raw(num_words)
            bits = words.view(f"u{width // 8}")[:, :numbers]
            kept = np.less(bits, bits.dtype.type(threshold))
        else:
            kept = np.empty((len(self._streams), numbers), dtype=np.bool_)
            for stream, row in zip(self._streams, kept, strict=True):
                words = stream.integers(0, 2**64 - 1, size=num_words, dtype=np.uint64, endpoint=True)
                bits = words.view(f"u{width // 8}")[:numbers]
                np.less(bits, bits.dtype.type(threshold), out=row)  # 8 times as fast as torch compares
        return Mask(torch.from_numpy(kept.view(np.int8)).view(all_shape), threshold / 2.0**width)

    def _draw_on(self, device: torch.device, all_shape: tuple[int, ...], drop_rate: float) -> Mask:
        if not self._generators:
            self._generators = [torch.Generator(device).manual_seed(_device_seed(s)) for s in self._seeds]
        kept = torch.empty(all_shape, dtype=torch.int8, device=device)
        for generator, row in zip(self._generators, kept, strict=True):
            row.bernoulli_(1 - drop_rate, generator=generator)
        return Mask(kept, 1 - drop_rate)


def generator_of(seed: tuple[int, ...] | PassSeed, device: torch.device) -> torch.Generator:
    """Answers what draws on a device whatever is no dropout mask, of a pass or of several from this one on."""
    return torch.Generator(device).manual_seed(_device_seed(seed) ^ 1)


def _device_seed(seed: tuple[int, ...] | PassSeed) -> int:
    return seed.device_seed if isinstance(seed, PassSeed) else derived_seed(*seed)


@lru_cache(maxsize=256)
def _threshold(drop_rate: float) -> tuple[int, int]:
    """Answers how many random bits a number needs, and below which number of them it is kept."""
    for width in (8, 16, 32):
        threshold = round((1 - drop_rate) * 2**width)
        error = abs(threshold / 2**width - (1 - drop_rate))
        if 0 < threshold < 2**width and error <= _EXACT_ENOUGH * min(drop_rate, 1 - drop_rate):
            return width, threshold
    # Rarer than once in 4e6: the nearest rate that 32 bits can hold.
    return 32, min(max(round((1 - drop_rate) * 2**32), 1), 2**32 - 1)
