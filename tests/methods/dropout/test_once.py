"""What comes before the first dropout is computed once, memory is bounded, and neither changes any answer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import assert_same_distribution, generator, operations, plain_passes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hesitant import MCDropout

X = torch.randn(6, 8, generator=generator(1))


def made(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


# ---------------------------------------------------------------- once


def deep(before: int, after: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(8, 64)]
    for _ in range(before):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    layers += [nn.Dropout(0.5)]
    for _ in range(after):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 3))


@pytest.mark.parametrize(
    ("before", "after", "passes", "batch_size", "chunk_size", "masks"),
    [
        (4, 0, 30, 1024, None, "per_input"),
        (3, 2, 30, 5, None, "per_input"),
        (3, 2, 31, 1024, 4, "per_input"),
        (4, 0, 30, 5, None, "shared"),
        (3, 2, 31, 1024, 4, "shared"),
    ],
)
def test_what_comes_before_the_first_dropout_is_computed_once(
    before: int, after: int, passes: int, batch_size: int, chunk_size: int | None, masks: Any
) -> None:
    model = made(lambda: deep(before, after))
    method = MCDropout(model, num_samples=passes, masks=masks, chunk_size=chunk_size)
    inputs = torch.randn(17, 8, generator=generator())
    cut = next(i for i, layer in enumerate(model) if isinstance(layer, nn.Dropout))
    first = operations(lambda: model[:cut](inputs))
    rest = operations(lambda: model[cut:](torch.zeros(17, 64)))
    used = operations(lambda: method.predict(inputs, seed=0, batch_size=batch_size))
    # A pass to check against, and where masks are shared another as company, and one to learn the shapes from.
    assert used <= first + (passes + 3) * rest


def test_what_dropout_never_reaches_is_computed_once() -> None:
    """A second branch, which runs after the first dropout but does not depend on it."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 3))

        def forward(self, x: Tensor) -> Tensor:
            dropped = self.small(F.dropout(x, 0.5, self.training))
            return dropped + self.large(x)

    model = made(Branches)
    used = operations(lambda: MCDropout(model, num_samples=30).predict(X, seed=0))
    assert used <= operations(lambda: model.large(X)) + 31 * operations(lambda: model.small(X))
    samples = MCDropout(model, num_samples=500).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(model, X, 500))


def test_convolutions_before_the_classifier_run_once() -> None:
    model = made(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(16, 3),
        )
    )
    images = torch.randn(4, 3, 12, 12, generator=generator())
    body = operations(lambda: model[:6](images))
    used = operations(lambda: MCDropout(model, num_samples=50).predict(images, seed=0))
    assert used <= body + 51 * operations(lambda: model[7](torch.zeros(4, 16)))


# ---------------------------------------------------------------- in place


