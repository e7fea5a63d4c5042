import random

import numpy as np
import pytest
import torch

from hesitant.methods.random_state import derived_seed, random_state_kept, seed_all

CPU = torch.device("cpu")


def numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_all_generators_are_put_back_also_after_an_error():
    seed_all(1, [CPU])
    expected = numbers()
    seed_all(1, [CPU])
    with pytest.raises(ZeroDivisionError), random_state_kept([CPU]):
        sum(numbers()) / 0
    assert numbers() == expected


def test_a_seed_decides_what_is_drawn():
    with random_state_kept([CPU]):
        seed_all(5, [CPU])
        first = numbers()
        seed_all(5, [CPU])
        assert numbers() == first
        seed_all(6, [CPU])
        assert all(a != b for a, b in zip(numbers(), first, strict=True))


def test_derived_seeds_differ_and_can_seed_torch():
    seeds = [derived_seed(*numbers) for numbers in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**63,)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(3, 4) == derived_seed(3, 4)
