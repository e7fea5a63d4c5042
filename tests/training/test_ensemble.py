import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import hesitant
from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.inputs import Order, training_loader
from hesitant.methods.dropout import Masks
from hesitant.methods.random_state import derived_seed
from hesitant.nn.models import MLP, DeepResNet
from hesitant.training.history import EnsembleHistory
from hesitant.training.vectorized.stacked_functions import StackedFunctions


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(72, 4, generator=generator(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
DATA = TensorDataset(X, Y)
VALIDATION = TensorDataset(X[:24] + 0.3, Y[:24])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layer(self.embed(torch.stack([x, -x, x * x], 1))).mean(1))


class Dropping(nn.Module):
    """Drops in one of many ways."""

    def __init__(self, drop: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 3)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        return self.second(self.drop(hidden) if self.training else hidden)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.again, self.out = (nn.Linear(*s) for s in ((4, 6), (6, 6), (6, 6), (6, 3)))
        self.again.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(F.relu(self.inner(self.embed(x)))))


class Dicts(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": X[index] + 0.1 * torch.randn(4), "labels": Y[index]}


class Texts(Dataset[Any]):
    """Inputs of different lengths, which are padded to the longest of a batch."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index].repeat(1 + index % 7, 1), Y[index]


def padded(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    texts = nn.utils.rnn.pad_sequence([text for text, _ in items], batch_first=True)
    return texts, torch.stack([target for _, target in items])


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word, self.classifier = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.word(x)).sum(1))


def mlp(dropout: float = 0.0) -> nn.Module:
    return MLP(4, 3, hidden=(16, 12), dropout=dropout)


def resnet() -> nn.Module:
    return DeepResNet(4, 3, width=16, depth=3, dropout=0.0)


def sngp() -> nn.Module:
    return SNGP(resnet(), num_inducing=24, norm_bound=0.9)


def dropping() -> nn.Module:
    return mlp(0.3)


def ensemble_of(build: Callable[[], nn.Module], members: int = 3, vectorize: bool | None = True) -> DeepEnsemble:
    ensemble = DeepEnsemble.from_builder(build, members)
    ensemble.vectorize = vectorize
    return ensemble


def fit(ensemble: nn.Module, data: Any = DATA, **options: Any) -> EnsembleHistory:
    # A constant rate: runs are broken off here by asking for fewer epochs.
    defaults = {
        "epochs": 3,
        "batch_size": 16,
        "device": "cpu",
        "progress": False,
        "learning_rate": 1e-2,
        "scheduler": None,
    }
    history = hesitant.fit(ensemble, data, **{**defaults, **options})
    assert isinstance(history, EnsembleHistory)
    return history


def assert_close(first: nn.Module, second: nn.Module, tolerance: float = 2e-4) -> None:
    answers, others = first.state_dict(), second.state_dict()
    assert answers.keys() == others.keys()
    for name, tensor in answers.items():
        if tensor.is_floating_point():
            scale = float(others[name].double().nan_to_num().abs().max()) + 1e-3
            torch.testing.assert_close(tensor, others[name], rtol=0, atol=tolerance * scale, equal_nan=True, msg=name)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    answers, others = first.state_dict(), second.state_dict()
    assert [name for name, tensor in answers.items() if not torch.equal(tensor, others[name])] == []


def both_ways(
    build: Callable[[], nn.Module], data: Any = DATA, **options: Any
) -> tuple[EnsembleHistory, EnsembleHistory, DeepEnsemble, DeepEnsemble]:
    together, apart = ensemble_of(build), ensemble_of(build, vectorize=False)
    # Momentum keeps gradients that are zero but for rounding (a key's bias) from growing into steps, as Adam's do.
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)}
    histories = fit(together, data, **{**sgd, **options}), fit(apart, data, **{**sgd, **options})
    assert histories[0].one_by_one is None
    assert histories[1].one_by_one == "vectorize is False"
    return *histories, together, apart


pytestmark = pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")

WAYS_TO_DROP: dict[str, Callable[[Tensor], Tensor]] = {
    "F.dropout": lambda h: F.dropout(h, 0.3),
    "in place": lambda h: F.dropout(h * 1, 0.3, inplace=True),
    "alpha": lambda h: F.alpha_dropout(h, 0.3, training=True),
    "features": lambda h: F.dropout1d(h.unsqueeze(2).expand(-1, -1, 2), 0.3).mean(2),
    "attention": lambda h: F.scaled_dot_product_attention(*[h.view(-1, 1, 3, 4)] * 3, dropout_p=0.3).reshape(-1, 12),
    "stochastic depth": lambda h: h + h * h.new_empty(len(h), 1).bernoulli_(0.7).div_(0.7),
    "torch.bernoulli": lambda h: h * torch.bernoulli(torch.full_like(h, 1.0), 0.7),
    "everything": lambda h: F.dropout(h, 1.0),
    "noise": lambda h: h + 0.1 * torch.randn_like(h),
}


@pytest.mark.parametrize(
    "build", [mlp, resnet, Attending, Tied, sngp], ids=["MLP", "ResNet", "attention", "tied", "SNGP"]
)
def test_members_trained_together_are_those_trained_one_by_one(build: Callable[[], nn.Module]) -> None:
    together, apart, first, second = both_ways(build)
    assert_close(first, second)
    assert together.train_loss == pytest.approx(apart.train_loss, rel=1e-4)


def test_the_documented_way_below_vmap_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    direct, documented = ensemble_of(dropping), ensemble_of(dropping)
    assert fit(direct).one_by_one is None
    monkeypatch.setattr("hesitant.training.vectorized.below_vmap._DIRECT", False)
    assert fit(documented).one_by_one is None
    assert_same(direct, documented)


@pytest.mark.parametrize("drop", WAYS_TO_DROP.values(), ids=WAYS_TO_DROP.keys())
def test_what_members_draw_together_has_the_distribution_of_what_one_draws(drop: Callable[[Tensor], Tensor]) -> None:
    model = Dropping(drop).train()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.square().mean()

    together = DeepEnsemble([copy.deepcopy(model) for _ in range(120)], vectorize=True)
    unmoved = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "loss": loss, "epochs": 1, "batch_size": 72}
    history = fit(together, **unmoved)
    assert history.one_by_one is None
    drawn = torch.tensor([member.train_loss[0] for member in history.members])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        expected = torch.stack([loss(model(X), Y) for _ in range(600)])
    error = (expected.var() * (1 / len(drawn) + 1 / len(expected))).sqrt() + 1e-6
    assert abs(drawn.mean() - expected.mean()) < 4 * error
    if expected.std() > 1e-6:
        assert len(drawn.unique()) > 110
        assert 0.75 < drawn.std() / expected.std() < 1.33


OPTIONS: dict[str, dict[str, Any]] = {
    "max_grad_norm": {"max_grad_norm": 0.05},
    "accumulation": {"gradient_accumulation_steps": 2},
    "schedule": {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)},
    "loss": {"loss": lambda logits, targets: F.cross_entropy(logits, targets, label_smoothing=0.2)},
    "validation": {"validation_data": VALIDATION},
    "patience": {"validation_data": VALIDATION, "patience": 1, "epochs": 5},
    "AdamW": {"optimizer": None, "weight_decay": 0.1},
    "Adagrad": {"optimizer": lambda p: torch.optim.Adagrad(p, lr=0.05)},
    "RMSprop": {"optimizer": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5)},
    "groups": {"optimizer": lambda p: torch.optim.SGD([{"params": [q]} for q in p if q.ndim > 1], lr=0.1)},
    "one batch": {"batch_size": 100},
}


@pytest.mark.parametrize(
    ("build", "name"),
    [*((mlp, name) for name in OPTIONS), *((sngp, name) for name in ("max_grad_norm", "patience", "AdamW"))],
)
def test_every_option_of_fit_means_the_same_either_way(build: Callable[[], nn.Module], name: str) -> None:
    together, apart, first, second = both_ways(build, **OPTIONS[name])
    assert_close(first, second)
    assert together.validation_nll == pytest.approx(apart.validation_nll, rel=1e-3)
    assert [h.best_epoch for h in together.members] == [h.best_epoch for h in apart.members]


def test_mixed_precision_means_the_same_either_way() -> None:
    _, _, first, second = both_ways(mlp, mixed_precision="bf16")
    assert_close(first, second, tolerance=2e-3)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        Dicts(),
        list(zip(X, Y, strict=True)),
        DataLoader(DATA, batch_size=16, shuffle=True),
        DataLoader(DATA, batch_size=16, shuffle=True, generator=generator(3), drop_last=True),
        DataLoader(DATA, batch_size=16),
        DataLoader(DATA, batch_size=16, sampler=WeightedRandomSampler(torch.arange(72.0).tolist(), 40)),
    ],
    ids=["tensors", "drawing dicts", "list", "loader", "loader, generator", "in order", "weighted"],
)
def test_the_form_of_the_data_means_the_same_either_way(data: Any) -> None:
    class Named(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    _, _, first, second = both_ways(lambda: Named(4, 3, hidden=(12,), dropout=0.0), data)
    assert_close(first, second)


def test_batches_of_different_lengths_are_trained_as_they_are() -> None:
    data = DataLoader(Texts(), batch_size=8, shuffle=True, collate_fn=padded)
    _, _, first, second = both_ways(Reading, data)
    assert_close(first, second)


def test_several_threads_give_the_same_members() -> None:
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ensemble = ensemble_of(dropping, 5)
            assert fit(ensemble).one_by_one is None
            assert torch.get_num_threads() == count
            answers.append(ensemble)
    finally:
        torch.set_num_threads(threads)
    assert_close(answers[0], answers[1])
    assert_close(answers[0], answers[2])


def test_members_have_their_own_data_order_and_their_own_dropout() -> None:
    plain = dropping()
    members = [copy.deepcopy(plain) for _ in range(3)]
    for options in ({"batch_size": 16}, {"batch_size": 72}):  # in one batch, dropout alone tells them apart
        ensemble = DeepEnsemble([copy.deepcopy(member) for member in members])
        fit(ensemble, **options)
        heads = [member.classifier.weight for member in ensemble.members]
        assert not torch.allclose(heads[0], heads[1], atol=1e-4)
        assert not torch.allclose(heads[1], heads[2], atol=1e-4)
    without = DeepEnsemble([MLP(4, 3, hidden=(8,), dropout=0.0, generator=generator()) for _ in range(2)])
    fit(without, batch_size=16)
    assert not torch.allclose(without.members[0].classifier.weight, without.members[1].classifier.weight, atol=1e-5)


def test_a_member_is_the_same_whichever_others_there_are() -> None:
    five, two = ensemble_of(mlp, 5), ensemble_of(mlp, 2)
    fit(five)
    fit(two)
    for member, other in zip(two.members, five.members, strict=False):
        assert_close(member, other)


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_seed_gives_the_same_members_and_leaves_the_global_generator_alone(vectorize: bool) -> None:
    answers = []
    for disturbance, seed in ((3, 7), (4, 7), (4, 8)):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        ensemble = DeepEnsemble([MLP(4, 3, hidden=(8,), dropout=0.3, generator=generator(i)) for i in range(2)])
        ensemble.vectorize = vectorize
        fit(ensemble, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        answers.append(ensemble)
    assert_same(answers[0], answers[1])
    assert not torch.equal(answers[0].members[0].classifier.weight, answers[2].members[0].classifier.weight)


def test_without_dropout_a_member_is_that_of_a_fit_of_its_own() -> None:
    ensemble = ensemble_of(lambda: mlp(0.0))
    alone = copy.deepcopy(ensemble.members[1])
    fit(ensemble, seed=5)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 16, "device": "cpu", "progress": False, "learning_rate": 1e-2}
    hesitant.fit(alone, DATA, seed=derived_seed(5, 1), scheduler=None, **options)
    assert_close(ensemble.members[1], alone)


def test_the_order_of_an_epoch_is_that_of_a_loader() -> None:
    order = Order(72, generator(4))
    loader = training_loader((torch.arange(72), Y), 16, generator(4))
    for _ in range(3):
        assert torch.equal(order.draw(), torch.cat([batch.args[0] for batch in loader]))


def test_masks_keep_as_often_as_they_say_and_differ_between_members_and_epochs() -> None:
    def masks(epoch: int) -> Tensor:
        with StackedFunctions(2, Masks([(1, epoch)])):
            return torch.vmap(lambda row: F.dropout(row, 0.3), randomness="error")(torch.ones(2, 50_000))

    first, next_epoch = masks(0), masks(1)
    torch.testing.assert_close(first.mean(1), torch.ones(2), atol=0.02, rtol=0)
    agreement = (0.7**2 + 0.3**2) * torch.ones(())
    for a, b in ((first[0], first[1]), (first[0], next_epoch[0])):
        torch.testing.assert_close(((a > 0) == (b > 0)).float().mean(), agreement, atol=0.02, rtol=0)


@pytest.mark.parametrize("wrap", [Deterministic, MCDropout])
def test_methods_around_models_are_trained_as_the_models(wrap: Any) -> None:
    wrapped, plain = ensemble_of(lambda: wrap(dropping())), ensemble_of(dropping)
    assert fit(wrapped).one_by_one is None
    fit(plain)
    for member, other in zip(wrapped.members, plain.members, strict=True):
        assert_same(member.model, other)  # type: ignore[arg-type]


def test_sngps_are_deployable_after_training_together() -> None:
    ensemble = ensemble_of(sngp)
    history = fit(ensemble)
    assert history.one_by_one is None
    for member in ensemble.members:
        assert member.covariance_state == "fitted"
        assert max(member.spectral_normalizer.norms().values()) <= 0.9 * 1.01  # type: ignore[union-attr,operator]
    assert ensemble.predict(X).probs.shape == (72, 3)


def test_frozen_weights_stay_and_all_weights_have_storage_of_their_own() -> None:
    ensemble = ensemble_of(resnet)
    before = copy.deepcopy(ensemble)
    assert fit(ensemble).one_by_one is None
    for member, old in zip(ensemble.members, before.members, strict=True):
        assert torch.equal(member.input_layer.weight, old.input_layer.weight)  # type: ignore[union-attr]
        assert not torch.equal(member.classifier.weight, old.classifier.weight)  # type: ignore[union-attr]
        for parameter in member.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.nbytes
            assert parameter.grad is None
    assert [p.requires_grad for p in ensemble.parameters()] == [p.requires_grad for p in before.parameters()]


# ---------------------------------------------------------------- one by one


class Growing(nn.Module):
    """Counts its forward passes, in training, and goes by it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        return self.inner(x)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x if x.mean() > 0 else x * 2)


