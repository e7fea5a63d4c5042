import itertools
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesitant
from hesitant import SNGP
from hesitant.nn.models import MLP
from hesitant.training.checkpoint import Progress, load_checkpoint, save_checkpoint


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
    # A constant rate: runs are broken off here by asking for fewer epochs.
    defaults: dict[str, Any] = {"batch_size": 16, "device": "cpu", "progress": False, "learning_rate": 0.02}
    return hesitant.fit(model, data, epochs=epochs, **{"scheduler": None} | defaults | options)


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
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),  # has a state before its first step
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


class Halving:
    def __init__(self) -> None:
        self.factor = torch.tensor(0.5)

    def __call__(self, epoch: int) -> float:
        return float(self.factor**epoch)


SCHEDULES: dict[str, Any] = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
    "steps": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3], 0.2),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 1), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)],
        milestones=[1],
    ),
    "steps in a sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 1), torch.optim.lr_scheduler.MultiStepLR(o, [1, 2], 0.2)],
        milestones=[1],
    ),
    "a function with numbers": lambda o: torch.optim.lr_scheduler.LambdaLR(o, Halving()),
    "chain": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 3), torch.optim.lr_scheduler.MultiStepLR(o, [3], 0.2)]
    ),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=5),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch 2.6, of its own SequentialLR
@pytest.mark.parametrize("name", ["cosine", "steps in a sequence", "a function with numbers", "chain"])
def test_schedules_resume(tmp_path: Path, name: str) -> None:
    whole, resumed, _, _ = broken_off(tmp_path, dense, 2, 4, scheduler=SCHEDULES[name])
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
    with pytest.raises(ValueError, match=r"checkpoint=.* is of another run: weights"):
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


# What is nested in a state


def steps(optimizer: torch.optim.Optimizer, scheduler: Any, number: int, losses: Tensor) -> list[float]:
    rates = []
    for loss in losses[:number].tolist():
        optimizer.step(lambda: torch.zeros(()))
        scheduler.step(*([loss] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


STEPPED: dict[str, Any] = {
    **SCHEDULES,
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=40, three_phase=True),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1, cooldown=2, factor=0.9),
    "plateau, greatest": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, "max", patience=2, factor=0.9),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, scale_fn=lambda x: 0.9**x),
    "restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 3),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch 2.6, of its own SequentialLR
@pytest.mark.parametrize("make", STEPPED.values(), ids=STEPPED.keys())
def test_the_rates_after_a_resumed_schedule_are_those_of_an_unbroken_one(tmp_path: Path, make: Any) -> None:
    losses = torch.rand(30, generator=generator(3))

    def begun() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, make(optimizer)

    _, optimizer, scheduler = begun()
    expected = steps(optimizer, scheduler, 4 if make in SCHEDULES.values() else 30, losses)
    for before in (1, min(7, len(expected) - 1)):
        model, optimizer, scheduler = begun()
        steps(optimizer, scheduler, before, losses)
        save_checkpoint(tmp_path / "c", Progress(), model, optimizer, generator(), scheduler=scheduler)
        model, optimizer, scheduler = begun()
        load_checkpoint(tmp_path / "c", model, optimizer, generator(), scheduler)
        assert steps(optimizer, scheduler, len(expected) - before, losses[before:]) == expected[before:]


def test_an_optimizer_with_lists_of_tensors_and_a_rate_that_is_one_comes_back(tmp_path: Path) -> None:
    makers: list[Callable[[Any], torch.optim.Optimizer]] = [
        lambda p: torch.optim.LBFGS(p, max_iter=3),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    ]
    for make in makers:
        models = dense(), dense()
        optimizers = [make(model.parameters()) for model in models]

        def loss(model: nn.Module = models[0], optimizer: torch.optim.Optimizer = optimizers[0]) -> Tensor:
            optimizer.zero_grad()
            value = model(X).square().mean()
            value.backward()
            return value

        models[0].eval()
        optimizers[0].step(loss)
        save_checkpoint(tmp_path / "c", Progress(), models[0], optimizers[0], generator())
        load_checkpoint(tmp_path / "c", models[1], optimizers[1], generator())
        assert_alike(optimizers[0].state_dict(), optimizers[1].state_dict())


