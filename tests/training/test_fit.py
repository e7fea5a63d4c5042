import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import hesitant
from hesitant import SNGP, Deterministic
from hesitant.evaluation import nll
from hesitant.nn.models import MLP
from hesitant.training import cross_entropy
from hesitant.training.loop import steps_plainly


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(96, 4, generator=generator(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
DATA = TensorDataset(X, Y)
VALIDATION = TensorDataset(X[:32] + 0.3, Y[:32])


def mlp(classes: int = 3, dropout: float = 0.2) -> nn.Module:
    return MLP(4, classes, hidden=(16, 16), dropout=dropout, generator=generator())


def sngp(**options: Any) -> SNGP:
    return SNGP(options.pop("model", None) or mlp(), **{"num_inducing": 32, "generator": generator(), **options})


def fit(model: nn.Module, data: Any = DATA, **options: Any) -> hesitant.History:
    defaults = {"epochs": 3, "batch_size": 16, "device": "cpu", "progress": False, "scheduler": None}
    return hesitant.fit(model, data, **{**defaults, **options})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("make", [sngp, mlp, lambda: Deterministic(mlp())], ids=["SNGP", "plain", "Deterministic"])
def test_the_loss_falls(make: Callable[[], nn.Module]) -> None:
    model = make()
    history = fit(model, epochs=15, learning_rate=1e-2)
    assert history.train_loss[-1] < 0.6 * history.train_loss[0]
    assert len(history.train_loss) == 15
    assert history.validation_nll == []
    assert history.best_epoch is None
    assert history.seconds > 0


def test_the_covariance_is_that_of_the_final_weights() -> None:
    method = sngp()
    fit(method)
    assert method.covariance_state == "fitted"
    fitted = method.gp.precision.clone()
    method.fit_covariance(X)
    torch.testing.assert_close(method.gp.precision, fitted, rtol=1e-5, atol=1e-5)
    assert float(method.gp.laplace.num_seen) == 96


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_seed_gives_the_same_result_and_leaves_the_global_generator_alone(mixed_precision: Any) -> None:
    answers = []
    for disturbance in (3, 4):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        method = sngp()
        fit(method, mixed_precision=mixed_precision, seed=7)
        assert torch.equal(torch.get_rng_state(), state)
        answers.append(weights(method))
    assert same(*answers)
    other = sngp()
    fit(other, mixed_precision=mixed_precision, seed=8)
    assert not same(answers[0], weights(other))


class Dicts(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": X[index], "labels": Y[index]}


def test_the_form_of_the_data_changes_nothing() -> None:
    answers = []
    pairs: list[Any] = list(zip(X, Y, strict=True))
    for data in (DATA, (X, Y), Dicts(), pairs):
        method = sngp()
        fit(method, data)
        answers.append(weights(method))
    assert all(same(answers[0], other) for other in answers[1:])


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_shuffling_loader_is_reproducible(own_generator: bool) -> None:
    answers = []
    for _ in range(2):
        given = generator(5) if own_generator else None
        method = sngp()
        fit(method, DataLoader(DATA, batch_size=16, shuffle=True, generator=given, drop_last=True))
        answers.append(weights(method))
        assert float(method.gp.laplace.num_seen) == 96
    assert same(*answers)


def test_the_same_loader_twice_gives_the_same_result_twice() -> None:
    loader = DataLoader(DATA, batch_size=16, shuffle=True)
    first, second = sngp(), sngp()
    fit(first, loader)
    fit(second, loader)
    assert same(weights(first), weights(second))


def test_validation_measures_what_will_be_deployed() -> None:
    method = sngp()
    history = fit(method, validation_data=VALIDATION)
    assert len(history.validation_nll) == 3
    assert history.validation_nll[-1] == pytest.approx(nll(method.predict(VALIDATION)), rel=1e-5)
    plain = mlp()
    history = fit(plain, validation_data=(VALIDATION.tensors[0], VALIDATION.tensors[1]))
    assert history.validation_nll[-1] == pytest.approx(nll(Deterministic(plain).predict(VALIDATION)), rel=1e-5)


def test_validation_does_not_change_the_training() -> None:
    method, validated = sngp(norm_bound=None), sngp(norm_bound=None)
    fit(method)
    fit(validated, validation_data=VALIDATION)
    assert same(weights(method), weights(validated))


def test_early_stopping_goes_back_to_the_best_weights() -> None:
    method = sngp()
    history = fit(method, validation_data=VALIDATION, epochs=40, patience=2, learning_rate=0.05)
    assert history.best_epoch is not None
    assert len(history.validation_nll) == history.best_epoch + 2 < 40
    assert history.validation_nll[history.best_epoch - 1] == min(history.validation_nll)
    assert method.covariance_state == "fitted"
    assert nll(method.predict(VALIDATION)) == pytest.approx(min(history.validation_nll), rel=1e-4)


def test_accumulated_batches_are_one_larger_batch() -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    def in_order(size: int) -> Any:
        return DataLoader(DATA, batch_size=size)

    # A parametrization is decided by a first batch, and these are of different sizes.
    options: dict[str, Any] = {"l2_penalty": 0.1, "kernel_scale": 2.7, "parametrization": "standard"}
    once, often = (sngp(model=mlp(dropout=0.0), **options) for _ in range(2))
    fit(once, in_order(32), optimizer=sgd)
    fit(often, in_order(8), optimizer=sgd, gradient_accumulation_steps=4)
    for name, parameter in once.named_parameters():
        torch.testing.assert_close(parameter, often.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_bf16_trains_and_keeps_the_precision_exact() -> None:
    method = sngp()
    history = fit(method, mixed_precision="bf16", epochs=10, learning_rate=1e-2)
    assert history.train_loss[-1] < history.train_loss[0]
    assert method.gp.precision.dtype == torch.float64
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    fitted = method.gp.precision.clone()
    method.fit_covariance(X)
    torch.testing.assert_close(fitted, method.gp.precision, rtol=1e-5, atol=1e-5)
    assert bool((method.predict(X).logit_variance > 0).all())


def test_fits_of_different_kinds_follow_one_another() -> None:
    for options in ({}, {"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}, {"device": None}, {}):
        method = sngp()
        fit(method, epochs=1, **options)
        assert len(method.predict(X)) == 96


def test_the_accelerator_of_an_own_loop_is_left_alone() -> None:
    from accelerate import Accelerator

    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4, cpu=True)
    fit(mlp(), epochs=1, gradient_accumulation_steps=2)
    assert own.mixed_precision == "bf16"
    assert own.gradient_accumulation_steps == 4
    assert own.num_processes == 1


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_nothing_of_accelerate_stays_on_the_model(mixed_precision: Any) -> None:
    method, plain = sngp(), mlp()
    before = method.forward
    for model in (method, plain):
        fit(model, mixed_precision=mixed_precision, epochs=1)
        assert "_original_forward" not in model.__dict__
        assert all(p.grad is None for p in model.parameters())
    assert method.forward == before
    assert plain.forward == type(plain).forward.__get__(plain)
    assert copy.deepcopy(method).covariance_state == "fitted"


def test_nothing_of_accelerate_stays_after_an_error() -> None:
    method = sngp(kernel_scale=1.0)
    before = method.forward
    bad = TensorDataset(X * float("nan"), Y)
    with pytest.raises(ValueError, match="NaN"):
        fit(method, bad, mixed_precision="bf16")
    assert method.forward == before
    assert "_original_forward" not in method.__dict__


def test_a_running_covariance_is_kept_and_not_refitted() -> None:
    for momentum in (0.9, 1.0):
        method = sngp(momentum=momentum)
        fit(method, validation_data=VALIDATION)
        assert method.covariance_state == "fitted"
        if momentum == 1:
            assert float(method.gp.laplace.num_seen) == 96
        assert len(method.predict(X)) == 96


def test_a_schedule_and_clipping_take_part() -> None:
    seen: list[float] = []

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        def factor(epoch: int) -> float:
            seen.append(epoch)
            return 0.1**epoch

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    method = sngp()
    fit(method, scheduler=schedule, max_grad_norm=1e-3)
    assert seen == [0, 1, 2, 3]
    frozen = sngp(norm_bound=None, parametrization="standard")
    start = weights(frozen)
    fit(frozen, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), max_grad_norm=1e-9)
    for name, parameter in frozen.named_parameters():
        torch.testing.assert_close(parameter, start[name], rtol=1e-5, atol=1e-5)


def test_a_single_logit_is_trained_with_the_binary_loss() -> None:
    targets = (X[:, 0] > 0).long()
    for given in (targets, targets.float()):
        method = sngp(model=mlp(1), likelihood="binary_logistic")
        history = fit(method, TensorDataset(X, given), epochs=15, learning_rate=1e-2)
        assert history.train_loss[-1] < history.train_loss[0]


def test_cross_entropy_of_one_logit_is_that_of_two() -> None:
    z = torch.randn(10, generator=generator())
    targets = (z > 0).long()
    two = torch.stack([torch.zeros(10), z], 1)
    for logits in (z, z.unsqueeze(1)):
        torch.testing.assert_close(cross_entropy(logits, targets), cross_entropy(two, targets))


def test_soft_targets_train() -> None:
    soft = torch.nn.functional.one_hot(Y, 3).float() * 0.9 + 0.1 / 3
    history = fit(mlp(), TensorDataset(X, soft), epochs=10, learning_rate=1e-2)
    assert history.train_loss[-1] < history.train_loss[0]


def test_own_loss_has_own_targets() -> None:
    def squared(logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.squeeze(-1) - targets).square().mean()

    history = fit(mlp(1), TensorDataset(X, 7 * Y), loss=squared, epochs=2)
    assert len(history.train_loss) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TensorDataset(X, Y + 1), r"targets lie in \[1, 3\]: expected 0 to 2"),
        (TensorDataset(X, Y - 1), r"targets lie in \[-1, 1\]: expected 0 to 2"),
        (TensorDataset(X, Y + 0.5), r"targets hold \d\.5: expected class indices"),
        (TensorDataset(X, torch.ones(len(X), 3)), r"targets\[0\] sums to 3.*multi-hot"),
        (TensorDataset(X, torch.ones(len(X), 3) - torch.eye(3)[Y] * 3), "below 0"),
        (TensorDataset(X), "data has no targets"),
        (X, "data has no targets"),
        (TensorDataset(X[:0], Y[:0]), "data is empty"),
        (TensorDataset(X * float("nan"), Y), "NaN"),
        (TensorDataset(X.where(X < 2, float("inf")), Y), "NaN or Inf"),
    ],
    ids=["high", "low", "float", "multi-hot", "negative", "none", "tensor", "empty", "NaN", "Inf"],
)
def test_bad_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(mlp(), data)


def test_binary_targets_beyond_one_are_named() -> None:
    for targets in (Y, Y.float()):
        with pytest.raises(ValueError, match=r"targets lie in \[0.*, 2.*\]: expected 0 to 1"):
            fit(mlp(1), TensorDataset(X, targets))


def test_data_of_an_unknown_kind_is_named() -> None:
    for data in (3, None):
        with pytest.raises(TypeError, match=f"data is a {type(data).__name__}: expected a tensor"):
            fit(mlp(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        ({"patience": 2}, "patience=2 must be at least 1 and needs validation_data"),
        ({"patience": 0, "validation_data": VALIDATION}, "patience=0"),
        ({"mixed_precision": "fp8"}, "mixed_precision='fp8' is not known"),
        ({"validation_data": TensorDataset(X)}, "validation_data has no targets"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(mlp(), **options)


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        fit(mlp().requires_grad_(False))


def test_the_global_generator_comes_back_after_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="targets lie"):
        fit(mlp(), TensorDataset(X, Y + 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_bar_shows(capsys: pytest.CaptureFixture[str]) -> None:
    fit(mlp(), epochs=2, progress=True, validation_data=VALIDATION)
    assert "2/2" in "".join(capsys.readouterr())


class Stream(IterableDataset[Any]):
    """Examples without a length."""

    def __iter__(self) -> Iterator[Any]:
        return zip(X, Y, strict=True)


@pytest.mark.parametrize(
    "data",
    [
        lambda: (X, Y.tolist()),
        lambda: (X, Y.int()),
        lambda: (X, Y.unsqueeze(1)),
        lambda: (X, Y.float()),
        lambda: (X, torch.eye(3)[Y]),
        lambda: (X.numpy(), Y.numpy()),
        lambda: list(zip(X, Y, strict=True)),
        Stream,
    ],
    ids=["list", "int32", "column", "float", "one-hot", "arrays", "examples", "IterableDataset"],
)
def test_targets_and_data_however_they_are_written_train(data: Any) -> None:
    method = sngp(model=mlp(dropout=0.0))
    history = fit(method, data(), epochs=2)
    assert len(history.train_loss) == 2
    assert method.predict(data()).targets is not None
    assert not any(module.training for module in method.modules())


def test_several_inputs_and_their_targets_are_told_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
            return self.linear(torch.cat([first, torch.zeros_like(first) if second is None else second], 1))

    model = SNGP(Two(), num_inducing=16)
    fit(model, ([X, X], Y), epochs=1)
    together, alone = model.predict([X, X]), model.predict(X)
    assert not torch.allclose(together.probs, alone.probs)
    torch.testing.assert_close(model.predict((X, Y)).probs, alone.probs)
    torch.testing.assert_close(model.predict(TensorDataset(X, Y)).probs, alone.probs)
    torch.testing.assert_close(model.predict({"first": X, "second": X, "labels": Y}).probs, together.probs)


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    fit(mlp(dropout=0.0), (X, Y), epochs=1, checkpoint=path)
    others: list[tuple[Any, dict[str, Any], str]] = [
        ((X[:10], Y[:10]), {}, "number of inputs 96 there, 10 here"),
        ((X, Y), {"seed": 5}, "seed 0 there, 5 here"),
        ((X, Y), {"learning_rate": 0.5}, "optimizer's lr .* there, 0.5 here"),
        ((X, Y), {"batch_size": 2}, "batch_size .* there, 2 here"),
        ((X, Y), {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1 there, 2 here"),
        ((X, Y), {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}, "optimizer AdamW there, SGD here"),
    ]
    for data, options, message in others:
        with pytest.raises(ValueError, match=message):
            fit(mlp(dropout=0.0), data, epochs=2, checkpoint=path, **options)
    assert len(fit(mlp(dropout=0.0), (X, Y), epochs=2, checkpoint=path).train_loss) == 2


@pytest.mark.parametrize(
    ("distributed_type", "scaler", "steps", "plain"),
    [
        ("NO", None, 1, True),
        ("MULTI_GPU", None, 1, True),
        ("FSDP", None, 1, False),
        ("NO", object(), 1, False),
        ("NO", None, 2, False),
    ],
)
def test_accelerate_steps_where_it_has_something_to_do(
    distributed_type: str, scaler: object, steps: int, plain: bool
) -> None:
    accelerator: Any = SimpleNamespace(
        distributed_type=SimpleNamespace(value=distributed_type), scaler=scaler, gradient_accumulation_steps=steps
    )
    assert steps_plainly(accelerator) is plain