def with_hook() -> nn.Module:
    model = mlp()
    model.register_forward_hook(lambda module, args, output: output * 1)
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))


class Recomputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dropping()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


def with_momentum() -> nn.Module:
    return SNGP(mlp(), num_inducing=24, momentum=0.9)


ONE_BY_ONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "statistics": (with_norm, "keeps statistics while it trains"),
    "branch": (Branching, "data-dependent control flow"),
    "hook": (with_hook, "has hooks"),
    "parametrized": (parametrized, "parametrized"),
    "counter": (Growing, "its own attributes"),
    "recomputing": (Recomputing, ""),
    "momentum": (with_momentum, "covariance is kept"),
    "LSTM": (lambda: Recurrent(), ""),
}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.classifier = nn.LSTM(4, 6, 2, dropout=0.3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.cells(x.unsqueeze(0))[0][0])


@pytest.mark.parametrize(("build", "why"), ONE_BY_ONE.values(), ids=ONE_BY_ONE.keys())
def test_what_cannot_be_vectorised_is_trained_one_by_one_to_the_same_result(
    build: Callable[[], nn.Module], why: str
) -> None:
    asked, apart = ensemble_of(build), ensemble_of(build, vectorize=False)
    history = fit(asked)
    assert history.one_by_one is not None
    assert why in history.one_by_one
    fit(apart)
    assert_same(asked, apart)