def assert_alike(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, Mapping):
        assert first.keys() == second.keys()
        for key in first:
            assert_alike(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_alike(one, other)
    else:
        assert first == second


def test_a_schedule_that_holds_what_needs_pickle_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    class Warmup(torch.optim.lr_scheduler.LambdaLR):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.after = torch.optim.lr_scheduler.StepLR(optimizer, 2)
            super().__init__(optimizer, lambda epoch: 1.0)

    with pytest.raises(TypeError, match=r"scheduler\.after is a StepLR, expected numbers, texts and tensors"):
        fit(dense(), 1, checkpoint=tmp_path / "c", scheduler=Warmup)
    assert list(tmp_path.iterdir()) == []


# Other runs, and files that were changed

RUN: dict[str, Any] = {"data size": 1000, "seed": 0, "optimizer": "AdamW", "learning rate": 1e-3, "precision": None}


def parts(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 + seed)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer, generator(seed)


def saved(path: Path, **options: Any) -> Path:
    save_checkpoint(path, Progress(2, [0.5, 0.25], [1.0, 0.5], 2, 1.5), *parts(), **{"run": RUN, **options})
    return path


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, draws: torch.Generator) -> Any:
    state = [weights(model), optimizer.state_dict(), draws.get_state(), torch.get_rng_state()]
    return deepcopy(state)


def refused(path: Path, message: str, **options: Any) -> None:
    """Loading raises one error that names the path, and leaves all as it was."""
    own = parts(1)
    before = state_of(*own)
    with pytest.raises(ValueError, match=message) as raised:
        load_checkpoint(path, *own, **{"run": RUN, **options})
    assert str(path) in str(raised.value)
    assert_alike(state_of(*own), before)


def test_a_checkpoint_of_another_run_is_refused_with_each_difference(tmp_path: Path) -> None:
    path = saved(tmp_path / "c")
    other = {**RUN, "data size": 800, "precision": "bf16"}
    refused(
        path,
        r"is of another run: data size 1000 there, 800 here; precision None there, bf16 here\. Delete the file .* or "
        "give another path",
        run=other,
    )
    del other["seed"]
    refused(path, r"; seed 0 there, nothing here\.", run=other)
    refused(path, r"workers nothing there, 2 here\.", run={**RUN, "workers": 2})
    refused(path, "data size 1000 there, nothing here; .*", run=None)
    found, best = load_checkpoint(path, *parts(1), run=RUN)
    assert (found, best) == (Progress(2, [0.5, 0.25], [1.0, 0.5], 2, 1.5), None)


def test_a_run_without_entries_does_not_go_on_as_one_with_some(tmp_path: Path) -> None:
    path = saved(tmp_path / "c", run=None)
    refused(path, "data size nothing there, 1000 here")
    load_checkpoint(path, *parts(1))


