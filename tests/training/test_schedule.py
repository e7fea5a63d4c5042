"""Learning-rate schedules advance after each step or after each epoch, for one model and for an ensemble."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hesitant import DeepEnsemble, fit

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Noting:
    """Makes a schedule, and keeps it."""

    def __init__(self, make: Any) -> None:
        self.make, self.made = make, []

    def __call__(self, optimizer: Optimizer) -> Any:
        self.made.append(self.make(optimizer))
        return self.made[-1]


def trained(model: nn.Module, make: Any, **options: Any) -> Any:
    noting = Noting(make)
    fit(model, (X, Y), epochs=3, batch_size=10, scheduler=noting, progress=False, **options)
    return noting.made[0]


@pytest.mark.parametrize("model", [network, lambda: DeepEnsemble([network(0), network(1)], vectorize=True)])
@pytest.mark.parametrize(
    ("every", "accumulation", "expected"), [("epoch", 1, 3), ("step", 1, 12), ("step", 2, 6), ("epoch", 2, 3)]
)
def test_a_schedule_advances_as_often_as_is_said(model: Any, every: str, accumulation: int, expected: int) -> None:
    made = trained(
        model(),
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.9**step),
        schedule_every=every,
        gradient_accumulation_steps=accumulation,
    )
    assert made.last_epoch == expected


def rates_of(model: nn.Module, data: Any = (X, Y), **options: Any) -> list[float]:
    """Answers the learning rate of each step, the greatest 1."""
    rates: list[float] = []

    def note(optimizer: Any, _args: Any, _options: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(note)
    try:
        options = {"epochs": 3, "batch_size": 10, "progress": False, "learning_rate": 1.0, **options}
        history = fit(model, data, **options)
    finally:
        handle.remove()
    assert getattr(history, "one_by_one", None) is None
    return rates


def expected_rates(steps: int) -> list[float]:
    rising = steps / 10
    falling = [(1 + math.cos(math.pi * max(step - rising, 0) / (steps - rising))) / 2 for step in range(steps)]
    return [min((step + 1) / rising, of_cosine) for step, of_cosine in enumerate(falling)]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("build", [network, lambda: DeepEnsemble([network(0), network(1)], vectorize=True)])
def test_by_default_the_rate_rises_for_a_tenth_of_the_steps_and_falls_to_almost_none(
    build: Any, accumulation: int, epochs: int
) -> None:
    rates = rates_of(build(), epochs=epochs, batch_size=1, gradient_accumulation_steps=accumulation)
    assert rates == pytest.approx(expected_rates(epochs * math.ceil(40 / accumulation)))
    assert max(rates) > 0.99
    assert rates[-1] < 0.02


def test_a_loader_of_ones_own_says_how_many_steps_there_are() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, generator=torch.Generator())
    assert rates_of(network(), loader, epochs=2) == pytest.approx(expected_rates(6))


class Stream(IterableDataset[Any]):
    """Rows in their order."""

    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


def test_of_a_stream_that_does_not_say_how_long_it_is_the_rate_falls_from_epoch_to_epoch() -> None:
    rates = rates_of(network(), DataLoader(Stream(), batch_size=20))
    assert rates == pytest.approx([1, 1, 0.75, 0.75, 0.25, 0.25])


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_stream_that_is_longer_than_it_says_ends_at_the_least_rate() -> None:
    class Modest(Stream):
        def __len__(self) -> int:
            return 20

    rates = rates_of(network(), DataLoader(Modest(), batch_size=10), epochs=1)
    assert rates == pytest.approx([*expected_rates(2), 0, 0])


def test_one_cycle_runs_through_its_whole_cycle() -> None:
    rates = rates_of(network(), scheduler=lambda o: OneCycleLR(o, max_lr=0.1, total_steps=12), schedule_every="step")
    assert len(rates) == 12
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] < 1e-4 < rates[0]


@pytest.mark.parametrize("options", [{}, {"validation_data": (X[:10], Y[:10])}])
def test_a_plateau_lowers_the_rate(options: dict[str, Any]) -> None:
    rates = []

    class Noted(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            rates.append(float(metrics))
            super().step(1.0)  # nothing improves

    made = trained(network(), lambda o: Noted(o, factor=0.1, patience=0), **options)
    assert len(set(rates)) == 3
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_members_on_plateaus_of_their_own_are_trained_one_by_one() -> None:
    ensemble = DeepEnsemble([network(0), network(1)], vectorize=True)
    history = fit(ensemble, (X, Y), epochs=2, scheduler=ReduceLROnPlateau, progress=False)
    assert "plateau" in history.one_by_one  # type: ignore[attr-defined]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule_every='batch' is not known"):
        fit(network(), (X, Y), epochs=1, schedule_every="batch", progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ReduceLROnPlateau, which goes by epochs"):
        trained(network(), ReduceLROnPlateau, schedule_every="step")
