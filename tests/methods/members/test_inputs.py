"""An ensemble asks all its members about the same inputs, whatever these are, and changes nothing by it."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.members.ensembles import CLASSES, TARGETS, X, dropout, each_kind, ensemble_of, sngp
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hesitant import DeepEnsemble, Prediction


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def assert_same(first: Prediction, second: Prediction) -> None:
    assert first.available == second.available
    for name in first.available:
        torch.testing.assert_close(getattr(first, name), getattr(second, name), msg=name)


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(X, TARGETS.tolist(), strict=True))


@each_kind
def test_inputs_of_every_form_are_answered_alike(build: Callable[[], nn.Module]) -> None:
    ensemble = ensemble_of(build, 2)
    plain = ensemble.predict(X, seed=0, batch_size=2)  # 20 batches: more than one group of them
    pairs = TensorDataset(X, TARGETS)
    for inputs in ((X,), {"x": X}, DataLoader(X, 2), iter(X.split(2))):  # type: ignore[arg-type]
        assert_same(ensemble.predict(inputs, seed=0, batch_size=2), plain)
    for inputs in (pairs, {"x": X, "labels": TARGETS}, DataLoader(pairs, 2), DataLoader(Stream(), 2)):
        assert_same(ensemble.predict(inputs, seed=0, batch_size=2), plain.with_targets(TARGETS))


@each_kind
def test_a_shuffled_loader_keeps_targets_and_inputs_together_for_all_members(build: Callable[[], nn.Module]) -> None:
    data = TensorDataset(X, torch.arange(40) % CLASSES)
    ensemble = ensemble_of(build)
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))
    prediction = ensemble.predict(loader, seed=0)
    assert not torch.equal(prediction.targets, TARGETS)
    if build is not dropout:
        ours = torch.cat([prediction.targets[:, None].float(), prediction.probs], 1)
        plain = torch.cat([TARGETS[:, None].float(), ensemble.predict(X).probs], 1)
        order = [
            sorted(range(40), key=lambda i, rows=rows: rows[i].round(decimals=4).tolist()) for rows in (ours, plain)
        ]
        torch.testing.assert_close(ours[order[0]], plain[order[1]])


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_every_member_is_asked_about_every_batch_once(batch_size: int) -> None:
    ensemble, asked = ensemble_of(), Counter()
    reads = Counter()

    class Data(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            reads[index] += 1
            return super().__getitem__(index)

    for position, member in enumerate(ensemble.members):
        member.register_forward_pre_hook(
            lambda _, args, p=position: asked.update((p, tuple(r)) for r in args[0].tolist())
        )
    ensemble.predict(Data(X), batch_size=batch_size)
    assert set(reads.values()) == {1}
    assert set(asked.values()) == {1}
    assert len(asked) == 3 * 40


@each_kind
def test_the_batch_size_changes_nothing_but_draws(build: Callable[[], nn.Module]) -> None:
    ensemble = ensemble_of(build)
    whole = ensemble.predict(X, seed=0)
    for size in (1, 7, 39):
        part = ensemble.predict(X, seed=0, batch_size=size)
        if build is dropout:
            assert float((part.probs - whole.probs).abs().mean()) < 0.1
        else:
            assert_same(part, whole)


def test_one_input_is_answered_and_none_or_no_batch_raise() -> None:
    ensemble = ensemble_of()
    assert ensemble.predict(X[:1]).probs.shape == (1, CLASSES)
    assert ensemble.predict_samples(X[:1]).shape == (3, 1, CLASSES)
    for inputs in (X[:0], [], TensorDataset(X[:0])):
        for ask in (ensemble.predict, ensemble.predict_samples):
            with pytest.raises(ValueError, match="expected at least one input"):
                ask(inputs)
    with pytest.raises(ValueError, match="batch_size=0"):
        ensemble.predict(X, batch_size=0)
    with pytest.raises(TypeError, match="data is a int"):
        ensemble.predict(3)


def test_options_that_no_member_knows_raise() -> None:
    with pytest.raises(TypeError, match=r"no option \['posterior'\]: its members take none"):
        ensemble_of().predict(X, posterior="monte_carlo")
    with pytest.raises(TypeError, match=r"no option \['num_sample'\].*'num_samples', 'posterior'"):
        ensemble_of(sngp).predict_samples(X, num_sample=3)
    with pytest.raises(ValueError, match="posterior='exact'"):
        ensemble_of(sngp).predict(X, posterior="exact")


# ---------------------------------------------------------------- purity


@each_kind
def test_predicting_changes_no_mode_no_tensor_and_no_random_state(build: Callable[[], nn.Module]) -> None:
    ensemble = ensemble_of(build)
    random.Random(0).shuffle(modules := list(ensemble.modules()))
    for module in modules[::2]:
        module.training = True
    modes = [module.training for module in ensemble.modules()]
    tensors = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    prediction = ensemble.predict(X, batch_size=2)
    ensemble.predict_samples(X, seed=1)
    assert not prediction.probs.requires_grad
    assert modes == [module.training for module in ensemble.modules()]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in ensemble.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert [len(module._forward_hooks) for module in ensemble.modules()] == [0] * len(modules)


@each_kind
def test_a_member_that_fails_leaves_the_modes_as_they_were(build: Callable[[], nn.Module]) -> None:
    ensemble = ensemble_of(build).train()
    ensemble.members[0].eval()
    modes = [module.training for module in ensemble.modules()]
    with pytest.raises(ValueError, match="in_features=4"):
        ensemble.predict(torch.ones(2, 5))
    assert modes == [module.training for module in ensemble.modules()]
    assert len(ensemble.predict(X)) == 40


class Elsewhere(nn.Linear):
    """Stands in for a model on another device: asks for its inputs there."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.device == self.weight.device
        return torch.ones(len(x), CLASSES)


@each_kind
def test_each_member_gets_its_inputs_on_its_own_device(build: Callable[[], nn.Module]) -> None:
    member = build()
    ensemble = DeepEnsemble([member, Elsewhere(4, CLASSES, device="meta")]).eval()
    alone = DeepEnsemble([member]).predict(X, seed=0)
    torch.testing.assert_close(ensemble.predict(X, seed=0).probs, alone.probs / 2 + 1 / 6)
    assert ensemble(X).shape == (40, CLASSES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_kind
def test_members_on_other_devices_answer_as_on_one(build: Callable[[], nn.Module]) -> None:
    ensemble = ensemble_of(build)
    expected = ensemble.predict(X, seed=0)
    ensemble.members[1].cuda()
    prediction = ensemble.predict(TensorDataset(X, TARGETS), seed=0)
    assert prediction.probs.device.type == prediction.targets.device.type == "cpu"
    assert ensemble(X).device.type == "cpu"
    if build is not dropout:
        torch.testing.assert_close(prediction.probs, expected.probs, rtol=1e-4, atol=1e-5)