def test_entries_may_be_any_numbers(tmp_path: Path) -> None:
    run = {"norm": float("inf"), "loss": float("nan"), "rate": 1}
    load_checkpoint(saved(tmp_path / "c", run=run), *parts(1), run={**run, "rate": 1.0})


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """Rewrites the checkpoint with other metadata, which is JSON, or other tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    return path


PROGRESS = {"epoch": 2, "train_loss": [0.5, 0.25], "validation_nll": [1.0, 0.5], "best_epoch": 2, "seconds": 1.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": -1}, "epoch of its progress is -1"),
        ({"epoch": 1.5}, "epoch of its progress is 1.5"),
        ({"epoch": True}, "epoch of its progress is True"),
        ({"epoch": "2"}, "epoch of its progress is '2'"),
        ({"epoch": {"float": "nan"}}, "epoch of its progress is nan"),
        ({"epoch": 3}, "train_loss of its progress is .*, not 3 finite numbers"),
        ({"train_loss": [0.5, {"float": "nan"}]}, r"train_loss of its progress is \[0.5, nan\]"),
        ({"train_loss": [0.5, {"float": "inf"}]}, "train_loss of its progress"),
        ({"train_loss": 0.5}, "train_loss of its progress is 0.5"),
        ({"train_loss": ["a", "b"]}, "train_loss of its progress"),
        ({"train_loss": [True, False]}, "train_loss of its progress"),
        ({"validation_nll": [{"float": "nan"}]}, "validation_nll of its progress"),
        ({"validation_nll": [1.0, 1.0, 1.0]}, "validation_nll of its progress is .*, not at most 2"),
        ({"best_epoch": 3}, "best_epoch of its progress is 3, not null, or 1 to 2"),
        ({"best_epoch": 0}, "best_epoch of its progress is 0"),
        ({"best_epoch": 1.0}, "best_epoch of its progress is 1.0"),
        ({"seconds": -1.0}, "seconds of its progress is -1.0"),
        ({"seconds": {"float": "nan"}}, "seconds of its progress is nan"),
        ({"seconds": None}, "seconds of its progress is None"),
        ({"extra": 1}, "its progress has .*'extra'"),
    ],
)
def test_impossible_progress_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    pairs = [[name, value] for name, value in {**PROGRESS, **change}.items()]
    text = json.dumps({"dict": pairs})
    refused(
        changed(saved(tmp_path / "c"), lambda metadata, _: metadata.update(progress=text)), f"is damaged.*{message}"
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "1e400", "[" * 100_000, '{"dict": [[1]]}', '{"dict": 1}', '{"dict": [], "dict": []}', '{"a": 1}',
     '{"tensor": "none"}', '{"dict": [[[], 1]]}', '{"float": "1"}', '{"tuple": 3}'],
)  # fmt: skip
def test_entries_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    for entry in ("run", "progress", "optimizer", "scheduler"):
        path = changed(saved(tmp_path / "c"), lambda metadata, _, entry=entry: metadata.update({entry: text}))
        refused(path, "is damaged")


def test_entries_that_are_no_state_are_refused(tmp_path: Path) -> None:
    for text, entry in itertools.product(("[1, 2]", "7"), ("run", "progress", "optimizer", "scheduler")):
        path = changed(
            saved(tmp_path / "c"), lambda metadata, _, entry=entry, text=text: metadata.update({entry: text})
        )
        model, optimizer, draws = parts(1)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=r"(is damaged|is of another run|does not fit this)") as raised:
            load_checkpoint(path, model, optimizer, draws, run=RUN)
        assert str(path) in str(raised.value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert repr(optimizer.state_dict()) == repr(parts(1)[1].state_dict())


@pytest.mark.parametrize("entry", ["run", "progress", "optimizer", "scheduler"])
def test_a_missing_entry_is_named(tmp_path: Path, entry: str) -> None:
    refused(changed(saved(tmp_path / "c"), lambda metadata, _: metadata.pop(entry)), f"is damaged .it lacks {entry}")


def test_missing_and_wrong_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    refused(changed(saved(path), lambda _, tensors: tensors.pop("random.cpu")), "it lacks a random state")
    refused(changed(saved(path), lambda _, tensors: tensors.pop("random.generator")), "it lacks a random state")
    short = torch.zeros(1, 9, dtype=torch.uint8)
    refused(changed(saved(path), lambda _, tensors: tensors.update({"random.cpu": short})), "is damaged")
    refused(changed(saved(path), lambda _, tensors: tensors.update({"random.generator": short[0]})), "is damaged")
    none = "optimizer.state.0.exp_avg"
    refused(changed(saved(path), lambda _, tensors: tensors.pop(none)), f"it lacks the tensor '{none}'")
    wide = torch.zeros(9, 2)
    refused(changed(saved(path), lambda _, tensors: tensors.update({"model.0.weight": wide})), r"shape \(9, 2\) there")
    refused(changed(saved(path), lambda _, tensors: tensors.update({"best.0.weight": wide})), "its best weights")
    changed(saved(path), lambda _, tensors: tensors.pop("model.1.bias"))
    with pytest.raises(ValueError, match=r"checkpoint=.*Missing key.*1\.bias"):
        load_checkpoint(path, *parts(1), run=RUN)


def test_another_version_or_schedule_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    refused(changed(saved(path), lambda metadata, _: metadata.update(version="1")), "has version 1, expected 2")
    saved(path)
    model, optimizer, draws = parts(1)
    with pytest.raises(ValueError, match="does not fit this learning-rate schedule"):
        load_checkpoint(path, model, optimizer, draws, torch.optim.lr_scheduler.StepLR(optimizer, 2), run=RUN)
    saved(path, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2))
    with pytest.raises(ValueError, match="does not fit this learning-rate schedule"):
        load_checkpoint(path, *parts(1), run=RUN)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = saved(tmp_path / "c").read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "c").write_bytes(whole[:length])
        refused(tmp_path / "c", "cannot be read")


def test_two_runs_that_save_to_one_path_leave_one_whole_file(tmp_path: Path) -> None:
    import safetensors.torch

    inner, write = [], safetensors.torch.save_file

    def meanwhile_another(*arguments: Any) -> None:
        if not inner:
            inner.append(True)
            saved(tmp_path / "c")
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", meanwhile_another)
        saved(tmp_path / "c")
    load_checkpoint(tmp_path / "c", *parts(1), run=RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
