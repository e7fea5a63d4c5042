from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hesitant import Deterministic
from hesitant.nn.models import MLP
from hesitant.prediction import UnavailableError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(50, 4, generator=generator())
Y = torch.randint(0, 3, (50,), generator=generator())


def mlp(classes: int = 3) -> MLP:
    return MLP(4, classes, hidden=(16,), dropout=0.5, generator=generator())


def test_softmax_of_eval_forward_is_the_prediction() -> None:
    method = Deterministic(mlp()).eval()
    with torch.no_grad():
        assert torch.equal(torch.softmax(method(X), -1), method.predict(X).probs)
    assert torch.equal(method.predict(X).logits, method(X).detach())


def test_batch_size_changes_nothing() -> None:
    method = Deterministic(mlp())
    whole = method.predict(X, batch_size=50)
    for size in (1, 7, 49):
        torch.testing.assert_close(method.predict(X, batch_size=size).probs, whole.probs)
    assert len(method.predict(X[:1])) == 1


def test_targets_travel_through_a_shuffled_loader() -> None:
    method = Deterministic(mlp())
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=generator(3))
    shuffled = method.predict(loader)
    ordered = method.predict(TensorDataset(X, Y))
    assert ordered.targets is not None
    assert shuffled.targets is not None
    assert torch.equal(ordered.targets, Y)
    assert not torch.equal(shuffled.targets, Y)
    right = (ordered.labels == Y).sum()
    assert (shuffled.labels == shuffled.targets).sum() == right


class Answers(nn.Module):
    """A linear model whose output goes through ``function``."""

    def __init__(self, function: Any, classes: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(4, classes)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(x))


def test_a_model_that_ends_in_softmax_is_not_softmaxed_again() -> None:
    model = Answers(lambda logits: logits.softmax(-1))
    prediction = Deterministic(model, outputs="probabilities").predict(X)
    torch.testing.assert_close(prediction.probs, model(X).detach())
    with pytest.raises(UnavailableError, match="made from probabilities"):
        _ = prediction.logits


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_a_single_logit_is_binary(shape: tuple[int, ...]) -> None:
    model = Answers(lambda logits: logits.reshape(shape), classes=1)
    prediction = Deterministic(model).predict(X)
    assert prediction.probs.shape == (50, 2)
    torch.testing.assert_close(prediction.probs[:, 1], torch.sigmoid(model(X).detach()).flatten())


def test_outputs_that_carry_logits_are_read() -> None:
    plain = Deterministic(model := Answers(lambda logits: logits)).predict(X)
    for function in (lambda z: {"logits": z}, lambda z: (z, None)):
        model.function = function
        assert torch.equal(Deterministic(model).predict(X).probs, plain.probs)


def test_wrong_outputs_are_named() -> None:
    with pytest.raises(TypeError, match="the model answered a NoneType"):
        Deterministic(Answers(lambda logits: None)).predict(X)
    with pytest.raises(ValueError, match=r"answers logits of shape \(50, 1, 3\)"):
        Deterministic(Answers(lambda logits: logits.unsqueeze(1))).predict(X)
    with pytest.raises(ValueError, match=r"logits\[.*is nan"):
        Deterministic(Answers(lambda logits: logits * float("nan"))).predict(X)


def test_predicting_is_pure() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[2].eval()
    method = Deterministic(model)
    modes = [module.training for module in method.modules()]
    weights = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    state = torch.get_rng_state()
    first, second = method.predict(TensorDataset(X, Y)), method.predict(TensorDataset(X, Y))
    assert torch.equal(first.probs, second.probs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in method.state_dict().items())
    assert not first.probs.requires_grad
    with pytest.raises(RuntimeError):
        method.predict(X[:, :2])
    assert [module.training for module in method.modules()] == modes


def test_the_split_is_refused_with_a_reason() -> None:
    with pytest.raises(UnavailableError, match="deterministic model answers with one distribution"):
        _ = Deterministic(mlp()).predict(X).mutual_information


def test_half_precision_predicts_single_inputs() -> None:
    method = Deterministic(mlp()).bfloat16()
    x = X.bfloat16()
    singly = method.predict(x, batch_size=1)
    torch.testing.assert_close(singly.probs, method.predict(x).probs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, None])
def test_a_seed_that_is_none_is_refused_as_by_the_methods_that_draw(seed: Any) -> None:
    model = Deterministic(MLP(4, 3, hidden=(8,), dropout=0.0, generator=generator()))
    with pytest.raises(ValueError, match="seed="):
        model.predict(torch.zeros(2, 4), seed=seed)
