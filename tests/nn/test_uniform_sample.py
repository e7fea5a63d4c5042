"""Samples that are merged, parted and reduced stay uniform samples of what is left."""

import pytest
import torch
from torch import Tensor

from hesitant.nn import UniformSample

ROWS = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
TRIALS = 600


def sample(rows: Tensor, seed: int, limit: int = 8) -> UniformSample:
    answer = UniformSample(limit, seed)
    for part in rows.split(3):
        answer.add(part)
    return answer


def places(kept: UniformSample) -> list[int]:
    return torch.cdist(kept.kept()[0], ROWS).argmin(1).tolist()


def assert_alike(counts: Tensor) -> None:
    """Each was drawn as often, but for chance: chi squared within four standard deviations of its mean."""
    expected = counts.mean()
    assert float(((counts - expected) ** 2 / expected).sum()) < len(counts) + 4 * (2 * len(counts)) ** 0.5


def test_a_sample_of_uneven_samples_is_uniform() -> None:
    counts = torch.zeros(40)
    for seed in range(TRIALS):
        merged = UniformSample(8)
        for place, rows in enumerate(ROWS.tensor_split([2, 30])):
            merged.absorb(sample(rows, 3 * seed + place))
        assert len(places(merged)) == 8
        counts[places(merged)] += 1
    assert_alike(counts)


@pytest.mark.parametrize("turned_round", [False, True])
def test_what_is_taken_out_leaves_a_uniform_sample_of_the_rest(turned_round: bool) -> None:
    counts = torch.zeros(40)
    for seed in range(TRIALS):
        kept = sample(ROWS[:30], seed)
        kept.discard(ROWS[:15])
        others = sample(ROWS[30:], TRIALS + seed)
        if turned_round:
            kept, others = others, kept
        kept.absorb(others)  # of the ten no more may stay than of the fifteen
        assert len(places(kept)) <= 8
        counts[places(kept)] += 1
    assert counts[:15].sum() == 0
    assert_alike(counts[15:])


def test_a_window_that_slides_is_uniform() -> None:
    counts = torch.zeros(40)
    for seed in range(TRIALS):
        days = [sample(day, 4 * seed + place) for place, day in enumerate(ROWS.split(10))]
        window = UniformSample(8)
        for place, day in enumerate(days):
            window.absorb(day)
            if place >= 2:
                window.part_with(days[place - 2])
        if len(window):
            counts[places(window)] += 1
    assert counts[:20].sum() == 0
    assert_alike(counts[20:])


def test_rows_that_are_alike_leave_one_for_one() -> None:
    kept = sample(torch.cat([ROWS[:1], ROWS[:1], ROWS[1:4]]), 0)
    kept.discard(ROWS[:1])
    assert sorted(places(kept)) == [0, 1, 2, 3]
    kept.discard(2 * torch.cat([ROWS[:1], ROWS[:1], ROWS[10:11]]))  # directions count; the others are not there
    assert sorted(places(kept)) == [1, 2, 3]
    kept.discard(ROWS[:4])
    assert len(kept) == 0
    kept.discard(ROWS[:4])
    with pytest.raises(ValueError, match="no rows"):
        kept.kept()
