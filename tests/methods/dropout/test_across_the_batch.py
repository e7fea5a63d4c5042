"""Models that look across their batch, or at its length, answer as in the plain loop: passes together or apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import assert_same_distribution, generator, plain_passes
from torch import Tensor, nn
from torch.nn import functional as F

from hesitant import MCDropout

X = torch.randn(6, 8, generator=generator(1))


def made(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


class After(nn.Module):
    """Dropout, and afterwards ``function(hidden)`` on (B, 16)."""

    def __init__(self, function: Callable[[Tensor], Tensor], before: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.stem, self.drop, self.head = nn.Linear(8, 16), nn.Dropout(0.4), nn.Linear(16, 3)
        self.function, self.before = function, before

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        if self.before is not None:
            hidden = self.before(hidden)
        return 2 * self.head(self.function(self.drop(hidden)))


class Remembers:
    """Control flow on the number of inputs."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden if len(hidden) == 6 else hidden * 0


def _row_by_row(hidden: Tensor) -> Tensor:
    return torch.stack([row.tanh() if float(row.sum()) > 0 else row.sin() for row in hidden])


def _fixed_shape(hidden: Tensor) -> Tensor:
    return hidden.reshape(6, 4, 4).transpose(1, 2).reshape(6, 16)


def _numpy(hidden: Tensor) -> Tensor:
    return torch.from_numpy(hidden.detach().numpy().copy()).tanh()


def _clusters(hidden: Tensor) -> Tensor:
    return hidden - hidden[(hidden[:, 0] > 0).nonzero().flatten()].sum(0)


def _against_each_other(hidden: Tensor) -> Tensor:
    return (hidden @ hidden.T / 4).softmax(-1) @ hidden


def _long_while(hidden: Tensor) -> Tensor:
    while hidden.abs().max() > 1:
        hidden = hidden / 1.5
    return hidden


def _batch_norm(hidden: Tensor) -> Tensor:
    return F.batch_norm(hidden, None, None, training=True)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "minus the mean of the batch": lambda h: h - h.mean(0),
    "over the norm of the batch": lambda h: h / h.norm() * 5,
    "statistics of the batch": _batch_norm,
    "sorted along the batch": lambda h: h.sort(0).values,
    "cumulated along the batch": lambda h: h.cumsum(0),
    "neighbours in the batch": lambda h: h + h.roll(1, 0),
    "first of the batch": lambda h: h - h[:1],
    "attention across the batch": _against_each_other,
    "row by row": _row_by_row,
    "a while on the data": _long_while,
    "an if on the data": lambda h: h.tanh() if bool(h.sum() > 0) else h.sin(),
    "an if on the length": Remembers(),
    "an if on parity": lambda h: h if len(h) % 4 == 2 else -h,
    "a fixed shape": _fixed_shape,
    "through numpy": _numpy,
    "of a chosen subset": _clusters,
    "scaled by the length": lambda h: h * (len(h) / 6),
    "with a constant for each input": lambda h: h * torch.linspace(0.5, 2, 6).unsqueeze(1),
    "weighted by position": lambda h: h * torch.arange(1, len(h) + 1).unsqueeze(1) / 6,
    "transposed and back": lambda h: (h.T * torch.linspace(0.5, 1, 16).unsqueeze(1)).T,
    "batch axis moved": lambda h: h.reshape(-1, 4, 4).permute(1, 0, 2).tanh().permute(1, 0, 2).reshape(-1, 16),
    "halves swapped": lambda h: torch.cat(h.chunk(2)[::-1]),
    "pairs of inputs": lambda h: h.reshape(-1, 2, 16).flip(1).reshape(-1, 16),
}


# One for each reason for which passes may not run together.
REPRESENTATIVES = ("minus the mean of the batch", "an if on the length", "a fixed shape", "through numpy")
REPRESENTATIVES += ("with a constant for each input", "halves swapped")


@pytest.mark.parametrize(
    ("name", "chunk_size"), [*((name, None) for name in FUNCTIONS), *((name, 7) for name in REPRESENTATIVES)]
)
def test_models_that_look_across_the_batch_answer_as_in_the_plain_loop(name: str, chunk_size: int | None) -> None:
    model = made(lambda: After(FUNCTIONS[name]))
    samples = MCDropout(model, num_samples=250, chunk_size=chunk_size).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(model, X, 250))


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_models_that_look_across_the_batch_before_the_dropout_answer_as_in_the_plain_loop(name: str) -> None:
    model = made(lambda: After(lambda h: h, before=FUNCTIONS[name]))
    samples = MCDropout(model, num_samples=300).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(model, X, 300))


@pytest.mark.parametrize("number", [1, 4, 6])
@pytest.mark.parametrize("early", [True, False])
def test_tokens_before_inputs_in_one_axis_answer_as_in_the_plain_loop(number: int, early: bool) -> None:
    """(T, B, E) flattened to (T B, E): passes repeated along that axis would not stand one after another."""

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(32, 3)

        def drop(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.4, self.training)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.reshape(len(x), 4, 2).transpose(0, 1)  # (T, B, 2)
            hidden = self.first(self.drop(tokens) if early else tokens)
            hidden = self.drop(self.second(hidden.reshape(4 * len(x), 8)))
            return 2 * self.head(hidden.reshape(4, len(x), 8).transpose(0, 1).flatten(1))

    model = made(Flattened)
    samples = MCDropout(model, num_samples=250).predict_samples(X[:number], seed=0)
    assert_same_distribution(samples, plain_passes(model, X[:number], 500))


def test_noise_that_the_model_draws_itself_is_drawn_in_each_pass() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.stem(x)
            hidden = hidden + 0.5 * torch.randn_like(hidden) + 0.5 * torch.rand(len(x), 1)
            return self.head(F.dropout(hidden.relu(), 0.3, self.training))

    model = made(Noisy)
    method = MCDropout(model, num_samples=250)
    state = torch.get_rng_state()
    samples = method.predict_samples(X, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(method.predict_samples(X, seed=0), samples)
    assert_same_distribution(samples, plain_passes(model, X, 250))


def test_a_model_with_a_state_of_its_own_runs_each_pass_after_the_other() -> None:
    """Its second pass differs from its first in Python alone."""

    class Alternates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.calls = nn.Linear(8, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(F.dropout(x, 0.4, self.training))

    model = made(Alternates)
    samples = MCDropout(model, num_samples=250).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(made(Alternates), X, 500))


class Recurrent(nn.Module):
    """Dropout that is drawn inside a recurrent network, and afterwards ``function(hidden)``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.head = nn.GRU(2, 16, 2, dropout=0.4, batch_first=True), nn.Linear(16, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(self.function(self.layers(x.reshape(len(x), 4, 2))[0][:, -1]))


@pytest.mark.parametrize("name", ["minus the mean of the batch", "scaled by the length", "weighted by position"])
def test_recurrent_models_that_look_across_the_batch_answer_as_in_the_plain_loop(name: str) -> None:
    model = made(lambda: Recurrent(FUNCTIONS[name]))
    samples = MCDropout(model, num_samples=250).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(model, X, 250))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_graph_network_answers_as_in_the_plain_loop(sparse: bool) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            edges = 0.5 * torch.eye(6) + 0.5 * torch.eye(6).roll(1, 0)
            self.register_buffer("edges", edges.to_sparse() if sparse else edges)
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.dropout((self.edges @ self.first(x)).relu(), 0.4, self.training)
            return 4 * (self.edges @ self.second(hidden))

    model = made(Graph)
    samples = MCDropout(model, num_samples=250).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(model, X, 250))