def test_gradient_checkpointing_has_the_gradients_of_its_masks() -> None:
    recomputing, plain = ensemble_of(Recomputing, 2), ensemble_of(mlp, 2, vectorize=None)
    fit(recomputing)
    # The masks are PyTorch's own, so compare what a step at a time would show: the loss that training reaches.
    assert fit(recomputing, epochs=30).train_loss[-1] < 0.6 * fit(plain, epochs=1).train_loss[0]


def test_members_of_different_architectures_train_in_one_call() -> None:
    ensemble = DeepEnsemble([mlp(), resnet(), with_norm()])
    history = fit(ensemble, epochs=20)
    assert history.one_by_one == "the members differ in their architecture"
    assert all(member.train_loss[-1] < member.train_loss[0] for member in history.members)
    assert ensemble.predict(X).probs.shape == (72, 3)


@pytest.mark.parametrize("vary", ["rate", "frozen", "slope"])
def test_members_that_differ_in_anything_but_their_numbers_are_trained_one_by_one(vary: str) -> None:
    ensemble = ensemble_of(dropping, 2)
    last: Any = ensemble.members[1]
    if vary == "rate":
        next(module for module in last.modules() if isinstance(module, nn.Dropout)).p = 0.6
    elif vary == "frozen":
        last.classifier.bias.requires_grad_(False)
    else:
        last.layers[2] = nn.LeakyReLU(0.2)
    assert fit(ensemble).one_by_one == "the members differ in their architecture"


