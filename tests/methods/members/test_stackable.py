import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from hesitant.methods.members.stackable import plain_attributes, why_not_stackable


class Config:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Holder(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.value = value


def scaled(factor: float) -> Callable[[float], float]:
    return lambda x: factor * x


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


SAME: dict[str, Callable[[], Any]] = {
    "number": lambda: 0.5,
    "config": lambda: Config(rate=0.1, sizes=[1, 2], inner=Config(name="a")),
    "dict": lambda: {"a": 1, "b": (2, "c")},
    "function": lambda: torch.relu,
    "closure": lambda: scaled(2.0),
    "partial": lambda: functools.partial(torch.add, alpha=2),
    "slots": lambda: Slotted(3),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_attributes_that_are_equal_make_models_alike(make: Callable[[], Any]) -> None:
    assert why_not_stackable([Holder(make()), Holder(make()), Holder(make())]) is None


OTHER: dict[str, tuple[Any, Any]] = {
    "number": (0.5, 0.25),
    "type": (1, 1.0),
    "config": (Config(inner=Config(name="a")), Config(inner=Config(name="b"))),
    "key": ({"a": 1}, {"b": 1}),
    "order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "tensor": (torch.ones(2), torch.ones(2)),
    "tensor within": ({"scale": torch.ones(2)}, {"scale": torch.zeros(2)}),
    "list": ([1, 2], [1, 3]),
    "length": ([1], [1, 2]),
    "function": (torch.relu, torch.tanh),
    "closure": (scaled(2.0), scaled(3.0)),
    "defaults": ((lambda x=1: x), (lambda x=2: x)),
    "partial": (functools.partial(torch.add, alpha=2), functools.partial(torch.add, alpha=3)),
    "slots": (Slotted(3), Slotted(4)),
    "generator": (torch.Generator(), torch.Generator()),
    "module in a list": ([nn.Linear(1, 1)], [nn.Linear(1, 1)]),
}


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_attributes_that_differ_or_cannot_be_told_make_models_differ(pair: tuple[Any, Any]) -> None:
    assert why_not_stackable([Holder(pair[0]), Holder(pair[0])]) is None
    assert why_not_stackable([Holder(pair[0]), Holder(pair[1])]) == "the members differ in their architecture"


def test_shapes_types_and_ties_make_models_differ() -> None:
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    first = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for other in (
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double(),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False),
        tied,
    ):
        assert why_not_stackable([first, other]) == "the members differ in their architecture"


def test_hooks_parametrizations_and_lazy_weights_stand_in_the_way() -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    assert "hooks" in str(why_not_stackable([nn.Linear(2, 2), hooked]))
    assert "parametrized" in str(why_not_stackable([parametrizations.weight_norm(nn.Linear(2, 2)) for _ in range(2)]))
    assert why_not_stackable([nn.LazyLinear(2) for _ in range(2)]) is not None


def test_plain_attributes_are_those_that_say_how_a_module_computes() -> None:
    network = nn.Sequential(nn.Dropout(0.3), Holder(torch.ones(1)))
    assert plain_attributes(network)["0"] == {"p": 0.3, "inplace": False}
    assert "value" not in plain_attributes(network)["1"]
