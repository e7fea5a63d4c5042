import math
import random
from fractions import Fraction

import pytest
import torch

from hesitant.evaluation.metrics.exact_sums import ExactSums

DRAW = random.Random(0)
NUMBERS = {
    "of all sizes": [math.ldexp(DRAW.random() - 0.3, DRAW.randint(-1074, 1000)) for _ in range(900)],
    "that cancel": [1e300, 1.0, -1e300, 1e-300, -1.0],
    "subnormal": [5e-324, -5e-324, 5e-324, 1e-310],
    "tenths": [0.1] * 10,
    "zeros": [0.0, -0.0],
    "the largest": [1.7e308, 1.7e308, -1.7e308],
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_sums_are_those_of_fractions_in_any_order_and_parts(name):
    numbers = NUMBERS[name]
    exact = float(sum(map(Fraction, numbers)) / len(numbers))
    for seed in range(3):
        shuffled = random.Random(seed).sample(numbers, len(numbers))
        cut = random.Random(seed).randint(0, len(numbers))
        parts = [ExactSums().add(torch.tensor(part, dtype=torch.float64)) for part in (shuffled[:cut], shuffled[cut:])]
        parts[0].merge(parts[1])
        assert parts[0].mean(len(numbers)) == exact


def test_each_bin_has_a_sum_of_its_own():
    values = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.randint(7, (500,), generator=torch.Generator().manual_seed(1))
    counts = [11] * 7
    gaps = [abs(sum(map(Fraction, values[places == place].tolist())) - 11) for place in range(7)]
    assert ExactSums(7).add(values, places).mean_gap(counts, 500) == float(sum(gaps) / 500)


def test_an_infinite_number_makes_the_mean_infinite():
    sums = ExactSums(2).add(torch.tensor([1.0, math.inf]), torch.tensor([0, 1]))
    other = ExactSums(2)
    other.merge(sums)
    assert sums.mean(2) == other.mean(2) == math.inf


def test_many_numbers_do_not_overflow():
    sums = ExactSums()
    big = torch.full((2**16,), math.nextafter(2.0, 0), dtype=torch.float64)
    for _ in range(20):
        sums.add(big)
    assert sums.mean(20 * 2**16) == math.nextafter(2.0, 0)
