import copy
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesitant.methods.gaussian_head.classifier import find_classifier
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


class HasTwoHiddenNames(nn.Module):
    """Its hidden layer has a name that elsewhere classifiers have, and its Python depends on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.output = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            raise ValueError
        return self.output(torch.relu(self.fc(x)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (RegistersItsClassifierFirst(), "classifier"),
        (NamesItsClassifier(), "classifier"),
        (HasLabels(), "classifier"),
        (ChecksShapes(), "classifier"),
        (LoopsOnItsData(), "classifier"),
        (DependsOnItsData(), "classifier"),
        (MLP(2, 3), "classifier"),
        (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(-1)), "2"),
        (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), "2"),
        (nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 3)), "2"),
        (nn.Linear(2, 3), ""),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3)), "2"),
        (DeepResNet(), "classifier"),
    ],
)
def test_the_linear_that_makes_the_logits_is_found_from_the_model_alone(model: nn.Module, expected: str) -> None:
    assert find_classifier(model) == expected


def test_an_example_input_tells_where_the_code_does_not() -> None:
    model = DependsOnItsData()
    for example in (torch.ones(1, 2), (torch.ones(1, 2),), {"x": torch.ones(1, 2), "scale": 2.0}):
        assert find_classifier(model, example_input=example) == "classifier"
    for unclear in (HasTwoHiddenNames(), TakesOtherWays()):
        with pytest.raises(ValueError, match=r"give its name, classifier=..., one of \['.*', '.*'\]"):
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


def test_nobody_meets_the_model_in_another_mode_meanwhile() -> None:
    class Looks(RegistersItsClassifierFirst):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((model.training, len(model.classifier._forward_hooks), self.training))
            return super().forward(x)

    seen: list[tuple[bool, int, bool]] = []
    model = Looks().train()
    find_classifier(model, example_input=torch.ones(1, 2))
    assert seen == [(True, 0, False)]


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


# ---------------------------------------------------------------- several heads


class Heads(nn.Module):
    """Two heads on a body, and what ``answer`` makes of their outputs; ``looks`` at its data if it cannot be traced."""

    def __init__(
        self, answer: Callable[[Tensor, Tensor], Any], *, looks: bool = False, last_first: bool = False
    ) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.answer, self.looks, self.last_first = answer, looks, last_first

    def forward(self, x: Tensor) -> Any:
        if self.looks:
            float(x.sum())
        hidden = torch.relu(self.body(x))
        if self.last_first:
            second, first = self.b(hidden), self.a(hidden)
        else:
            first, second = self.a(hidden), self.b(hidden)
        return self.answer(first, second)


ANSWERS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "a tuple": (lambda a, b: (a, b), "a"),
    "a tuple, the other way": (lambda a, b: (b, a), "b"),
    "a dict": (lambda a, b: {"aux": b, "logits": a}, "a"),
    "an average": (lambda a, b: (a + b) / 2, "a"),
    "a scale": (lambda a, b: 10 * a, "a"),
    "a bounded one": (lambda a, b: torch.tanh(a), "a"),
    "a slice": (lambda a, b: a[:, :2], "a"),
    "a view by the other's shape": (lambda a, b: a.reshape(b.size(0), b.shape[1]), "a"),
    "an object": (lambda a, b: SimpleNamespace(loss=b.sum(), logits=a), "a"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_of_two_heads_the_one_that_is_read_is_taken(name: str) -> None:
    answer, expected = ANSWERS[name]
    example = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for looks, last_first in itertools.product((False, True), (False, True)):
        if name == "an average":
            expected = "b" if last_first else "a"  # either would do; the first that runs
        model = Heads(answer, looks=looks, last_first=last_first)
        assert find_classifier(model, example_input=example) == expected
        if not looks and name != "an object":  # a trace answers with nothing that torch.fx does not know
            assert find_classifier(model) == expected


def test_the_head_whose_values_are_the_logits_comes_before_one_that_is_added_with_no_weight() -> None:
    model = Heads(lambda a, b: b + 0 * a.sum())
    assert find_classifier(model, example_input=torch.ones(5, 2)) == "b"


def test_an_auxiliary_head_that_runs_last_is_not_taken() -> None:
    class Supervised(Heads):
        def forward(self, x: Tensor) -> Any:
            logits, auxiliary = super().forward(x)
            return (logits, auxiliary) if self.training else logits

    for training in (False, True):
        model = Supervised(lambda a, b: (a, b)).train(training)
        assert find_classifier(model) == "a"
        assert find_classifier(model, example_input=torch.ones(5, 2)) == "a"


def test_a_layer_after_the_last_linear_makes_the_logits_not_the_linear() -> None:
    def ends_in_a_convolution() -> nn.Module:
        tail = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 3, 1), nn.Flatten())
        return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), tail)

    with pytest.raises(ValueError, match="are not made by a Linear"):
        find_classifier(ends_in_a_convolution(), example_input=torch.ones(5, 2))
    with pytest.raises(ValueError, match="cannot be told"):
        find_classifier(ends_in_a_convolution())


def test_a_learned_scale_and_bias_after_the_classifier_are_no_layer() -> None:
    class Scales(RegistersItsClassifierFirst):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * super().forward(x) + self.bias

    assert find_classifier(Scales()) == "classifier"
    assert find_classifier(Scales(), example_input=torch.ones(5, 2)) == "classifier"


def test_an_input_that_is_written_in_place_is_followed() -> None:
    class Writes(Heads):
        def forward(self, x: Tensor) -> Any:
            logits = torch.zeros(len(x), 3)
            hidden = torch.relu(self.body(x))
            self.b(hidden)
            logits[:, :] = self.a(hidden)
            self.b(logits @ torch.ones(3, 4))
            return logits.add_(1)

    assert find_classifier(Writes(lambda a, b: a), example_input=torch.ones(5, 2)) == "a"


# ---------------------------------------------------------------- what libraries call it


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        float(x.sum())
        raise NotImplementedError


def with_children(num_labels: int | None = None, /, **children: nn.Module) -> nn.Module:
    model = Untraceable()
    for name, child in children.items():
        model.add_module(name, child)
    if num_labels is not None:
        model.num_labels = num_labels  # type: ignore[assignment]
    return model


def linear(classes: int = 3) -> nn.Linear:
    return nn.Linear(4, classes)


class Roberta(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out_proj, self.dense = linear(), linear(4)


NAMED: list[tuple[nn.Module, str]] = [
    (with_children(classifier=linear(), body=linear(4)), "classifier"),
    (with_children(score=linear(), body=linear(4)), "score"),
    (with_children(3, pre_classifier=linear(), classifier=linear()), "classifier"),
    (with_children(3, projector=linear(), classifier=linear()), "classifier"),
    (with_children(3, cls_classifier=linear(), distillation_classifier=linear()), "cls_classifier"),
    (with_children(3, body=linear(3), classification_head=Roberta()), "classification_head.out_proj"),
    (with_children(3, body=linear(3), classifier=Roberta()), "classifier.out_proj"),
    (with_children(3, body=linear(3), heads=nn.Sequential(linear(4), nn.Tanh(), linear())), "heads.2"),
    (with_children(3, body=linear(3), classifier=nn.Sequential(linear(4), linear(), nn.ReLU())), "classifier.1"),
    (with_children(3, fc=linear(4), head=linear(3)), "head"),
    (with_children(body=linear(4), fc=linear()), "fc"),
    (with_children(3, fc=linear(4), logits_proj=linear(3)), "logits_proj"),
]


@pytest.mark.parametrize(("model", "expected"), NAMED)
def test_a_usual_name_is_obvious(model: nn.Module, expected: str) -> None:
    assert find_classifier(model) == expected


@pytest.mark.parametrize(
    "model",
    [
        with_children(fc=linear(4), output=linear()),
        with_children(head=linear(), classifier=linear()),
        with_children(out_proj=linear(4), mlp=linear(4)),
        with_children(body=linear(4), output=linear()),
    ],
)
def test_a_name_that_others_have_too_is_not(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="cannot be told from its code"):
        find_classifier(model)


def test_of_several_classifiers_that_a_model_names_the_first_is_taken() -> None:
    for several in (tuple, list, nn.ModuleList):
        model = with_children(body=linear(), b=linear(), a=linear())
        model.get_classifier = lambda model=model, several=several: several([model.a, model.b])  # type: ignore[assignment]
        assert find_classifier(model) == "a"


# ---------------------------------------------------------------- adapters


class Copies(nn.Module):
    """What PEFT puts around a layer that it trains a copy of for each adapter."""

    def __init__(self, module: nn.Module, active: str = "default") -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict({"other": copy.deepcopy(module), "default": copy.deepcopy(module)})
        self.active_adapter, self.disable_adapters = active, False

    def forward(self, x: Tensor) -> Tensor:
        if self.disable_adapters:
            return self.original_module(x)
        return self.modules_to_save[self.active_adapter](x)


class Adapted(nn.Module):
    def __init__(self, module: nn.Linear) -> None:
        super().__init__()
        self.base_layer = module
        self.lora_A, self.lora_B = nn.Linear(module.in_features, 2), nn.Linear(2, module.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Peft(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def get_base_model(self) -> nn.Module:
        return self.base_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


def test_the_active_copy_of_an_adapted_model_is_the_one_that_runs() -> None:
    for active, disabled in (("default", False), ("other", False), ("default", True)):
        inner = HasLabels()
        inner.classifier = Copies(inner.classifier, active)  # type: ignore[assignment]
        inner.classifier.disable_adapters = disabled  # type: ignore[assignment]
        expected = "original_module" if disabled else f"modules_to_save.{active}"
        for kwargs in ({}, {"example_input": torch.ones(1, 2)}):
            assert find_classifier(Peft(inner), **kwargs) == f"base_model.classifier.{expected}"
        if not disabled:
            with pytest.raises(ValueError, match="is not a Linear of the model: it has"):
                find_classifier(Peft(inner), "base_model.classifier.original_module")


def test_a_classifier_with_an_adapter_around_it_is_refused() -> None:
    inner = HasLabels()
    inner.classifier = Adapted(inner.classifier)  # type: ignore[assignment]
    inner.backbone = Adapted(inner.backbone)  # type: ignore[assignment]
    for kwargs in ({}, {"example_input": torch.ones(1, 2)}, {"name": "base_model.classifier.base_layer"}):
        with pytest.raises(ValueError, match=r"has an adapter around it \(Adapted\).*modules_to_save"):
            find_classifier(Peft(inner), **kwargs)


@pytest.mark.slow  # imports the compiler
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_looked_into() -> None:
    for kwargs in ({}, {"example_input": torch.ones(1, 2)}):
        compiled: Any = torch.compile(DependsOnItsData(), backend="eager")
        assert find_classifier(compiled, **kwargs) == "_orig_mod.classifier"
