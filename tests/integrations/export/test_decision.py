"""A policy within a graph decides as the policy does."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.export.exported import ask, graph, inputs, sngp
from torch import Tensor, nn

import hesitant
from hesitant import DeferralPolicy
from hesitant.detection import uncertainty

N = 100_000


class Same(nn.Module):
    """Its inputs are logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


def logits(spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of many inputs, and targets that they mostly get right."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 10, generator=draw) * spread
    return x, (x + torch.randn(N, 10, generator=draw) * spread / 4).argmax(1)


def with_ties(method: Any, x: Tensor, policy: DeferralPolicy) -> Tensor:
    """The inputs, a fifth of them replaced by copies of one whose score decided the threshold."""
    score = uncertainty(method.predict(x[:5000]), policy.score)
    at = int((score - policy.threshold).abs().argmin())
    tied = x.clone()
    tied[::5] = x[at]
    return tied


def assert_decided_alike(accept: Tensor, policy: DeferralPolicy, method: Any, tied: Tensor) -> None:
    """All inputs are; but one, no tie, may be so near the threshold that a runtime's rounding decides of it."""
    prediction = method.predict(tied)
    differing = accept != policy.accept(prediction)
    assert not differing[::5].any()  # the ties
    assert differing.sum() <= (policy.score == "ood_score")
    apart = (uncertainty(prediction, policy.score)[differing] - policy.threshold).abs()
    assert (apart <= 1e-6 * policy.threshold).all()


def policy_of(method: Any, x: Tensor, targets: Tensor, **options: Any) -> DeferralPolicy:
    return DeferralPolicy.calibrate(method.predict(x[:5000]).with_targets(targets[:5000]), **options)


@pytest.mark.parametrize("options", [{"max_risk": 0.12}, {"budget": 0.3}, {"budget": 0.3, "guard": 0.1}], ids=str)
@pytest.mark.parametrize("score", ["confidence", "ood_score", "predictive_entropy", "energy", "dempster_shafer"])
def test_the_graph_decides_each_tie_as_the_policy(score: Any, options: dict[str, Any]) -> None:
    method, (x, targets) = hesitant.Deterministic(Same()), logits(1.5)
    policy = policy_of(method, x, targets, score=score, **options)
    tied = with_ties(method, x, policy)
    with torch.no_grad():
        accept = graph(method, x[:2], policy)(tied)["accept"]
    assert_decided_alike(accept, policy, method, tied)
    assert 0.02 < accept.double().mean() < 0.98


@pytest.mark.parametrize("score", ["logit_variance", "mutual_information"])
def test_scores_of_distributions_over_models(score: Any) -> None:
    x = inputs(3000)
    method: Any = sngp() if score == "logit_variance" else hesitant.DeepEnsemble([nn.Linear(4, 3) for _ in range(3)])
    policy = DeferralPolicy.calibrate(method.predict(x), score=score, budget=0.3)
    tied = with_ties(method, x, policy)
    with torch.no_grad():
        accept = graph(method, x[:2], policy)(tied)["accept"]
    assert torch.equal(accept, policy.accept(method.predict(tied)))


@pytest.mark.parametrize(
    ("score", "options", "spread"),
    [("confidence", {"max_risk": 0.05, "guard": 0.05}, 3.0), ("ood_score", {"budget": 0.3}, 1.0)],
)
def test_onnx_runtime_decides_a_hundred_thousand_inputs_alike(
    score: Any, options: dict[str, Any], spread: float, tmp_path: Path
) -> None:
    method, (x, targets) = hesitant.Deterministic(Same()), logits(spread)
    policy = policy_of(method, x, targets, score=score, **options)
    tied = with_ties(method, x, policy)
    hesitant.export(method, tmp_path / "model.onnx", x[:3], policy=policy)
    accept = ask(tmp_path / "model.onnx", tied)["accept"]
    assert_decided_alike(accept, policy, method, tied)
    assert 0.02 < accept.double().mean() < 0.98


@pytest.mark.parametrize("gap", [20.0, 80.0, 200.0, 600.0])
def test_confidences_that_round_to_one_keep_their_order(gap: float) -> None:
    """Where float32 holds 1 - p as 0, float64 tells scores of 1e-260 apart."""
    method, tops = hesitant.Deterministic(Same()), gap + torch.linspace(-10, 10, 501)
    x = torch.stack([tops, torch.zeros(501), torch.zeros(501)], 1)
    policy = DeferralPolicy.calibrate(method.predict(x), budget=0.5)
    with torch.no_grad():
        accept = graph(method, x[:2], policy)(x)["accept"]
    assert torch.equal(accept, policy.accept(method.predict(x)))
    assert 200 < int(accept.sum()) < 300
    assert torch.equal(accept, tops > tops[~accept].max())


def test_who_answers_everything_answers_all_but_nan() -> None:
    policy = DeferralPolicy(math.inf, "confidence", 10, 10, num_errors=0, max_risk=0.3, delta=0.05)
    x = inputs(4)
    x[1] = math.nan
    with torch.no_grad():
        accept = graph(hesitant.Deterministic(nn.Linear(4, 3)), inputs(2), policy)(x)["accept"]
    assert accept.tolist() == [True, False, True, True]
