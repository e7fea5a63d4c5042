import math

import pytest
import torch

from hesitant.methods.dropout.masks import Masks
from hesitant.methods.dropout.masks_ahead import MasksAhead

CPU = torch.device("cpu")


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.1, 0.2, 0.9, 0.01, 0.001, 1e-5])
def test_what_is_kept_is_kept_at_the_rate_that_is_said(rate):
    kept, keep_rate = Masks([(0, 1)]).draw((2_000_000,), rate, CPU)
    assert keep_rate == pytest.approx(1 - rate, rel=0, abs=1e-3 * min(rate, 1 - rate))
    error = math.sqrt(rate * (1 - rate) / kept.numel())
    assert abs(float(kept.double().mean()) - keep_rate) < 5 * error
    assert set(kept.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize(("rate", "bits"), [(0.5, 8), (0.25, 8), (0.1, 16), (0.2, 16), (1e-3, 32)])
def test_bits_are_as_few_as_the_rate_allows(rate, bits):
    keep_rate = Masks([(0,)]).draw((1,), rate, CPU).keep_rate
    assert keep_rate * 2**bits == int(keep_rate * 2**bits)
    assert bits == 8 or keep_rate * 2 ** (bits // 2) != int(keep_rate * 2 ** (bits // 2))


def test_a_pass_draws_the_same_whichever_others_it_is_drawn_with():
    together = Masks([(7, 0), (7, 1), (7, 2)])
    alone = [Masks([(7, sample)]) for sample in range(3)]
    for shape, rate in (((5, 3), 0.5), ((1,), 0.2), ((33,), 0.01), ((), 0.3)):
        kept = together.draw(shape, rate, CPU).kept
        assert kept.shape == (3, *shape)
        for sample, masks in enumerate(alone):
            assert torch.equal(kept[sample], masks.draw(shape, rate, CPU).kept[0])


def test_passes_and_draws_are_independent():
    masks = Masks([(0, sample) for sample in range(4)])
    drawn = torch.cat([masks.draw((100_000,), 0.5, CPU).kept for _ in range(2)]).double()  # (8, N)
    correlation = torch.corrcoef(drawn) - torch.eye(8, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(100_000)


def test_neighbours_in_a_mask_are_independent():
    kept = Masks([(3,)]).draw((400_000,), 0.2, CPU).kept[0].double() - 0.8
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs(float((kept[:-lag] * kept[lag:]).mean())) < 5 * 0.16 / math.sqrt(400_000)


def test_everything_can_be_dropped():
    kept, keep_rate = Masks([(0,)]).draw((10,), 1.0, CPU)
    assert not kept.any()
    assert keep_rate == 1  # what is zero may be divided by it


def test_the_shapes_drawn_are_noted():
    masks = Masks([(0,), (1,)])
    masks.draw((2, 3), 0.5, CPU)
    masks.draw([4], 0.5, CPU)
    assert masks.shapes == [(2, 3), (4,)]


def test_masks_ahead_are_those_of_each_pass_and_large_ones_are_not_held():
    seeds = [(7, sample) for sample in range(4)]
    ahead = MasksAhead(seeds)
    small, large = (5, 3), (2**20,)
    passes, alone = [ahead.of(index) for index in range(4)], [Masks([seed]) for seed in seeds]
    for shape in (small, large, small):
        for one, other in zip(passes, alone, strict=True):
            assert torch.equal(one.draw(shape, 0.2, CPU).kept, other.draw(shape, 0.2, CPU).kept)
    assert [mask.kept.shape for mask in ahead._kept] == [(4, *small)]
