"""Samples follow the distribution that the masks define: exact sums over all masks, rates, scale, independence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import (
    Reveals,
    all_masks,
    assert_converged,
    generator,
    plain_passes,
    revealed,
)
from torch import Tensor, nn
from torch.nn import functional as F

from hesitant import MCDropout

PASSES = 20_000


class Fixed(nn.Module):
    """Stands where a dropout stood, with masks given: one row of ``kept`` for each input."""

    def __init__(self, kept: Tensor, p: float) -> None:
        super().__init__()
        self.kept, self.p = kept, p

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept.reshape(*self.kept.shape, *[1] * (x.ndim - self.kept.ndim)) / (1 - self.p)


class FixedAlpha(Fixed):
    """The formula of AlphaDropout (Klambauer et al. 2017, arXiv:1706.02515), with its masks given."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = -1.7580993408473766  # -lambda alpha of SELU
        a = 1 / ((1 - self.p) * (1 + self.p * dropped**2)) ** 0.5
        kept = self.kept.reshape(*self.kept.shape, *[1] * (x.ndim - self.kept.ndim))
        return a * (x * kept + dropped * (1 - kept)) - a * self.p * dropped


def spread(model: nn.Module) -> nn.Module:
    """Weights that differ enough for masks to matter, the same each time."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return model.double().eval()


def mlp(*drops: nn.Module) -> nn.Module:
    first, second, third = drops
    layers = [first, nn.Linear(3, 3), nn.ReLU(), second, nn.Linear(3, 3), nn.Tanh(), third, nn.Linear(3, 3)]
    return spread(nn.Sequential(*layers))


def image_network(drop: nn.Module) -> nn.Module:
    return spread(nn.Sequential(nn.Conv2d(1, 5, 2), nn.Tanh(), drop, nn.Flatten(), nn.Linear(20, 3)))


VECTOR = torch.tensor([[0.9, -0.7, 1.3]]).double()
IMAGE = torch.randn(1, 1, 3, 3, generator=generator(3)).double()


@pytest.mark.parametrize(
    ("at", "p", "masks"),
    [
        ("input", 0.1, "per_input"),
        ("hidden", 0.5, "shared"),
        ("both hidden", 0.1, "shared"),
        ("both hidden", 0.5, "per_input"),
    ],
)
def test_dropout_converges_to_the_exact_expectation(at: str, p: float, masks: Any) -> None:
    places = {"input": [0], "hidden": [1], "both hidden": [1, 2]}[at]
    model = mlp(*(nn.Dropout(p) if place in places else nn.Identity() for place in range(3)))
    kept, weights = all_masks(3 * len(places), p)
    fixed = dict(zip(places, kept.split(3, 1), strict=True))
    exact = mlp(*(Fixed(fixed[place], p) if place in places else nn.Identity() for place in range(3)))
    with torch.no_grad():
        outcomes = exact(VECTOR.expand(len(kept), -1)).softmax(-1)
    samples = MCDropout(model, num_samples=PASSES, masks=masks).predict_samples(VECTOR, seed=0)[:, 0]
    assert_converged(samples, outcomes, weights)
    # Each sample is one of the outcomes, not a mixture of them.
    nearest = torch.cdist(samples[:500], outcomes).amin(1)
    assert float(nearest.max()) < 2e-4


@pytest.mark.parametrize(
    ("dropout", "stands_for"),
    [(nn.Dropout2d, Fixed), (nn.FeatureAlphaDropout, FixedAlpha)],
    ids=["Dropout2d", "FeatureAlphaDropout"],
)
def test_dropout_of_channels_drops_them_whole(dropout: Any, stands_for: Any) -> None:
    p = 0.3
    kept, weights = all_masks(5, p)
    with torch.no_grad():
        outcomes = image_network(stands_for(kept, p))(IMAGE.expand(32, -1, -1, -1)).softmax(-1)
    samples = MCDropout(image_network(dropout(p)), num_samples=PASSES).predict_samples(IMAGE, seed=0)[:, 0]
    assert_converged(samples, outcomes, weights)


def test_alpha_dropout_follows_its_formula() -> None:
    p = 0.2
    kept, weights = all_masks(6, p)
    with torch.no_grad():
        exact = mlp(nn.Identity(), FixedAlpha(kept[:, :3], p), FixedAlpha(kept[:, 3:], p))
        outcomes = exact(VECTOR.expand(64, -1)).softmax(-1)
    model = mlp(nn.Identity(), nn.AlphaDropout(p), nn.AlphaDropout(p))
    assert_converged(MCDropout(model, num_samples=PASSES).predict_samples(VECTOR, seed=0)[:, 0], outcomes, weights)


class Attends(nn.Module):
    """Attention of two heads over two tokens: 8 attention weights to drop."""

    def __init__(self, attention: nn.Module | None, p: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=p, batch_first=True) if attention is None else attention
        self.head = nn.Linear(8, 3)
        self.p = p
        self.mix: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mix is None:
            return self.head(self.attention(x, x, x, need_weights=self.p == 0.25)[0].flatten(1))
        qkv = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = qkv.reshape(len(x), 2, 3, 2, 2).permute(2, 0, 3, 1, 4)  # (B, H, T, E / H)
        mixed = self.mix(self, q, k, v).transpose(1, 2).reshape(len(x), 2, 4)
        return self.head(self.attention.out_proj(mixed).flatten(1))


@pytest.mark.parametrize("form", ["SDPA", "eager", "MultiheadAttention", "MultiheadAttention with weights"])
def test_attention_dropout_converges_to_the_exact_expectation(form: str) -> None:
    p = 0.25 if form.endswith("weights") else 0.4
    x = torch.randn(1, 2, 4, generator=generator(5)).double()
    model = spread(Attends(None, p))
    kept, weights = all_masks(8, p)

    def exactly(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.mT / 2**0.5).softmax(-1) * kept.reshape(-1, 2, 2, 2) / (1 - p)) @ v

    model.mix = exactly
    with torch.no_grad():
        outcomes = model(x.expand(256, -1, -1)).softmax(-1)
    model.mix = {
        "SDPA": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=p if m.training else 0.0),
        "eager": lambda m, q, k, v: F.dropout((q @ k.mT / 2**0.5).softmax(-1), p, m.training) @ v,
    }.get(form)
    # Masks differ from input to input: a hundred times the same input is as good as a hundred passes.
    samples = MCDropout(model, num_samples=PASSES // 100).predict_samples(x.repeat(100, 1, 1), seed=0)
    assert_converged(samples.flatten(0, 1), outcomes, weights)


def test_prediction_gives_the_mean_and_the_population_deviation_of_the_passes() -> None:
    method = MCDropout(mlp(nn.Dropout(0.5), nn.Dropout(0.5), nn.Dropout(0.5)), num_samples=50)
    x = torch.randn(4, 3, generator=generator()).double()
    samples, prediction = method.predict_samples(x, seed=1), method.predict(x, seed=1)
    torch.testing.assert_close(prediction.probs, samples.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(prediction.class_std, samples.std(0, correction=0), rtol=1e-4, atol=1e-6)
    entropy = -(samples * samples.log()).sum(-1).mean(0)
    torch.testing.assert_close(prediction.expected_entropy, entropy, rtol=1e-5, atol=1e-6)
    total = -(prediction.probs * prediction.probs.log()).sum(-1)
    torch.testing.assert_close(prediction.mutual_information, total - entropy, rtol=1e-4, atol=1e-5)


# ------------------------------------------------- the masks themselves, read off a network that shows them

ONES = torch.ones(12, 33).double()


def masks_of(
    dropout: Any, x: Tensor, num_samples: int, seed: int = 0, batch_size: int = 1024, **options: Any
) -> Tensor:
    method = MCDropout(Reveals(dropout), num_samples=num_samples, **options)
    return revealed(method.predict_samples(x, seed=seed, batch_size=batch_size))


@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.99])
def test_the_rate_is_p_and_the_scale_keeps_the_mean(p: float) -> None:
    values = masks_of(nn.Dropout(p), ONES, 500)
    kept = values.abs() > 1e-6
    draws = kept.numel()
    deviation = (p * (1 - p) / draws) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * deviation
    assert abs(float(values.mean()) - 1) < 5 * deviation / (1 - p)
    torch.testing.assert_close(values[kept], torch.ones_like(values[kept]) / (1 - p), rtol=2e-3, atol=0)
    assert float(values[~kept].abs().max()) < 1e-6
    for axis in ((0, 1), (0, 2), (1, 2)):  # no unit, input or pass is favoured
        count = kept.double().mean(axis)
        deviations = (count - (1 - p)) / (p * (1 - p) * count.numel() / draws) ** 0.5
        assert float(deviations.abs().max()) < (5 if p >= 0.1 else 8)


def test_a_tiny_rate_is_not_rounded_to_nothing() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (F.dropout(x, 2e-6, training=True) == 0).sum(-1, keepdim=True) / 10.0

    # 20 million draws, of which 40 are expected to drop.
    samples = MCDropout(Counts(), num_samples=20).predict_samples(torch.ones(1, 1_000_000), seed=0)
    dropped = float((10 * samples[..., 1].double().logit()).sum())
    assert abs(dropped - 40) < 5 * 40**0.5


def test_everything_dropped_is_zero_and_no_nan() -> None:
    class AllButOne(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.drop, self.all = nn.Dropout(0.5), nn.Dropout(p)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.drop(x), self.all(x), self.all(x.abs()) + 1], 1)

    samples = MCDropout(AllButOne(1.0), num_samples=50).predict_samples(ONES[:, :2], seed=0)
    assert bool(torch.isfinite(samples).all())
    logits = samples.log() - samples[..., -1:].log() + 1
    torch.testing.assert_close(logits[..., 2:4], torch.zeros(50, 12, 2).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk_size": 1}, {"chunk_size": 7}, {"batch_size": 5}, {"chunk_size": 3, "batch_size": 5}],
    ids=str,
)
def test_masks_are_independent_across_units_inputs_and_passes(options: Any) -> None:
    kept = (masks_of(nn.Dropout(0.5), ONES, 150, **options) > 1).double() * 2 - 1  # (S, N, D) of -1 and 1
    for axis in range(3):
        rows = kept.movedim(axis, 0).flatten(1)
        correlations = (rows @ rows.T / rows.shape[1]).fill_diagonal_(0)
        assert float(correlations.abs().max()) * rows.shape[1] ** 0.5 < 5.5


def test_masks_of_two_layers_and_of_two_calls_of_one_layer_are_independent() -> None:
    class Thrice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.first(x), self.second(x), self.first(x)], 1)

    kept = (masks_of(Thrice(), ONES, 150) > 1).double() * 2 - 1
    rows = kept.movedim(2, 0).flatten(1)  # (3 D, S N)
    correlations = (rows @ rows.T / rows.shape[1]).fill_diagonal_(0)
    assert float(correlations.abs().max()) * rows.shape[1] ** 0.5 < 5.5


def test_masks_of_other_seeds_are_independent() -> None:
    kept = [(masks_of(nn.Dropout(0.5), ONES, 100, seed) > 1).double() * 2 - 1 for seed in (0, 1, 2, 100, 2**40)]
    rows = torch.stack(kept).flatten(1)
    correlations = (rows @ rows.T / rows.shape[1]).fill_diagonal_(0)
    assert float(correlations.abs().max()) * rows.shape[1] ** 0.5 < 5


@pytest.mark.parametrize("size", [1, 3, 1024, 4099])
def test_no_mask_repeats_within_a_pass(size: int) -> None:
    """The autocorrelation of all draws of a call, in their order, is that of noise at every lag."""
    inputs = torch.ones(max(1, 8192 // size), size).double()
    kept = (masks_of(nn.Dropout(0.5), inputs, 16) > 1).double() * 2 - 1
    for order in (kept.flatten(), kept.movedim(0, 1).flatten()):
        power = torch.fft.rfft(torch.cat([order, torch.zeros_like(order)])).abs() ** 2
        correlation = torch.fft.irfft(power)[1 : len(order) // 2] / len(order)
        assert float(correlation.abs().max()) * len(order) ** 0.5 < 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_drops_at_the_rate(dtype: torch.dtype) -> None:
    class Share(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            dropped = F.dropout(x, 0.2, training=True)
            assert dropped.dtype == dtype
            return (dropped.float() == 0).float().mean(1, keepdim=True)

    samples = MCDropout(Share(), num_samples=50).predict_samples(torch.ones(4, 2000, dtype=dtype), seed=0)
    rates = samples[..., 1].double().logit()
    assert abs(float(rates.mean()) - 0.2) < 5 * (0.16 / 400_000) ** 0.5
    assert float(((rates - 0.2) / (0.16 / 2000) ** 0.5).abs().max()) < 5


def test_dropout_of_channels_reveals_one_draw_a_channel() -> None:
    x = torch.ones(3, 4, 2, 2).double()
    kept = (masks_of(nn.Dropout2d(0.5), x, 200) > 1).reshape(200, 3, 4, 4)
    assert bool((kept == kept[..., :1]).all())
    rows = kept[..., 0].double().mul(2).sub(1).flatten(1).T
    correlations = (rows @ rows.T / rows.shape[1]).fill_diagonal_(0)
    assert float(correlations.abs().max()) * rows.shape[1] ** 0.5 < 5


def test_the_oracle_itself_converges() -> None:
    """What the plain loop is taken for, elsewhere in these tests."""
    kept, weights = all_masks(3, 0.3)
    exact = mlp(nn.Identity(), Fixed(kept, 0.3), nn.Identity())
    with torch.no_grad():
        outcomes = exact(VECTOR.expand(8, -1)).softmax(-1)
    model = mlp(nn.Identity(), nn.Dropout(0.3), nn.Identity())
    assert_converged(plain_passes(model, VECTOR, 5000)[:, 0], outcomes, weights)
