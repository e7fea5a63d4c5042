"""masks="shared": the same masks for all inputs of a call, or an error; what a seed, a chunk and a batch may change."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.kinds import KINDS, inputs_of, model_of
from tests.methods.dropout.oracle import (
    Reveals,
    all_masks,
    assert_converged,
    assert_same_distribution,
    generator,
    plain_passes,
    revealed,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hesitant import MCDropout

ONES = torch.ones(7, 33).double()
DIFFERENT = torch.randn(7, 5, generator=generator(3)).double()


def shared(model: Any, num_samples: int, **options: Any) -> MCDropout:
    return MCDropout(model, num_samples=num_samples, masks="shared", **options)


def made(build: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()


# ---------------------------------------------------------------- the same for all inputs


# 3 leaves a last batch of one input, 1 makes nothing but such, 6 a batch and one input.
@pytest.mark.parametrize(("batch_size", "chunk_size"), [(1, None), (3, None), (3, 1), (3, 4), (6, 4), (1024, None)])
def test_all_inputs_of_a_call_have_the_same_masks(batch_size: int, chunk_size: int | None) -> None:
    method = shared(Reveals(nn.Dropout(0.5)), 30, chunk_size=chunk_size)
    kept = revealed(method.predict_samples(ONES, seed=0, batch_size=batch_size)) > 1
    assert bool((kept == kept[:, :1]).all())
    masks = kept[:, 0]
    assert len(masks.unique(dim=0)) == 30
    assert 0.4 < float(masks.double().mean()) < 0.6


def test_masks_of_each_input_are_its_own_by_default() -> None:
    kept = revealed(MCDropout(Reveals(nn.Dropout(0.5)), num_samples=30).predict_samples(ONES, seed=0)) > 1
    assert len(kept.flatten(0, 1).unique(dim=0)) == 30 * 7


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_batches_do_not_change_the_sub_networks(batch_size: int) -> None:
    model = made(lambda: nn.Sequential(nn.Linear(5, 9), nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.3), nn.Linear(9, 3)))
    whole = shared(model, 20).predict_samples(DIFFERENT, seed=4)
    parts = shared(model, 20).predict_samples(DIFFERENT, seed=4, batch_size=batch_size)
    torch.testing.assert_close(parts, whole)
    alone = torch.cat([shared(model, 20).predict_samples(x[None], seed=4) for x in DIFFERENT], 1)
    torch.testing.assert_close(alone, whole)


def test_an_order_of_the_inputs_permutes_the_samples() -> None:
    model = made(lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(5, 9), nn.Tanh(), nn.Dropout(0.3), nn.Linear(9, 3)))
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    samples = shared(model, 20).predict_samples(DIFFERENT, seed=4)
    permuted = shared(model, 20).predict_samples(DIFFERENT[order], seed=4, batch_size=2)
    torch.testing.assert_close(permuted, samples[:, order])


class Enumerable(nn.Module):
    """Two hidden layers of 3 units: 64 sub-networks; ``fixed`` are the masks of one of them."""

    def __init__(self, p: float = 0.4, across: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.p, self.across = p, across
        self.fixed: Tensor | None = None

    def drop(self, x: Tensor, index: int) -> Tensor:
        if self.fixed is None:
            return F.dropout(x, self.p, self.training)
        return x * self.fixed[index] / (1 - self.p)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.first(x), 0)
        hidden = self.drop(torch.tanh(self.second(self.across(hidden))), 1)
        return 2 * self.head(hidden)

    def sub_networks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The joint predictions (64, N, C) of all sub-networks, and the probability of each."""
        masks, weights = all_masks(6, self.p)
        outcomes = []
        with torch.no_grad():
            for mask in masks:
                self.fixed = mask.reshape(2, 3)
                outcomes.append(self(x).softmax(-1))
        self.fixed = None
        return torch.stack(outcomes), weights


@pytest.mark.parametrize("batch_size", [3, 1024])
def test_each_sample_is_the_joint_prediction_of_one_sub_network(batch_size: int) -> None:
    model = made(Enumerable)
    outcomes, weights = model.sub_networks(DIFFERENT)
    samples = shared(model, 3000).predict_samples(DIFFERENT, seed=0, batch_size=batch_size)
    distance, which = torch.cdist(samples.flatten(1), outcomes.flatten(1)).min(1)
    assert float(distance.max()) < 2e-3
    assert_converged(samples.flatten(1), outcomes.flatten(1), weights)
    # Masks that leave a sub-network's second layer nothing are one and the same: counted together.
    same = torch.cdist(outcomes.flatten(1), outcomes.flatten(1)) < 2e-3
    expected = (same * weights).sum(1)
    found = (same[which]).double().mean(0)
    assert float(((found - expected) / (expected * (1 - expected) / 3000).sqrt()).abs().max()) < 5


