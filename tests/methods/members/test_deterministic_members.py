from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from tests.methods.members.ensembles import X, mlp
from tests.methods.small_transformers import TEXT
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from hesitant import DeepEnsemble, Deterministic
from hesitant.inputs import batches
from hesitant.methods.members.deterministic_members import DeterministicMembers
from hesitant.nn.models import DeepResNet

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = {"input_ids": torch.arange(24).reshape(4, 6) % 50, "attention_mask": torch.ones(4, 6, dtype=torch.long)}


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), nn.Linear(4, 3))


class Binary(nn.Module):
    """A single logit without an axis of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze(-1)


CAN: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (mlp, X),
    "residual": (lambda: DeepResNet(4, 3), X),
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), X),
    "binary": (Binary, X),
    "float64": (lambda: mlp().double(), X.double()),
    "convolutions and BatchNorm": (convolutions, IMAGES),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=3), IMAGES),
    "fused transformer": (transformer, X),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3), IMAGES),
    "bert": (lambda: BertForSequenceClassification(BertConfig(**TEXT, num_labels=3)), TOKENS),
    "deterministic": (lambda: Deterministic(mlp()), X),
}


@pytest.mark.parametrize("name", CAN)
def test_members_that_run_as_one_answer_as_one_by_one(name: str) -> None:
    build, inputs = CAN[name]
    ensemble = DeepEnsemble.from_builder(build, 3)
    group = list(batches(inputs, 3))
    outputs: Any = "probabilities" if name == "softmax" else "logits"
    together, apart = (DeterministicMembers(list(ensemble.members), vectorize, outputs) for vectorize in (True, False))
    together.log_probs(group)  # each by itself, to look at how its code ends
    torch.testing.assert_close(together.log_probs(group), apart.log_probs(group), rtol=1e-4, atol=1e-5)
    assert together.run_as_one  # still: what vmap cannot run would have been asked one by one
    assert not apart.run_as_one


def test_predictions_and_samples_are_the_same_both_ways() -> None:
    ensemble = DeepEnsemble.from_builder(mlp, 3)
    found = []
    for ensemble.vectorize in (True, False):
        prediction = ensemble.predict(X, batch_size=7)
        found.append([getattr(prediction, field) for field in prediction.available])
        found[-1].append(ensemble.predict_samples(X, batch_size=7))
    torch.testing.assert_close(found[0], found[1])


class AlwaysOn(nn.Module):
    """Draws in eval mode, which vmap is not asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + 0 * F.dropout(x, 0.5, training=True).sum()


class Decides(AlwaysOn):
    """Computes what the numbers say."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if float(y.sum()) > 0 else -y


class Counts(AlwaysOn):
    """Writes to a buffer when it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


class Scales(AlwaysOn):
    """Has a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


@pytest.mark.parametrize("build", [AlwaysOn, Decides, Counts, Scales])
def test_members_that_cannot_run_as_one_answer_one_by_one(build: Callable[[], nn.Module]) -> None:
    ensemble = DeepEnsemble.from_builder(build, 3)
    ensemble.vectorize = True
    prediction = ensemble.predict(X)
    with torch.no_grad():
        expected = torch.stack([torch.softmax(member.eval()(X), -1) for member in ensemble.members])
    torch.testing.assert_close(prediction.probs, expected.mean(0))
    if build is Counts:
        assert [float(member.calls) for member in ensemble.members] == [2, 2, 2]  # once each by predict, once here


def test_members_of_one_device_run_apart_on_a_cpu_unless_they_are_told_to() -> None:
    members = [mlp() for _ in range(2)]
    assert not DeterministicMembers(members, None).run_as_one
    assert not DeterministicMembers(members[:1], True).run_as_one
    assert not DeterministicMembers([mlp(), mlp().to("meta")], True).run_as_one


@pytest.mark.parametrize("vectorize", [True, False])
def test_answers_that_are_not_finite_name_the_member(vectorize: bool) -> None:
    members = [mlp() for _ in range(3)]
    with torch.no_grad():
        next(members[1].parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the logits of members\[1\]\[0, 0\] is nan, expected a finite number"):
        DeepEnsemble(members, vectorize=vectorize).predict(X)


def test_running_as_one_leaves_the_weights_the_modes_and_the_inputs_alone() -> None:
    ensemble = DeepEnsemble.from_builder(lambda: nn.Sequential(nn.ReLU(inplace=True), convolutions()), 3)
    ensemble.vectorize = True
    kept, inputs = {name: value.clone() for name, value in ensemble.state_dict().items()}, IMAGES.clone()
    ensemble.train()
    ensemble.predict(inputs)
    assert all(module.training for module in ensemble.modules())
    assert torch.equal(inputs, IMAGES)
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, kept[name])
