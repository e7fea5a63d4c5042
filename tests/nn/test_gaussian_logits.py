import math

import pytest
import torch

from hesitant.nn import GaussianLogits, mean_field_logits


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def monte_carlo(mean, variance, num_samples=40_000):
    draws = GaussianLogits(mean, variance).sample(num_samples, seeded(9))
    return draws.softmax(-1).mean(0) if mean.shape[-1] > 1 else draws.sigmoid().mean(0)


def test_one_logit_meets_the_mean_sigmoid():
    logits = torch.linspace(-6, 6, 25, dtype=torch.float64).repeat(5).unsqueeze(1)
    variance = torch.tensor([0.1, 1.0, 3.0, 10.0, 30.0], dtype=torch.float64).repeat_interleave(25).unsqueeze(1)
    approximate = mean_field_logits(logits, variance).sigmoid()
    exact = monte_carlo(logits, variance)
    # The probit approximation with pi/8 is within .019 of the integral (measured .017 here, noise .002).
    assert (approximate - exact).abs().max() < 0.022


def test_several_logits_meet_the_mean_softmax():
    mean = 2 * torch.randn(100, 5, generator=seeded(), dtype=torch.float64)
    for size in (0.1, 1.0, 4.0):
        variance = torch.full_like(mean, size)
        exact = monte_carlo(mean, variance, 10_000)
        error = (mean_field_logits(mean, variance).softmax(-1) - exact).abs().max()
        plain = (mean.softmax(-1) - exact).abs().max()
        # pi/8 is derived for one logit: of several it keeps part of the gap to the plain softmax only.
        assert error < max(0.65 * plain, 0.01)


@pytest.mark.parametrize("factor", [None, -1.0])
def test_no_factor_leaves_logits_as_they_are(factor):
    logits = torch.randn(4, 3, generator=seeded())
    assert mean_field_logits(logits, torch.rand(4, generator=seeded()), factor) is logits


def test_formulas():
    logits, variance = torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 0.5]])
    torch.testing.assert_close(mean_field_logits(logits, variance, 0.7), logits / torch.sqrt(1 + 0.7 * variance))
    torch.testing.assert_close(mean_field_logits(logits, None), logits / math.sqrt(1 + math.pi / 8))
    poisson = mean_field_logits(logits, variance, 0.7, "poisson")
    torch.testing.assert_close(poisson, logits * torch.exp(0.7 * variance / 2))


def test_variance_makes_indifferent_but_never_changes_the_label():
    logits = torch.randn(50, 4, generator=seeded())
    entropies = []
    for size in (0.0, 1.0, 10.0, 1000.0):
        probs = mean_field_logits(logits, torch.full((50,), size)).softmax(-1)
        assert torch.equal(probs.argmax(-1), logits.argmax(-1))
        entropies.append(torch.special.entr(probs).sum(-1))
    assert (torch.stack(entropies).diff(dim=0) > 0).all()


@pytest.mark.parametrize(("logits", "variance"), [((5,), (5,)), ((5, 3), (5,)), ((5, 3), (5, 1)), ((2, 5, 3), (2, 5))])
def test_one_variance_an_input_is_one_for_each_of_its_logits(logits, variance):
    f, v = torch.randn(logits, generator=seeded()), torch.rand(variance, generator=seeded(1))
    wide = v if v.ndim == f.ndim else v.unsqueeze(-1)
    torch.testing.assert_close(mean_field_logits(f, v), f / torch.sqrt(1 + math.pi / 8 * wide.expand_as(f)))


@pytest.mark.parametrize(("logits", "variance"), [((5, 3), (5, 5)), ((5,), (5, 1)), ((5, 3), (4,)), ((5, 1), (5, 3))])
def test_shapes_that_do_not_fit_are_refused(logits, variance):
    with pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
        mean_field_logits(torch.zeros(logits), torch.ones(variance))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"likelihood='gauss' is not known: expected 'logistic'"):
        mean_field_logits(torch.zeros(2), None, likelihood="gauss")
    with pytest.raises(ValueError, match=r"num_samples=0 must be at least 1"):
        GaussianLogits(torch.zeros(2, 1), torch.ones(2, 1)).sample(0)


def test_draws_have_the_moments_and_repeat():
    mean, variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.25, 4.0]])
    before = torch.get_rng_state()
    gaussian = GaussianLogits(mean, variance)
    draws = gaussian.sample(50_000, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert draws.shape == (50_000, 1, 2)
    torch.testing.assert_close(draws.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), variance, atol=0, rtol=0.03)
    assert torch.equal(draws, gaussian.sample(50_000, seeded()))