@pytest.mark.parametrize(
    "across",
    [
        lambda h: h - h.mean(0),
        lambda h: h / (1 + h.norm()),
        lambda h: h - h[:1],
        lambda h: h + h.roll(1, 0),
        lambda h: h * torch.linspace(0.5, 2, len(h)).unsqueeze(1),
        lambda h: h * (len(h) / 7),
        lambda h: torch.stack([row.tanh() if float(row.sum()) > 0 else row.sin() for row in h]),
        lambda h: h.reshape(7, 3).tanh(),
        lambda h: h.tanh() if bool(h.sum() > 0) else h,
    ],
    ids=["mean", "norm", "first", "neighbours", "constants", "length", "rows", "fixed shape", "an if"],
)
def test_a_sub_network_of_a_model_that_looks_across_the_batch_is_one_or_an_error(across: Any) -> None:
    model = made(lambda: Enumerable(across=across))
    outcomes, _ = model.sub_networks(DIFFERENT)
    try:
        samples = shared(model, 100).predict_samples(DIFFERENT, seed=0)
    except ValueError as error:
        assert "masks='shared'" in str(error)  # noqa: PT017
        return
    farthest = float(torch.cdist(samples.flatten(1), outcomes.flatten(1)).amin(1).max())
    assert farthest < 2e-3


def test_linear_after_dropout_is_the_sub_network_that_it_shows() -> None:
    class Shows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            dropped = F.dropout(self.body(x), 0.5, self.training)
            return torch.cat([dropped, self.head(dropped), torch.zeros_like(dropped[:, :1])], 1)

    model = made(Shows)
    samples = shared(model, 40).predict_samples(DIFFERENT, seed=0)
    shown = (samples.log() - samples[..., -1:].log())[..., :-1]
    mask = shown[..., :8].abs() > 1e-6
    assert bool((mask == mask[:, :1]).all())
    with torch.no_grad():
        kept = model.body(DIFFERENT) * mask[:, :1] * 2
        torch.testing.assert_close(shown[..., :8], kept, rtol=2e-3, atol=1e-5)
        torch.testing.assert_close(shown[..., 8:], model.head(kept), rtol=2e-3, atol=2e-3)


def test_shared_masks_have_the_distribution_of_others() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(5, 9), nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(9, 3)))
    samples = shared(model, 1500).predict_samples(DIFFERENT, seed=0, batch_size=3)
    assert_same_distribution(samples, plain_passes(model, DIFFERENT, 1500), jointly=False)
    prediction = shared(model, 1500).predict(DIFFERENT, seed=0, batch_size=3)
    torch.testing.assert_close(prediction.probs, samples.mean(0), rtol=1e-5, atol=1e-7)


def test_shared_masks_of_layers_and_passes_are_independent() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.drop(x), self.drop(x)], 1)

    kept = revealed(shared(Reveals(Twice()), 600).predict_samples(ONES, seed=0, batch_size=2))[:, 0] > 1
    for rows in (kept.double().mul(2).sub(1), kept.double().mul(2).sub(1).T):
        correlations = (rows @ rows.T / rows.shape[1]).fill_diagonal_(0)
        assert float(correlations.abs().max()) * rows.shape[1] ** 0.5 < 6


# ---------------------------------------------------------------- every kind: the same for all inputs, or an error

MAY_REFUSE = (
    "MultiheadAttention, weights",
    "MultiheadAttention, padded, weights",
    "dropout of",
    "by hand",
    "vmap",
    "scripted",
    "torch.native",
)


