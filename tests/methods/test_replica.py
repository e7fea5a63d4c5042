"""A replica is the model's double: it answers alike, and nothing that happens to it happens to the model."""

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import generator
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hesitant.methods.replica import Replicas, in_eval_mode, replica

X = torch.randn(3, 4, 6, generator=generator(1))


class Tied(nn.Module):
    """One module under two names, and in a list that is no ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.listed = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.listed[0](x)


class Rebound(nn.Module):
    """Its ``forward`` is set on the instance, as accelerate does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.modes = nn.Linear(6, 6), []
        plain = self.forward
        self.forward = functools.partial(plain, scale=2.0)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.modes.append(self.training)
        return scale * self.linear(x)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)
        self.cache, self.table, self.kept = None, {}, [set()]

    def forward(self, x: Tensor) -> Tensor:
        self.cache = x
        self.table[len(x)] = x
        self.kept.append({len(x)})
        self.last = x
        self.calls = self.calls + 1
        return self.linear(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(6, 6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0]


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))), nn.ReLU())


def traced() -> nn.Module:
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(4), nn.ReLU()),
    "tied": Tied,
    "forward rebound": Rebound,
    "attributes": Remembers,
    "LSTM": Recurrent,
    "parametrized": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6))),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6))),
    "scripted": scripted,
    "traced": traced,
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), backend="eager"),
}
every_model = pytest.mark.parametrize("name", list(MODELS))


def made(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


@every_model
def test_it_answers_as_the_model_with_the_models_own_weights(name: str) -> None:
    model = made(name)
    double = replica(model)
    with torch.no_grad():
        torch.testing.assert_close(double(X), model(X), rtol=0, atol=0)
    own = [parameter.data_ptr() for parameter in model.parameters()]
    assert [parameter.data_ptr() for parameter in double.parameters()] == own


@every_model
def test_modes_are_its_own(name: str) -> None:
    model = made(name).train()
    double = replica(model)
    assert not any(module.training for module in double.modules())
    assert all(module.training for module in model.modules())
    double.train()
    model.eval()
    assert all(module.training for module in double.modules())


def test_modes_are_told_from_the_models_modules() -> None:
    model = made("plain")
    double = replica(model, training=lambda module: isinstance(module, nn.ReLU))
    assert [module.training for module in double.modules()] == [False, False, False, True]


def test_a_model_in_eval_mode_needs_no_replica() -> None:
    model = made("plain")
    assert in_eval_mode(model) is model
    model[1].train()
    assert in_eval_mode(model) is not model
    assert model[1].training
    assert not in_eval_mode(model)[1].training


def test_what_a_forward_keeps_goes_with_the_replica() -> None:
    model = made("attributes")
    replica(model)(X)
    assert model.cache is None
    assert model.last is None
    assert model.table == {}
    assert model.kept == [set()]
    assert float(model.calls) == 0


def test_each_replica_of_several_begins_as_the_model_was() -> None:
    replicas = Replicas(made("attributes"))
    for _ in range(3):
        double: Any = replicas.fresh()
        assert (double.cache, double.last, double.table, double.kept) == (None, None, {}, [set()])
        double(X)
        assert len(double.table) == 1


def test_what_is_written_to_in_place_can_be_each_replicas_own() -> None:
    model = made("attributes")
    replicas = Replicas(model)
    replicas.have_their_own({model.calls.untyped_storage()._cdata, model.linear.weight.untyped_storage()._cdata})
    for _ in range(2):
        double: Any = replicas.fresh()
        double.calls.add_(1)
        with torch.no_grad():
            double.linear.weight.zero_()
        assert float(double.calls) == 1
    assert float(model.calls) == 0
    assert float(model.linear.weight.detach().abs().sum()) > 0
    assert double.linear.bias is model.linear.bias


def test_a_forward_that_was_rebound_runs_on_the_replica() -> None:
    model = made("forward rebound")
    double: Any = replica(model)
    double(X)
    assert model.modes == []
    assert double.modes == [False]
    model.method = types.MethodType(lambda module: module, model)
    double = replica(model)
    assert double.method() is double


def test_tied_modules_stay_tied() -> None:
    double: Any = replica(made("tied"))
    assert double.first is double.second is double.listed[0]


def test_hooks_run() -> None:
    model, seen = made("plain"), []
    handle = model[0].register_forward_hook(lambda module, args, out: seen.append(module))
    double: Any = replica(model)
    double(X)
    handle.remove()
    assert len(seen) == 1
    assert seen[0] is double[0]


def test_a_compiled_model_is_run_as_it_was_written() -> None:
    model = made("compiled")
    assert type(replica(model)) is nn.Sequential
