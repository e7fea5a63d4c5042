"""Tied weights stand once in a method's state dict, and come back under all of their names."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(4))
        self.again = nn.Module()
        self.again.register_buffer("scale", self.scale)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.second(self.first(x).relu() * self.scale)))


def sngp() -> SNGP:
    return SNGP(Tied(), num_inducing=8, generator=torch.Generator().manual_seed(0))


KINDS = {
    "SNGP": sngp,
    "MCDropout": lambda: MCDropout(Tied(), num_samples=3),
    "Deterministic": lambda: Deterministic(Tied()),
    "an SNGP in an ensemble": lambda: DeepEnsemble([sngp(), sngp()]),
    "MCDropout in an ensemble": lambda: DeepEnsemble([MCDropout(Tied()), MCDropout(Tied())]),
}
X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def built(kind: str, seed: int) -> Any:
    torch.manual_seed(seed)
    return KINDS[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_write_it_and_it_comes_back(kind: str, tmp_path: Path) -> None:
    method, other = built(kind, 0), built(kind, 1)
    for module in (*method.modules(), *other.modules()):
        if isinstance(module, SNGP):
            module.fit_covariance(X)
    save_file(method.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))  # strictly
    assert torch.equal(method.predict(X).probs, other.predict(X).probs)
    for module in other.modules():
        if isinstance(module, Tied):
            assert module.second.weight is module.first.weight
            assert module.again.scale is module.scale


def test_a_state_dict_with_all_names_loads_too() -> None:
    plain, method = Tied(), Deterministic(Tied())
    with_prefix = {f"model.{name}": tensor for name, tensor in plain.state_dict().items()}
    assert len(with_prefix) == len(method.state_dict()) + 2
    method.load_state_dict(with_prefix)
    assert torch.equal(method.predict(X).probs, Deterministic(plain).predict(X).probs)


def test_what_is_missing_is_still_missed() -> None:
    method = Deterministic(Tied())
    state = {name: tensor for name, tensor in method.state_dict().items() if "weight" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.weight.*second\.weight.*head\.weight"):
        method.load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda method: pickle.loads(pickle.dumps(method))])
def test_copies_do_as_the_original(copied: Any) -> None:
    method = Deterministic(Tied())
    again = copied(method)
    assert list(again.state_dict()) == list(method.state_dict())
    again.load_state_dict(method.state_dict())
