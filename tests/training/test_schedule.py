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


def test_of_a_stream_that_does_not_say_how_long_it_is_the_first_epoch_has_the_full_rate() -> None:
    rates = rates_of(network(), DataLoader(Stream(), batch_size=20))
    assert rates == pytest.approx([1, 1, *[(1 + math.cos(math.pi * step / 6)) / 2 for step in range(2, 6)]])


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("said", [20, 60, 4000])
def test_a_stream_that_says_something_else_of_its_length_ends_where_it_ends(said: int) -> None:
    class Mistaken(Stream):
        def __len__(self) -> int:
            return said

    rates = rates_of(network(), DataLoader(Mistaken(), batch_size=10))
    assert rates[4:] == pytest.approx(expected_rates(12)[4:])
    assert rates[0] == pytest.approx(min(1.0, 10 / (said / 10 * 3)))


def test_a_sampler_whose_length_is_not_implemented_is_a_stream() -> None:
    class Sampler(torch.utils.data.Sampler[list[int]]):
        def __iter__(self) -> Any:
            return iter(torch.arange(40).split(10))

        def __len__(self) -> int:
            raise NotImplementedError

    rates = rates_of(network(), DataLoader(TensorDataset(X, Y), batch_sampler=Sampler()))
    assert rates == pytest.approx([1] * 4 + [(1 + math.cos(math.pi * step / 12)) / 2 for step in range(4, 12)])


def test_a_run_that_goes_on_with_batches_of_another_size_ends_at_almost_none(tmp_path: Any) -> None:
    def loader(size: int) -> Any:
        sampler = torch.utils.data.BatchSampler(range(40), size, drop_last=False)  # type: ignore[arg-type]
        return DataLoader(TensorDataset(X, Y), batch_sampler=list(sampler))  # type: ignore[arg-type]

    stopped_at_step(25, network(), loader(2), epochs=3, checkpoint=tmp_path / "run", learning_rate=1.0)
    rates = rates_of(network(), loader(5), checkpoint=tmp_path / "run")
    assert len(rates) == 16
    assert rates[0] == expected_rates(60)[20]
    assert rates[8:] == pytest.approx(expected_rates(24)[16:])


def stopped_at_step(step: int, model: nn.Module, data: Any = (X, Y), **options: Any) -> None:
    class Stopped(Exception):
        pass

    def stop(_optimizer: Any, _args: Any, _options: Any) -> None:
        seen.append(1)
        if len(seen) > step:
            raise Stopped

    seen: list[int] = []
    handle = register_optimizer_step_pre_hook(stop)
    try:
        with pytest.raises(Stopped):
            fit(model, data, progress=False, **options)
    finally:
        handle.remove()


def test_members_that_go_on_keep_their_rate_where_another_has_stopped(tmp_path: Any) -> None:
    def ensemble(vectorize: bool) -> DeepEnsemble:
        return DeepEnsemble([network(0), network(1)], vectorize=vectorize)

    options: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 8,
        "validation_data": (X[:20], Y[:20]),
        "patience": 1,
        "seed": 11,
    }
    options["learning_rate"] = 0.3  # so high that the second member gets worse
    whole = fit(ensemble(True), (X, Y), progress=False, **options)
    assert [len(member.train_loss) for member in whole.members] == [6, 2]  # type: ignore[attr-defined]
    path = tmp_path / "run"
    stopped_at_step(12, ensemble(True), checkpoint=path, **options)  # after two epochs of both
    stopped_at_step(7, ensemble(False), checkpoint=path, **options)  # after one more of the first
    rates = rates_of(ensemble(True), checkpoint=path, **options)
    assert rates == pytest.approx([0.3 * rate for rate in expected_rates(30)[15:]])


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