class InPlace(nn.Module):
    """A residual network whose residuals are added as ``add(hidden, branch)`` writes it."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.middle, self.branch = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        hidden = self.add(hidden, torch.tanh(self.middle(hidden)))  # before any dropout
        hidden = self.add(hidden, F.dropout(self.branch(hidden), 0.5, self.training))
        hidden = self.add(hidden, F.dropout(self.branch(hidden), 0.5, self.training))
        return self.head(hidden)


def _plus_equals(hidden: Tensor, branch: Tensor) -> Tensor:
    hidden += branch
    return hidden


def _through_a_view(hidden: Tensor, branch: Tensor) -> Tensor:
    view = hidden.view(-1, 4, 4)
    view.add_(branch.view(-1, 4, 4))
    return hidden


def _part_by_part(hidden: Tensor, branch: Tensor) -> Tensor:
    hidden[:, 1:] += branch[:, 1:]
    hidden[:, :1] += branch[:, :1]
    return hidden


def _transposed(hidden: Tensor, branch: Tensor) -> Tensor:
    hidden.t()[:] += branch.t()
    return hidden


def _into_a_buffer(hidden: Tensor, branch: Tensor) -> Tensor:
    out = torch.empty_like(hidden)
    out[:, :8] = hidden[:, :8] + branch[:, :8]
    out[:, 8:] = hidden[:, 8:] + branch[:, 8:]
    return out


def _into_zeros(hidden: Tensor, branch: Tensor) -> Tensor:
    out = torch.zeros(hidden.shape)
    out.copy_(hidden)
    out += branch
    return out


def _out_argument(hidden: Tensor, branch: Tensor) -> Tensor:
    return torch.add(hidden, branch, out=torch.empty(len(hidden), 16))


def _index_put(hidden: Tensor, branch: Tensor) -> Tensor:
    hidden.index_add_(1, torch.arange(16), branch)
    return hidden


FOLLOWED = [_plus_equals, _through_a_view, _part_by_part, _transposed, _into_a_buffer, _index_put]
NOT_FOLLOWED = [_into_zeros, _out_argument]  # written to a tensor that was made from no input


@pytest.mark.parametrize(
    ("add", "masks"),
    [*((add, "per_input") for add in FOLLOWED + NOT_FOLLOWED), *((add, "shared") for add in FOLLOWED)],
)
def test_adding_in_place_gives_the_samples_of_adding_out_of_place(add: Any, masks: Any) -> None:
    expected = MCDropout(made(lambda: InPlace(lambda h, b: h + b)), num_samples=40, masks=masks)
    method = MCDropout(made(lambda: InPlace(add)), num_samples=40, masks=masks)
    torch.testing.assert_close(
        method.predict_samples(X, seed=0), expected.predict_samples(X, seed=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("add", [_plus_equals, _part_by_part, _into_a_buffer])
def test_adding_in_place_leaves_each_pass_its_own(add: Any) -> None:
    model = made(lambda: InPlace(add))
    for chunk_size in (None, 16):
        samples = MCDropout(model, num_samples=200, chunk_size=chunk_size).predict_samples(X, seed=0)
        assert_same_distribution(samples, plain_passes(model, X, 200))


def test_dropout_in_place_on_what_was_computed_once_leaves_each_pass_its_own() -> None:
    class DropsInPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.stem(x)
            kept = hidden.relu()
            F.dropout(hidden, 0.5, self.training, inplace=True)
            return self.head(hidden + kept)

    model = made(DropsInPlace)
    samples = MCDropout(model, num_samples=500).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(model, X, 500))


# ---------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The largest tensor, in numbers, that any operation answers."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device.type != "meta":
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("masks", ["per_input", "shared"])
def test_memory_does_not_grow_with_the_passes(masks: Any) -> None:
    model = made(lambda: nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 3)))
    inputs = torch.zeros(3000, 8)
    with Largest() as largest:
        MCDropout(model, num_samples=100, masks=masks).predict(inputs, seed=0)
    assert largest.numbers <= 2**23  # all passes of a batch would make 2.6e7, those of all inputs 7.7e7


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunk_size_bounds_the_passes_computed_together(chunk_size: int) -> None:
    model = made(lambda: nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 3)))
    with Largest() as largest:
        MCDropout(model, num_samples=20, chunk_size=chunk_size).predict(torch.ones(100, 8), seed=0)
    assert largest.numbers <= chunk_size * 100 * 256


@pytest.mark.parametrize(("num_samples", "chunk_size"), [(1, 1), (1, 64), (2, 1), (10, 5), (11, 5), (11, 10)])
def test_every_pass_is_there_whatever_the_chunks(num_samples: int, chunk_size: int) -> None:
    model = made(lambda: deep(1, 1))
    samples = MCDropout(model, num_samples=num_samples, chunk_size=chunk_size).predict_samples(X, seed=0)
    assert samples.shape == (num_samples, 6, 3)
    rows = samples.flatten(1)
    assert len(rows.unique(dim=0)) == num_samples
    torch.testing.assert_close(samples.sum(-1), torch.ones(num_samples, 6))
