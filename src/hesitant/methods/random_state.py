"""Seeds the global generators for code that draws from them, and puts them back."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence

from hesitant.nn import run_eagerly


@contextmanager
def random_state_kept(devices: Iterable[torch.device]) -> Iterator[None]:
    """Puts the global generators of Python, NumPy, torch's CPU and these devices back afterwards."""
    python, array = random.getstate(), np.random.get_state()
    accelerators = [device for device in devices if device.type != "cpu"]
    kind = accelerators[0].type if accelerators else "cuda"
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in accelerators], device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def seed_all(seed: int, devices: Iterable[torch.device]) -> None:
    """Seeds the global generators of Python, NumPy, torch's CPU and these devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type != "cpu":
            module = torch.get_device_module(device)
            with module.device(device):
                module.manual_seed(seed)


def seed_sequence(*numbers: int) -> np.random.SeedSequence:
    """Answers what follows from numbers that are not negative; one number more, if it is 0, makes another sequence."""
    return np.random.SeedSequence(numbers[0], spawn_key=numbers[1:])


@run_eagerly
def derived_seed(*numbers: int) -> int:
    """Answers a seed below 2**63 that follows from numbers that are not negative, and is as good as independent."""
    return int(seed_sequence(*numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def require_seed(seed: Any) -> None:
    """Raises ValueError for what is no integer from 0 to 2**63 - 1."""
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r} is no integer from 0 to 2**63 - 1.")


class PassSeed(ISeedSequence):
    """The seed of one pass, a row of numbers that are drawn for many passes at once: a tenth of the cost of their own.

    Args:
        words: Three of 64 random bits.
        device_seed: Below 2**63.

    Attributes:
        device_seed: For a generator of torch.
    """

    def __init__(self, words: "np.typing.NDArray[np.uint64]", device_seed: int) -> None:
        self._words, self.device_seed = words, device_seed

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> "np.typing.NDArray[Any]":
        """Answers the words that seed a generator of arrays."""
        return self._words[:n_words].astype(dtype, copy=False)


@lru_cache(maxsize=32)
def pass_seeds(num_passes: int, *numbers: int) -> tuple[PassSeed, ...]:
    """Answers the seeds of passes, which follow from numbers that are not negative; the first do not depend on S."""
    words: Any = seed_sequence(*numbers).generate_state(4 * num_passes, np.uint64)
    rows = words.reshape(num_passes, 4)
    device_seeds = (rows[:, 3] >> np.uint64(1)).tolist()
    return tuple(PassSeed(row[:3], device_seed) for row, device_seed in zip(rows, device_seeds, strict=True))
