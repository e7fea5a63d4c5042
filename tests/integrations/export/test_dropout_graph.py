"""MC dropout within a graph: the passes of the method, the prefix once, dropout that survives."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.integrations.export.exported import ask, graph, inputs, network, session
from torch import Tensor, nn

import hesitant
from hesitant.inputs import Batch

X = inputs(12)


class Dropping:
    """The oracle: F.dropout and its kin by given masks, in the order in which the code asks."""

    def __init__(self, masks: list[Tensor], rates: list[float]) -> None:
        self.given: Iterator[tuple[Tensor, float]] = iter(zip(masks, rates, strict=True))

    def __call__(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        mask, rate = next(self.given)
        assert rate == pytest.approx(p)
        return x * mask.expand(x.shape).to(x.dtype) / (1 - rate)


def pass_by_pass(net: nn.Module, x: Tensor, masks: list[Tensor], rates: list[float]) -> Tensor:
    """The mean probabilities of the network's own passes, each by its masks."""
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if isinstance(module, (nn.Dropout, nn.MultiheadAttention)):
            module.train()
    passes = []
    for index in range(len(masks[0])):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            dropping = Dropping([mask[index] for mask in masks], rates)
            patch.setattr(F, "dropout", dropping)
            passes.append(net(x).softmax(-1))
            assert next(dropping.given, None) is None
    return torch.stack(passes).mean(0)


class Residual(nn.Module):
    """Adds in place what it drops, and keeps sizes and places of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden += self.dropout(self.second(hidden))
        hidden = hidden.view(x.shape[0], 2, 3).flatten(1)[torch.arange(x.shape[0])]
        return self.last(torch.relu_(hidden))


NETS: dict[str, Callable[[], nn.Module]] = {"sequential": network, "residual": Residual}


@pytest.mark.parametrize("masks", ["per_input", "shared"])
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("name", NETS)
def test_by_given_masks_it_answers_as_the_passes_one_by_one(name: str, chunk_size: int | None, masks: Any) -> None:
    net = NETS[name]()
    module = graph(hesitant.MCDropout(net, 7, masks=masks, chunk_size=chunk_size), X[:2])
    given, rates = module.example_masks(Batch((X,)))
    assert all(mask.shape[1] == (1 if masks == "shared" else 12) for mask in given)
    with torch.no_grad():
        found = module(X, dropout_masks=given)["probs"]
    torch.testing.assert_close(found, pass_by_pass(net, X, given, rates), atol=1e-5, rtol=0)


def test_what_comes_before_the_first_dropout_is_computed_once() -> None:
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 3))
    program = graph(hesitant.MCDropout(net, 50), X[:2]).method_graph.program
    drawn = {str(node.target) for node in program.random}
    assert "aten.tanh.default" in {str(node.target) for node in program.operations}
    assert "aten.tanh.default" not in drawn
    assert "aten.linear.default" in drawn


def test_drawn_masks_answer_as_the_method_does_but_for_chance() -> None:
    method = hesitant.MCDropout(network(), 4000)
    prediction = method.predict(X)
    with torch.no_grad():
        named = graph(method, X[:2])(X)
    error = prediction.class_std * (2 / 4000) ** 0.5
    assert bool(((named["probs"] - prediction.probs).abs() < 5 * error + 1e-6).all())
    assert bool(((named["uncertainty"] - prediction.ood_score).abs() < 0.02).all())


@pytest.mark.parametrize("seed", range(6))
def test_a_few_passes_may_differ_by_chance(seed: int, tmp_path: Path) -> None:
    """Three passes that agree by chance say nothing of how far three others may be from them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        x = torch.randn(7, 4)
        hesitant.export(hesitant.MCDropout(network, num_samples=3), tmp_path / "m.pt2", x)


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match="no dropout reached the logits of Linear"):
        graph(hesitant.MCDropout(nn.Linear(4, 3), 5), X[:2])


def test_a_branch_that_brings_inputs_together_is_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(x, 0.5, self.training)
            return self.last(x - x.mean(0))

    with pytest.raises(ValueError, match="cannot stand in one graph: the model's answer to an input depends"):
        graph(hesitant.MCDropout(Centred(), 5), X[:2])


def test_onnx_draws_anew_in_each_call_and_alike_in_each_session(tmp_path: Path) -> None:
    method = hesitant.MCDropout(network(), 30)
    hesitant.export(method, tmp_path / "model.onnx", X)
    first, second = (session(tmp_path / "model.onnx") for _ in range(2))
    answers = [each.run(["probs"], {"input": X.numpy()})[0] for each in (first, first, second)]
    assert (answers[0] != answers[1]).any()
    assert (answers[0] == answers[2]).all()
    probs = method.predict(X).probs
    assert bool(
        ((torch.from_numpy(answers[0]) - probs).abs() < 6 * method.predict(X).class_std * (2 / 30) ** 0.5).all()
    )


def test_onnx_by_given_masks(tmp_path: Path) -> None:
    net = network()
    method = hesitant.MCDropout(net, 6)
    hesitant.export(method, tmp_path / "model.onnx", X, masks="input")
    given, rates = graph(method, X[:2]).example_masks(Batch((X,)))
    asked = {"input": X, **{f"dropout_masks_{place}": mask for place, mask in enumerate(given)}}
    answers = ask(tmp_path / "model.onnx", asked)
    torch.testing.assert_close(answers["probs"], pass_by_pass(net, X, given, rates), atol=1e-5, rtol=0)
    assert [each.shape for each in session(tmp_path / "model.onnx").get_inputs()][1:] == [
        [6, "batch", 16],
        [6, "batch", 8],
    ]
