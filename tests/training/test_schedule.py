"""Learning-rate schedules advance after each step or after each epoch, for one model and for an ensemble."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

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


def test_one_cycle_runs_through_its_whole_cycle() -> None:
    rates = []

    class Noted(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    trained(
        network(),
        lambda o: OneCycleLR(o, max_lr=0.1, total_steps=12),
        schedule_every="step",
        optimizer=lambda parameters: Noted(parameters, lr=1.0),
    )
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
