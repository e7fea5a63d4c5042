from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesitant.methods.classifier import find_classifier
from hesitant.nn.models import MLP, DeepResNet


class RegistersItsClassifierFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)
        self.backbone = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.backbone(x)))


class DependsOnItsData(RegistersItsClassifierFirst):
    """Cannot be traced, so that only running it tells."""

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        for row in x:
            if row.sum() > 0:
                x = x * scale
        return super().forward(x)


class ChecksShapes(RegistersItsClassifierFirst):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 2:
            raise ValueError(x.shape)
        return super().forward(x)


class TakesOtherWays(RegistersItsClassifierFirst):
    """Which Linear comes last depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.backbone(x)


class LoopsOnItsData(RegistersItsClassifierFirst):
    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 0:
            x = x - 1
        return super().forward(x)


class NamesItsClassifier(DependsOnItsData):
    def get_classifier(self) -> nn.Module:
        return self.classifier


class HasLabels(DependsOnItsData):
    num_labels = 3


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (RegistersItsClassifierFirst(), "classifier"),
        (NamesItsClassifier(), "classifier"),
        (HasLabels(), "classifier"),
        (ChecksShapes(), "classifier"),
        (LoopsOnItsData(), "classifier"),
        (MLP(2, 3), "classifier"),
        (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(-1)), "2"),
        (nn.Linear(2, 3), ""),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3)), "2"),
        (DeepResNet(), "classifier"),
    ],
)
def test_the_last_linear_to_run_is_found_from_the_model_alone(model: nn.Module, expected: str) -> None:
    assert find_classifier(model) == expected


def test_an_example_input_tells_where_the_code_does_not() -> None:
    model = DependsOnItsData()
    for example in (torch.ones(1, 2), (torch.ones(1, 2),), {"x": torch.ones(1, 2), "scale": 2.0}):
        assert find_classifier(model, example_input=example) == "classifier"
    for unclear in (model, TakesOtherWays()):
        with pytest.raises(ValueError, match=r"give its name, classifier=..., one of \['classifier', 'backbone'\]"):
            find_classifier(unclear)


def test_running_the_example_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_classifier(model, example_input=torch.ones(1, 2))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_modes_and_hooks_are_restored_after_a_failing_example() -> None:
    model = DependsOnItsData()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find_classifier(model, example_input=torch.ones(1, 7))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_given_name_decides_and_is_checked() -> None:
    assert find_classifier(RegistersItsClassifierFirst(), "backbone") == "backbone"
    for wrong in ("nowhere", ""):
        with pytest.raises(ValueError, match=r"is not a Linear of the model: it has \['classifier', 'backbone'\]"):
            find_classifier(RegistersItsClassifierFirst(), wrong)


def test_a_model_without_a_linear_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"end the model in nn.Linear"):
        find_classifier(nn.Conv2d(1, 1, 3))


def test_attention_projections_are_no_classifiers() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                raise ValueError
            hidden: Any = self.attention(x, x, x)[0]
            return self.head(hidden.mean(1))

    assert find_classifier(Attends()) == "head"


def test_linears_that_never_run_are_not_taken() -> None:
    model = MLP(2, 3)
    model.unused = nn.Linear(3, 3)  # type: ignore[assignment]
    assert find_classifier(model) != "unused"
    assert find_classifier(model, example_input=torch.ones(1, 2)) != "unused"