def test_an_optimizer_that_mixes_numbers_is_run_for_each_member() -> None:
    ensemble, apart = ensemble_of(mlp), ensemble_of(mlp, vectorize=False)
    adafactor = {"optimizer": lambda p: torch.optim.Adafactor(p, lr=0.01)}
    assert "Adafactor" in str(fit(ensemble, **adafactor).one_by_one)
    fit(apart, **adafactor)
    assert_same(ensemble, apart)


def test_large_or_convolutional_networks_are_trained_one_by_one_on_a_cpu() -> None:
    convolution = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(9, 3))
    for model in (convolution, MLP(4, 3, hidden=(1024, 1024), dropout=0.0)):
        ensemble = DeepEnsemble([model, copy.deepcopy(model)])
        assert "CPU" in str(fit(ensemble, epochs=1).one_by_one)


def test_convolutions_are_the_same_together() -> None:
    def build() -> nn.Module:
        layers = nn.Conv1d(1, 3, 2), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(9, 3)
        return nn.Sequential(nn.Unflatten(1, (1, 4)), *layers)

    _, _, first, second = both_ways(build)
    assert_close(first, second)


# ---------------------------------------------------------------- checkpoints, errors


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (dropping, {"scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4)}),
        (dropping, {"validation_data": VALIDATION, "patience": 2, "epochs": 6}),
        (lambda: Dropping(WAYS_TO_DROP["noise"]), {}),
        (sngp, {"validation_data": VALIDATION, "patience": 2, "epochs": 6}),
    ],
    ids=["schedule", "patience", "noise", "SNGP"],
)
def test_a_resumed_run_ends_as_an_unbroken_one(
    tmp_path: Path, build: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    options = {"epochs": 4, **options}
    whole, broken, resumed = (ensemble_of(build) for _ in range(3))
    expected = fit(whole, **options)
    path = tmp_path / "run" / "checkpoint"
    fit(broken, **{**options, "epochs": 2}, checkpoint=path)
    history = fit(resumed, **options, checkpoint=path)
    assert history.one_by_one is None
    assert history.train_loss == expected.train_loss
    assert history.validation_nll == expected.validation_nll
    assert_same(whole, resumed)


@pytest.mark.parametrize("started", [True, False])
def test_a_run_goes_on_either_way(tmp_path: Path, started: bool) -> None:
    whole, broken, resumed = (
        ensemble_of(mlp),
        ensemble_of(mlp, vectorize=started),
        ensemble_of(mlp, vectorize=not started),
    )
    fit(whole, epochs=4)
    fit(broken, epochs=2, checkpoint=tmp_path / "c")
    history = fit(resumed, epochs=4, checkpoint=tmp_path / "c")
    assert (history.one_by_one is None) is not started
    assert_close(whole, resumed)


def test_checkpoints_of_different_epochs_are_gone_on_from_one_by_one(tmp_path: Path) -> None:
    whole, broken, resumed = (ensemble_of(mlp) for _ in range(3))
    fit(whole, epochs=4)
    fit(broken, epochs=2, checkpoint=tmp_path / "c")
    (tmp_path / "c.member1").unlink()
    assert "checkpoint" in str(fit(resumed, epochs=4, checkpoint=tmp_path / "c").one_by_one)
    assert_close(whole, resumed)


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_loss_that_is_no_number_names_the_member(vectorize: bool) -> None:
    ensemble = ensemble_of(mlp, vectorize=vectorize)
    with torch.no_grad():
        next(iter(ensemble.members[1].parameters())).fill_(float("inf"))
    with pytest.raises(ValueError, match=r"members\[1\]: the training loss is nan"):
        fit(ensemble)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y + 1), r"targets lie in \[1, 3\]: expected 0 to 2"),
        ((X, torch.stack([Y, Y], 1)), r"targets\[\d+\] sums to"),
        (TensorDataset(X), "data has no targets"),
        ((X[:0], Y[:0]), "data is empty"),
    ],
    ids=["range", "shape", "none", "empty"],
)
def test_wrong_data_is_refused(vectorize: bool, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(ensemble_of(mlp, vectorize=vectorize), data)


def test_a_sampler_that_all_members_would_share_is_refused() -> None:
    class Backwards:
        def __iter__(self) -> Any:
            return iter(range(71, -1, -1))

        def __len__(self) -> int:
            return 72

    with pytest.raises(ValueError, match=r"sampler Backwards.*pass the Dataset"):
        fit(ensemble_of(mlp), DataLoader(DATA, batch_size=16, sampler=Backwards()))


def test_members_are_released_after_an_error() -> None:
    ensemble = ensemble_of(mlp)

    def stop(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    class Stopped(Exception):
        pass

    def make(optimizer: torch.optim.Optimizer) -> Any:
        def halt(epoch: int) -> float:
            if epoch == 2:
                raise Stopped
            return 1.0

        return torch.optim.lr_scheduler.LambdaLR(optimizer, halt)

    with pytest.raises(Stopped):
        fit(ensemble, loss=stop, scheduler=make)
    for parameter in ensemble.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def test_the_histories_of_the_members_are_kept_and_their_mean_is_the_ensembles() -> None:
    history = fit(ensemble_of(mlp), validation_data=VALIDATION)
    for epoch in range(3):
        assert history.train_loss[epoch] == pytest.approx(sum(h.train_loss[epoch] for h in history.members) / 3)
        assert history.validation_nll[epoch] == pytest.approx(sum(h.validation_nll[epoch] for h in history.members) / 3)
    assert history.best_epoch is not None
    assert history.validation_nll[history.best_epoch - 1] == min(history.validation_nll)


def test_members_stop_each_by_its_own_validation() -> None:
    options = {"validation_data": VALIDATION, "patience": 2, "epochs": 40, "learning_rate": 0.05}
    history = fit(ensemble_of(mlp, 4), **options)
    lengths = [len(member.train_loss) for member in history.members]
    assert len(set(lengths)) > 1
    for member in history.members:
        assert member.best_epoch is not None
        assert member.validation_nll[member.best_epoch - 1] == min(member.validation_nll)
        assert len(member.train_loss) in (40, member.best_epoch + 2)


def test_training_together_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(ensemble_of(Attending)).one_by_one is None
