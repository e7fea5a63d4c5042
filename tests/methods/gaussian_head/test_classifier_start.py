"""A trained model that is wrapped answers nearly as it did, without a step."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesitant
from hesitant import SNGP

D, C, N = 16, 6, 1500


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(N, D, generator=seeded(1))
Y = (X @ torch.randn(D, C, generator=seeded(2))).argmax(1)


def network(classes: int = C) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Linear(32, classes))


def trained() -> nn.Sequential:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return net.eval()


def sngp(net: nn.Module, **options: Any) -> SNGP:
    return SNGP(net, **{"num_inducing": 512, "generator": seeded(), "norm_bound": None, **options})


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return trained()


def agreement(first: Tensor, second: Tensor) -> float:
    return float((first.argmax(-1) == second.argmax(-1)).double().mean())


DATA: dict[str, Any] = {
    "tensors": (X, Y),
    "inputs alone": X,
    "examples": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=100),
}


@pytest.mark.parametrize("name", DATA)
def test_a_trained_model_that_is_wrapped_answers_nearly_as_it_did(net: nn.Sequential, name: str) -> None:
    with torch.no_grad():
        before = net(X)
    method = sngp(copy.deepcopy(net))
    method.fit_covariance(DATA[name])
    logits = method.predict(X).logits
    assert agreement(logits, before) > 0.97
    residual = (logits - before).square().mean() / before.var()
    assert float(residual) < 0.02


def test_it_is_the_plain_formula(net: nn.Sequential) -> None:
    exact, x = copy.deepcopy(net).double(), X.double()
    method = sngp(copy.deepcopy(exact), num_inducing=375, kernel_scale=20.0, parametrization="standard")
    with torch.no_grad():
        hidden, logits = exact[:2](x), exact(x)
        phi = method.gp.features(hidden)
    gram = phi.T @ phi
    ridge = 0.01 * phi.square().sum(1).mean()
    expected = torch.linalg.solve(gram + ridge * torch.eye(375, dtype=torch.float64), phi.T @ logits)
    assert method.start_from_classifier(x)  # 4 x 375 inputs: all of them
    torch.testing.assert_close(method.gp.output_weights.detach(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("vectorize", [None, True])
def test_fit_goes_on_from_there(net: nn.Sequential, vectorize: bool | None) -> None:
    wrapped = sngp(copy.deepcopy(net))
    model: nn.Module = wrapped
    if vectorize:
        other = sngp(copy.deepcopy(net), generator=seeded(1))
        model = hesitant.DeepEnsemble([wrapped, other], vectorize=True)
    history = hesitant.fit(model, (X, Y), epochs=1, learning_rate=1e-7, device="cpu", progress=False)
    fresh = hesitant.fit(sngp(network()), (X, Y), epochs=1, learning_rate=1e-7, device="cpu", progress=False)
    assert history.train_loss[0] < 0.5 * fresh.train_loss[0]


def test_a_classifier_that_was_never_trained_is_forgotten() -> None:
    method = sngp(network())
    beta = method.gp.output_weights.detach().clone()
    assert not method.start_from_classifier((X, Y))
    torch.testing.assert_close(method.gp.output_weights.detach(), beta)
    method = sngp(network())  # without targets nobody can tell, and it answers as it did
    assert method.start_from_classifier(X)


def test_what_has_been_set_is_left_alone(net: nn.Sequential) -> None:
    def loaded(method: SNGP) -> None:
        method.load_state_dict(sngp(copy.deepcopy(net), generator=seeded(4)).state_dict())

    def stepped(method: SNGP) -> None:
        F.cross_entropy(method.train()(X), Y).backward()
        torch.optim.SGD(method.parameters(), lr=0.1).step()

    def started(method: SNGP) -> None:
        method.start_from_classifier(X)

    for touch in (loaded, stepped, started):
        method = sngp(copy.deepcopy(net))
        touch(method)
        weights = method.gp.output_weights.detach().clone()
        assert not method.start_from_classifier(X)
        method.fit_covariance(X)
        torch.testing.assert_close(method.gp.output_weights.detach(), weights)


def test_a_look_at_shapes_a_cast_and_a_copy_do_not_lose_it(net: nn.Sequential) -> None:
    method = sngp(copy.deepcopy(net))
    method.train()(X[:4])
    method = copy.deepcopy(method.double().float())
    assert method.start_from_classifier(X)


def test_a_stream_that_is_gone_through_once_is_left_for_the_covariance(net: nn.Sequential) -> None:
    method = sngp(copy.deepcopy(net))
    method.fit_covariance(iter([X[:700], X[700:]]))
    assert float(method.gp.laplace.num_seen) == N


def test_data_that_fails_loses_nothing(net: nn.Sequential) -> None:
    method = sngp(copy.deepcopy(net))
    with pytest.raises(RuntimeError):
        method.start_from_classifier(X[:, :3])
    assert method.start_from_classifier(X)


def test_the_data_in_the_order_of_their_classes_do_as_well(net: nn.Sequential) -> None:
    order = Y.argsort()
    method = sngp(copy.deepcopy(net), num_inducing=128)  # 512 of the 1,500
    method.fit_covariance((X[order], Y[order]))
    with torch.no_grad():
        assert agreement(method.predict(X).logits, net(X)) > 0.9
