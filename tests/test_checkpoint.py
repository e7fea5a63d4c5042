import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesitant
from hesitant import SNGP
from hesitant.checkpoint import Progress, load_checkpoint, save_checkpoint
from hesitant.nn.models import MLP


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(96, 4, generator=generator(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
DATA = TensorDataset(X, Y)
VALIDATION = TensorDataset(X[:32] + 0.3, Y[:32])


def dense() -> nn.Module:
    return MLP(4, 3, hidden=(16, 16), dropout=0.3, generator=generator())


def normed() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))


def convolutional() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
        )


def sngp(model: nn.Module, **options: Any) -> SNGP:
    return SNGP(model, **{"num_inducing": 32, "generator": generator(), "norm_bound": 0.9, **options})


def fit(model: nn.Module, epochs: int, data: Any = DATA, **options: Any) -> hesitant.History:
    defaults: dict[str, Any] = {"batch_size": 16, "device": "cpu", "progress": False, "learning_rate": 0.02}
    return hesitant.fit(model, data, epochs=epochs, **defaults | options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(first: nn.Module, second: nn.Module) -> None:
    answers = weights(first), weights(second)
    assert answers[0].keys() == answers[1].keys()
    differing = [name for name, tensor in answers[0].items() if not torch.equal(tensor, answers[1][name])]
    assert not differing


class Killed(Exception):
    pass


def broken_off(
    tmp_path: Path,
    make: Callable[[], nn.Module],
    at: int,
    epochs: int,
    data: Callable[[], Any] = lambda: DATA,
    **options: Any,
) -> tuple[nn.Module, nn.Module, hesitant.History, hesitant.History]:
    """Answers the model of an unbroken run and of one that was broken off after ``at`` epochs, and their histories."""
    whole, path = make(), tmp_path / "run" / "checkpoint.safetensors"
    history = fit(whole, epochs, data(), **options)
    fit(make(), at, data(), checkpoint=path, **options)
    resumed = make()
    return whole, resumed, history, fit(resumed, epochs, data(), checkpoint=path, **options)


OPTIMIZERS: dict[str, Any] = {
    "AdamW": None,
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
}


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, optimizer: Any) -> None:
    whole, resumed, first, second = broken_off(tmp_path, lambda: sngp(dense()), 2, 4, optimizer=optimizer)
    assert_same(whole, resumed)
    assert first.train_loss == second.train_loss


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: sngp(normed()), {}),
        (lambda: sngp(convolutional()), {}),
        (lambda: sngp(dense()), {"validation_data": VALIDATION}),
        (lambda: sngp(convolutional()), {"validation_data": VALIDATION}),
        (lambda: sngp(dense()), {"validation_data": VALIDATION, "patience": 3}),
        (lambda: sngp(dense(), momentum=0.9), {}),
        (lambda: sngp(dense(), momentum=1.0), {}),
        (lambda: sngp(dense(), kernel_scale=1.0, train_kernel_scale=True, normalize_input=True), {}),
        (lambda: sngp(dense()), {"mixed_precision": "bf16"}),
        (lambda: sngp(dense()), {"gradient_accumulation_steps": 4}),
        (dense, {}),
        (dense, {"validation_data": VALIDATION, "patience": 3}),
    ],
    ids=[
        "BatchNorm",
        "convolution",
        "validation",
        "convolution, validation",
        "patience",
        "momentum",
        "momentum 1",
        "trained kernel",
        "bf16",
        "accumulation",
        "plain",
        "plain, patience",
    ],
)
def test_whatever_is_trained_resumes(tmp_path: Path, make: Any, options: dict[str, Any]) -> None:
    whole, resumed, first, second = broken_off(tmp_path, make, 2, 4, **options)
    assert_same(whole, resumed)
    assert first.train_loss == second.train_loss
    assert first.validation_nll == second.validation_nll
    assert first.best_epoch == second.best_epoch


SCHEDULES: dict[str, Any] = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
    "steps": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3], 0.2),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 1), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)],
        milestones=[1],
    ),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=5),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch 2.6, of its own SequentialLR
@pytest.mark.parametrize("scheduler", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedules_resume(tmp_path: Path, scheduler: Any) -> None:
    whole, resumed, _, _ = broken_off(tmp_path, dense, 2, 4, scheduler=scheduler)
    assert_same(whole, resumed)


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_shuffling_loader_resumes(tmp_path: Path, own_generator: bool) -> None:
    def loader() -> Any:
        given = generator(5) if own_generator else None
        return DataLoader(DATA, batch_size=16, shuffle=True, generator=given)

    whole, resumed, _, _ = broken_off(tmp_path, dense, 2, 4, data=loader)
    assert_same(whole, resumed)


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    first, second = sngp(dense(), norm_bound=None), sngp(dense(), norm_bound=None)
    fit(first, 3, checkpoint=path)
    fit(second, 3, checkpoint=path)
    assert_same(first, second)
    assert second.covariance_state == "fitted"


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    options: dict[str, Any] = {"validation_data": VALIDATION, "patience": 1, "learning_rate": 0.3, "checkpoint": path}
    first, second = dense(), dense()
    before = fit(first, 40, **options)
    assert len(before.train_loss) < 40
    after = fit(second, 40, **options)
    assert after.train_loss == before.train_loss
    assert_same(first, second)


def test_an_interrupted_write_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    fit(dense(), 1, checkpoint=path)
    kept = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise Killed

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(Killed):
        fit(dense(), 2, checkpoint=path)
    assert path.read_bytes() == kept


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    garbage, foreign = tmp_path / "garbage", tmp_path / "foreign"
    garbage.write_bytes(b"no such thing")
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match=r"cannot be read.*delete it"):
        fit(dense(), 1, checkpoint=garbage)
    with pytest.raises(ValueError, match=r"was not written by hesitant\.fit"):
        fit(dense(), 1, checkpoint=foreign)


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    fit(dense(), 1, checkpoint=path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fit(MLP(4, 3, hidden=(8,), generator=generator()), 2, checkpoint=path)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
        model[2].weight = model[0].weight
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator(parameter.numel())))
        return model

    whole, resumed, _, _ = broken_off(tmp_path, tied, 1, 2)
    assert_same(whole, resumed)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model, other = dense(), dense()
    optimizers = [torch.optim.AdamW(m.parameters(), fused=True) for m in (model, other)]
    optimizers[0].zero_grad()
    model(X).sum().backward()
    optimizers[0].step()
    draws, loaded_draws = generator(4), generator()
    best = {name: tensor + 1 for name, tensor in weights(model).items() if tensor.is_floating_point()}
    state = torch.get_rng_state()
    progress = Progress(3, [0.5, 0.25, 0.1], [1.0], 2, 1.5)
    save_checkpoint(tmp_path / "c", progress, model, optimizers[0], draws, best)
    with torch.random.fork_rng():
        torch.rand(3)
        found, found_best = load_checkpoint(tmp_path / "c", other, optimizers[1], loaded_draws)
        assert torch.equal(torch.get_rng_state(), state)
    assert found == progress
    assert found_best is not None
    assert all(torch.equal(found_best[name], tensor) for name, tensor in best.items())
    assert_same(model, other)
    assert torch.equal(draws.get_state(), loaded_draws.get_state())
    assert json.dumps(optimizers[0].state_dict()["param_groups"]) == json.dumps(
        optimizers[1].state_dict()["param_groups"]
    )
