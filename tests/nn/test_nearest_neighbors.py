import copy

import pytest
import torch
from torch import Tensor

from hesitant.nn import NearestNeighbors, UniformSample


def features(rows: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def fitted(known: Tensor, **options: int) -> NearestNeighbors:
    neighbors = NearestNeighbors(known.shape[1], **options)
    neighbors.replace(known)
    return neighbors


def plainly(known: Tensor, x: Tensor, k: int) -> Tensor:
    known, x = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (known, x))
    return (x.unsqueeze(1) - known).norm(dim=-1).sort(1).values[:, k - 1]


@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_distance_is_that_of_the_plain_formula(k: int) -> None:
    known, x = features(50), features(20, seed=1)
    answer = fitted(known, k=k)(x)
    assert answer.dtype == torch.float64
    torch.testing.assert_close(answer, plainly(known, x, k), rtol=0, atol=1e-6)


def test_an_input_that_was_seen_is_at_no_distance() -> None:
    known = features(1000, 64) + 100  # all of them nearly alike in direction
    assert float(fitted(known)(known).max()) == 0


def test_near_duplicates_keep_their_distance() -> None:
    known = features(1, 64)
    step = torch.zeros(64).index_fill(0, torch.tensor(0), 1e-4)
    torch.testing.assert_close(fitted(known)(known + step), plainly(known, known + step, 1), rtol=1e-3, atol=0)


def test_length_does_not_count() -> None:
    known, x = features(30), features(10, seed=1)
    torch.testing.assert_close(fitted(known)(x), fitted(known * 7)(x / 3), rtol=0, atol=1e-6)


def test_parts_are_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    known, x = features(30), features(25, seed=1)
    whole = fitted(known)(x)
    monkeypatch.setattr("hesitant.nn.nearest_neighbors._NUMBERS_AT_ONCE", 64)
    torch.testing.assert_close(fitted(known)(x), whole, rtol=0, atol=1e-7)


def test_any_shape_of_inputs_and_any_precision() -> None:
    known = features(30)
    neighbors = fitted(known)
    assert neighbors(features(6).view(2, 3, 8)).shape == (2, 3)
    assert neighbors(features(0)).shape == (0,)
    torch.testing.assert_close(neighbors(known.half()), torch.zeros(30, dtype=torch.float64), rtol=0, atol=2e-3)


def test_a_cast_leaves_it_in_float32() -> None:
    neighbors = fitted(features(30))
    before = neighbors.inputs.clone()
    assert torch.equal(neighbors.half().inputs, before)
    assert torch.equal(neighbors.double().inputs, before)


def test_a_state_dict_and_a_copy_answer_the_same() -> None:
    neighbors, x = fitted(features(30)), features(5, seed=1)
    for other in (NearestNeighbors(8), fitted(features(3))):
        other.load_state_dict(neighbors.state_dict())
        assert torch.equal(other(x), neighbors(x))
    assert torch.equal(copy.deepcopy(neighbors)(x), neighbors(x))


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(RuntimeError, match="replace"):
        NearestNeighbors(8)(features(1))
    with pytest.raises(ValueError, match="k=5 is more than the 3 inputs"):
        fitted(features(3), k=5)
    with pytest.raises(ValueError, match="NaN or Inf"):
        fitted(features(3).fill_(torch.nan))
    with pytest.raises(ValueError, match=r"expected \(n, 4\)"):
        NearestNeighbors(4).replace(features(3))
    with pytest.raises(ValueError, match="more than max_inputs=2"):
        fitted(features(3), max_inputs=2)
    with pytest.raises(ValueError, match="k=0"):
        NearestNeighbors(8, k=0)
    with pytest.raises(ValueError, match="above max_inputs=2"):
        NearestNeighbors(8, k=3, max_inputs=2)


def test_nan_is_not_near_anything() -> None:
    assert bool(fitted(features(30))(torch.full((1, 8), torch.nan)).isnan().all())


# ---------------------------------------------------------------- the sample


def sampled(num_rows: int, limit: int, batch: int, seed: int = 0) -> Tensor:
    sample = UniformSample(limit, seed)
    for part in torch.arange(num_rows).view(-1, 1).split(batch):
        sample.add(part)
        assert len(sample) <= 2 * limit + batch
    return sample.kept()[0].squeeze(1)


def test_few_rows_are_all_kept_in_their_order() -> None:
    assert sampled(10, 10, 3).tolist() == list(range(10))


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_as_many_rows_as_asked_for_each_once_and_whatever_the_batches(batch: int) -> None:
    kept = sampled(100, 10, batch).tolist()
    assert len(set(kept)) == 10
    assert kept == sampled(100, 10, 13).tolist()
    assert kept != sampled(100, 10, batch, seed=1).tolist()


def test_each_row_has_the_same_chance() -> None:
    counts = torch.stack([sampled(20, 5, 3, seed).bincount(minlength=20) for seed in range(800)]).sum(0)
    expected = 800 * 5 / 20  # and 12 is the standard deviation of each count
    assert float((counts - expected).abs().max()) < 5 * 12.3


def test_a_sample_that_was_given_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="no rows"):
        UniformSample(3).kept()
