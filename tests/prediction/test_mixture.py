import math
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor

from hesitant.prediction.mixture import Mixture

FIELDS = ("probs", "log_probs", "expected_entropy", "class_std")
DTYPES = [torch.float32, torch.float64]


def log_samples(num_samples: int = 12, num_inputs: int = 7, num_classes: int = 4, *, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(num_samples, num_inputs, num_classes, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits, -1)


def plain(log_probs: Tensor) -> dict[str, np.ndarray]:
    """The formulas as the papers write them, in float64."""
    log_p = log_probs.double().numpy()
    p = np.exp(log_p)
    largest = log_p.max(0)
    return {
        "probs": p.mean(0),
        "log_probs": largest + np.log(np.exp(log_p - largest).sum(0)) - math.log(len(p)),
        "expected_entropy": -np.where(p > 0, p * np.where(p > 0, log_p, 0), 0).sum(-1).mean(0),
        "class_std": p.std(0),
    }


def assert_is(mixture: Mixture, expected: dict[str, np.ndarray], dtype: torch.dtype = torch.float64) -> None:
    rtol, atol = (1e-12, 1e-14) if dtype == torch.float64 else (2e-6, 2e-7)
    for name in FIELDS:
        value = getattr(mixture, name)
        assert value.dtype == dtype
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=rtol, atol=atol, err_msg=name)


def merged(parts: list[Mixture]) -> Mixture:
    return reduce(Mixture.merged, parts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_merged_are_the_whole(dtype: torch.dtype) -> None:
    samples = log_samples().to(dtype)
    for sizes in ([12], [1] * 12, [6, 6], [1, 11], [11, 1], [5, 4, 3], [1, 2, 3, 6]):
        mixture = merged([Mixture.of_passes(part) for part in samples.split(sizes)])
        assert mixture.num_samples == 12
        assert_is(mixture, plain(samples), dtype)


def test_parts_merge_in_any_order_and_any_tree() -> None:
    samples = log_samples()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(12, generator=generator)
        parts = [Mixture.of_passes(part) for part in samples[order].split([4, 1, 3, 2, 2])]
        while len(parts) > 1:
            first, second = torch.randperm(len(parts), generator=generator)[:2].tolist()
            joined = parts[first].merged(parts[second])
            parts = [part for i, part in enumerate(parts) if i not in (first, second)] + [joined]
        assert_is(parts[0], plain(samples))


def test_a_thousand_passes_merged_one_by_one_stay_exact_in_float32() -> None:
    samples = log_samples(1000).float()
    mixture = merged([Mixture.of_passes(part) for part in samples.split(1)])
    for name, expected in plain(samples).items():
        np.testing.assert_allclose(getattr(mixture, name), expected, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unchecked_passes_answer_as_checked_samples(dtype: torch.dtype) -> None:
    samples = log_samples().to(dtype)
    checked, unchecked = Mixture.of(samples, log=True), Mixture.of_passes(samples)
    assert_is(checked, plain(samples), dtype)
    assert_is(unchecked, {name: getattr(checked, name).double().numpy() for name in FIELDS}, dtype)
    assert_is(Mixture.of(samples.exp(), log=False), plain(samples), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_samples_have_no_spread_and_their_own_probabilities(dtype: torch.dtype) -> None:
    one = log_samples(1, 200).to(dtype)
    for num_samples in (1, 2, 3, 7, 10, 100):
        whole = Mixture.of_passes(one.expand(num_samples, -1, -1))
        parts = merged([Mixture.of_passes(one)] * num_samples)
        chunks = merged([Mixture.of_passes(one.expand(size, -1, -1)) for size in (num_samples, 3, 1)])
        for mixture in (whole, parts, chunks):
            assert mixture.class_std.count_nonzero() == 0
            assert torch.equal(mixture.probs, one[0].exp())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_no_probability_leaves_its_range_and_no_deviation_is_nan(size: int) -> None:
    samples = torch.cat([log_samples(10, 50, scale=scale) for scale in (0.0, 1e-4, 1.0, 100.0)], 1).float()
    mixture = merged([Mixture.of_passes(part) for part in samples.split(size)])
    assert bool((mixture.probs >= 0).all())
    assert bool((mixture.probs <= 1 + 1e-6).all())
    torch.testing.assert_close(mixture.probs.sum(-1), torch.ones(200))
    assert bool((mixture.class_std >= 0).all())
    assert bool((mixture.class_std <= 0.5 + 1e-6).all())
    for name in FIELDS:
        assert not bool(getattr(mixture, name).isnan().any())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_log_probabilities_too_small_for_a_probability_are_kept(size: int) -> None:
    samples = torch.tensor([[-1e-44, -300.0], [0.0, -400.0], [-1e-44, -500.0]]).unsqueeze(1)
    mixture = merged([Mixture.of_passes(part) for part in samples.split(size)])
    assert mixture.probs.tolist() == [[1.0, 0.0]]
    assert mixture.log_probs[0, 0].abs().item() < 1e-6
    assert mixture.log_probs[0, 1].item() == pytest.approx(-300 - math.log(3), abs=1e-4)
    assert mixture.class_std.tolist() == [[0.0, 0.0]]
    assert mixture.expected_entropy.item() == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("size", [1, 3])
def test_a_class_that_all_or_some_exclude_brings_no_nan(size: int) -> None:
    samples = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log().unsqueeze(1)
    mixture = merged([Mixture.of_passes(part) for part in samples.split(size)])
    assert mixture.probs[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert mixture.log_probs[0].tolist() == pytest.approx([math.log(2 / 3), math.log(1 / 3), -math.inf])
    assert mixture.expected_entropy.item() == pytest.approx(2 / 3 * math.log(2))
    assert mixture.class_std[0].tolist() == pytest.approx([math.sqrt(1 / 18)] * 2 + [0], abs=1e-7)


def test_two_in_full_disagreement_merge_to_the_uniform_distribution() -> None:
    one, other = (Mixture.of_passes(torch.tensor([[row]]).log()) for row in ([1.0, 0.0], [0.0, 1.0]))
    mixture = one.merged(other)
    assert mixture.probs.tolist() == [[0.5, 0.5]]
    assert mixture.log_probs.exp().tolist() == [[0.5, 0.5]]
    assert mixture.class_std.tolist() == [[0.5, 0.5]]
    assert mixture.expected_entropy.tolist() == [0.0]


def test_no_inputs_make_a_mixture_of_none() -> None:
    empty = Mixture.of(torch.empty(3, 0, 2), log=False)
    assert empty.probs.shape == (0, 2)
    assert empty.merged(Mixture.of_passes(torch.empty(2, 0, 2))).class_std.shape == (0, 2)


@pytest.mark.parametrize("shape", [(0, 4, 2), (4, 2), (3, 4, 1)])
def test_samples_of_another_shape_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(S, B, C\)"):
        Mixture.of(torch.ones(shape), log=False)


def test_merged_mixtures_have_the_mean_of_all_logits():
    logits = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    parts = [Mixture.of_passes(part.log_softmax(-1), part.mean(0)) for part in logits.split([1, 3, 2])]
    mean = merged(parts).logits
    assert mean is not None
    torch.testing.assert_close(mean, logits.mean(0))
    assert merged([parts[0], Mixture.of_passes(logits.log_softmax(-1))]).logits is None