def duplicates(inputs: Any) -> Any:
    """Seven times the second input."""
    several = inputs if isinstance(inputs, list) else [inputs]
    return [x[1:2].repeat(7, *[1] * (x.ndim - 1)) for x in several]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_duplicates_of_an_input_have_the_same_samples(kind: str) -> None:
    model, inputs = model_of(kind), duplicates(inputs_of(kind))
    try:
        samples = shared(model, 12).predict_samples(inputs, seed=0, batch_size=3)
    except ValueError as error:
        if not kind.startswith(MAY_REFUSE):
            raise
        assert "masks='shared'" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(samples, samples[:, :1].expand_as(samples), rtol=1e-4, atol=1e-5)
    assert bool((samples.std(0) > 1e-5).all())
    others = MCDropout(model, num_samples=12).predict_samples(inputs, seed=0, batch_size=3)
    if not kind.startswith("dropout of"):
        assert float((others - others[:, :1]).abs().max()) > 1e-3


class SequenceFirst(nn.Module):
    """Works on (T, B, E), dropout included."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.embed(x.transpose(0, 1)), 0.5, self.training)  # (T, B, E)
        return self.head(hidden.tanh().mean(0))


# Where the length is B, or a multiple, the axes look alike.
@pytest.mark.parametrize(("length", "batch_size"), [(1, 3), (2, 2), (3, 3), (6, 3), (6, 2), (7, 7), (7, 1), (14, 7)])
def test_masks_are_shared_along_the_batch_axis_wherever_it_stands(length: int, batch_size: int) -> None:
    x = torch.randn(1, length, 2, generator=generator(1)).double().repeat(7, 1, 1)
    model = made(SequenceFirst)
    samples = shared(model, 40).predict_samples(x, seed=0, batch_size=batch_size)
    torch.testing.assert_close(samples, samples[:, :1].expand_as(samples))
    assert_same_distribution(
        shared(model, 800).predict_samples(x[:2], seed=0), plain_passes(model, x[:2], 800), jointly=False
    )


@pytest.mark.parametrize("windows", [2, 3, 7])
def test_masks_of_windows_folded_into_the_batch_are_shared_or_an_error(windows: int) -> None:
    """As in Swin: attention runs on (B x windows, ...)."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4 * windows, 3)

        def forward(self, x: Tensor) -> Tensor:
            folded = x.reshape(-1, 4)  # (B windows, 4)
            return self.head(F.dropout(folded, 0.5, self.training).reshape(len(x), -1))

    x = torch.randn(1, windows, 4, generator=generator(1)).double().repeat(7, 1, 1)
    try:
        samples = shared(made(Windows), 30).predict_samples(x, seed=0, batch_size=3)
    except ValueError as error:
        assert "masks='shared'" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(samples, samples[:, :1].expand_as(samples))


def test_batches_of_different_lengths_cannot_share_masks() -> None:
    class PerToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(x, 0.5, self.training).mean(1))

    model = made(PerToken)
    several = [(torch.ones(2, length, 4).double(), torch.zeros(2).long()) for length in (3, 3, 5)]
    with pytest.raises(ValueError, match="length"):
        shared(model, 4).predict(iter(several), seed=0)
    assert len(shared(model, 4).predict(iter(several[:2]), seed=0)) == 4
    assert len(MCDropout(model, num_samples=4).predict(iter(several), seed=0)) == 6


def test_a_loaders_batches_share_masks_too() -> None:
    loader = DataLoader(TensorDataset(ONES, torch.arange(7)), batch_size=2, shuffle=True, generator=generator(2))
    kept = revealed(shared(Reveals(nn.Dropout(0.5)), 30).predict_samples(loader, seed=0)) > 1
    assert bool((kept == kept[:, :1]).all())


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize("masks", ["per_input", "shared"])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"chunk_size": 1}], ids=str)
def test_a_seed_decides_every_bit(masks: Any, options: Any) -> None:
    model = made(lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(5, 9), nn.Tanh(), nn.Dropout(0.2), nn.Linear(9, 3)))
    method = MCDropout(model, num_samples=10, masks=masks, **options)
    first = method.predict_samples(DIFFERENT, seed=5, batch_size=3)
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = MCDropout(model, num_samples=10, masks=masks, **options)
        assert torch.equal(again.predict_samples(DIFFERENT, seed=5, batch_size=3), first)
        assert torch.equal(method.predict_samples(DIFFERENT), method.predict_samples(DIFFERENT, seed=0))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(method.predict_samples(DIFFERENT, seed=6, batch_size=3), first)
    prediction = method.predict(DIFFERENT, seed=5, batch_size=3)
    torch.testing.assert_close(prediction.probs, first.mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", [None, "a", 1.5, -1, True, 2**70])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seed"):
        MCDropout(Reveals(nn.Dropout(0.5)), num_samples=3).predict(ONES, seed=seed)
