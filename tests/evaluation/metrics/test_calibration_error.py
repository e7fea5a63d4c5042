import math
from itertools import pairwise

import pytest
import torch
from sklearn.calibration import calibration_curve
from tests.evaluation.predictions import (
    CASES,
    one_hot_prediction,
    random_prediction,
    tied_prediction,
    uniform_prediction,
)
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from hesitant.evaluation import adaptive_ece, classwise_ece, ece, reliability
from hesitant.prediction import Prediction

ERRORS = [ece, adaptive_ece, classwise_ece]
NUMBERS_OF_BINS = (1, 10, 15)


def gap(confidence: Tensor, hit: Tensor, edges: list[float]) -> float:
    """One bin after another, each with its lower edge and the last with its upper one."""
    total = 0.0
    for k, (low, high) in enumerate(pairwise(edges)):
        inside = (confidence >= low) & ((confidence < high) | (k == len(edges) - 2))
        if inside.any():
            total += inside.double().mean().item() * abs((hit[inside].mean() - confidence[inside].mean()).item())
    return total


def equal_widths(num_bins: int) -> list[float]:
    return [k / num_bins for k in range(num_bins + 1)]


@pytest.mark.parametrize("name", CASES)
def test_ece_is_the_plain_formula(name):
    prediction = CASES[name]
    confidence = prediction.probs.max(dim=-1).values.double()
    hit = (prediction.probs.argmax(dim=-1) == prediction.targets).double()
    for num_bins in NUMBERS_OF_BINS:
        expected = gap(confidence, hit, equal_widths(num_bins))
        assert ece(prediction, num_bins=num_bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_classwise_ece_is_the_mean_of_the_plain_formula_over_the_classes(name):
    prediction = CASES[name]
    for num_bins in NUMBERS_OF_BINS:
        expected = [
            gap(prediction.probs[:, c].double(), (prediction.targets == c).double(), equal_widths(num_bins))
            for c in range(prediction.probs.shape[1])
        ]
        mean = sum(expected) / len(expected)
        assert classwise_ece(prediction, num_bins=num_bins) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_adaptive_ece_is_the_plain_formula(name):
    prediction = CASES[name]
    confidence = prediction.probs.max(dim=-1).values.double()
    hit = (prediction.probs.argmax(dim=-1) == prediction.targets).double()
    in_order = sorted(confidence.tolist())
    for num_bins in NUMBERS_OF_BINS:
        begins = [in_order[k * len(in_order) // num_bins] for k in range(num_bins)]
        bins: dict[int, list[int]] = {}
        for i, value in enumerate(confidence.tolist()):
            bins.setdefault(max(k for k in range(num_bins) if begins[k] <= value), []).append(i)
        gaps = [abs(hit[rows].sum() - confidence[rows].sum()).item() for rows in bins.values()]
        assert adaptive_ece(prediction, num_bins=num_bins) == pytest.approx(sum(gaps) / len(confidence), abs=1e-12)


@pytest.mark.parametrize(("num_inputs", "num_classes"), [(1, 2), (200, 2), (500, 3), (100, 1000)])
def test_ece_agrees_with_torchmetrics_where_no_confidence_is_1(num_inputs, num_classes):
    prediction = random_prediction(num_inputs, num_classes)
    for num_bins in NUMBERS_OF_BINS:
        expected = multiclass_calibration_error(
            prediction.probs, prediction.targets, num_classes=num_classes, n_bins=num_bins, norm="l1"
        )
        assert ece(prediction, num_bins=num_bins) == pytest.approx(expected.item(), abs=1e-6)  # theirs is in float32


@pytest.mark.parametrize("adaptive", [False, True])
def test_reliability_agrees_with_scikit_learn(adaptive):
    prediction = random_prediction(500, 3)
    bins = reliability(prediction, num_bins=10, adaptive=adaptive)
    hit = (prediction.labels == prediction.targets).numpy()
    accuracy, confidence = calibration_curve(
        hit, prediction.confidence.numpy(), n_bins=10, strategy="quantile" if adaptive else "uniform"
    )
    filled = bins.counts > 0
    assert bins.accuracy[filled].tolist() == pytest.approx(accuracy.tolist())
    assert bins.confidence[filled].tolist() == pytest.approx(confidence.tolist())


@pytest.mark.parametrize("name", CASES)
def test_reliability_says_what_the_error_is_made_of(name):
    for adaptive in (False, True):
        assert_says_what_the_error_is_made_of(CASES[name], adaptive)


def assert_says_what_the_error_is_made_of(prediction, adaptive):
    bins = reliability(prediction, adaptive=adaptive)
    assert bins.ece == (adaptive_ece if adaptive else ece)(prediction)
    assert bins.counts.sum() == len(prediction)
    gaps = bins.counts * (bins.accuracy - bins.confidence).abs()
    assert gaps.nansum().item() / len(prediction) == pytest.approx(bins.ece, abs=1e-12)
    empty = bins.counts == 0
    assert torch.equal(bins.accuracy.isnan(), empty)
    assert torch.equal(bins.confidence.isnan(), empty)
    assert bool((bins.edges.diff() >= 0).all())
    assert bool((bins.confidence >= bins.edges[:-1] - 1e-12)[~empty].all())
    assert bool((bins.confidence <= bins.edges[1:] + 1e-12)[~empty].all())
    assert [part.dtype for part in (bins.edges, bins.counts, bins.accuracy, bins.confidence)] == [torch.float64] * 4


@pytest.mark.parametrize(("num_inputs", "num_bins"), [(150, 15), (151, 15), (7, 15), (1000, 7)])
def test_adaptive_bins_hold_equally_many_inputs(num_inputs, num_bins):
    counts = reliability(random_prediction(num_inputs, 3), num_bins=num_bins, adaptive=True).counts
    if num_inputs >= num_bins:
        assert set(counts.tolist()) <= {num_inputs // num_bins, -(-num_inputs // num_bins)}
    else:
        assert sorted(counts.tolist())[-num_inputs:] == [1] * num_inputs


@pytest.mark.parametrize("metric", ERRORS)
def test_ties_make_no_order_of_the_inputs_matter(metric):
    prediction = tied_prediction(401, 3)
    shuffled = prediction[torch.randperm(401, generator=torch.Generator().manual_seed(3))]
    assert metric(shuffled) == pytest.approx(metric(prediction), rel=1e-12)


def test_equal_confidences_stay_in_one_bin():
    prediction = tied_prediction(400, 3, levels=4)
    for adaptive in (False, True):
        bins = reliability(prediction, adaptive=adaptive)
        assert sorted(bins.counts[bins.counts > 0].tolist()) == sorted(
            prediction.confidence.unique(return_counts=True)[1].tolist()
        )


@pytest.mark.parametrize("num_classes", [2, 5])
def test_perfect_and_worst_predictions(num_classes):
    right, wrong = (one_hot_prediction(num_classes, right=right) for right in (True, False))
    assert [metric(right) for metric in ERRORS] == [0.0, 0.0, 0.0]
    assert [metric(wrong) for metric in ERRORS] == pytest.approx([1.0, 1.0, 2 / num_classes])


@pytest.mark.parametrize("num_classes", [2, 4, 1000])
def test_uniform_predictions_of_uniform_classes_are_calibrated(num_classes):
    for metric in ERRORS:
        assert metric(uniform_prediction(num_classes)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("metric", ERRORS)
def test_they_are_small_for_targets_drawn_from_the_probabilities(metric):
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(2 * torch.randn(200_000, 4, generator=generator, dtype=torch.float64), dim=-1)
    drawn = Prediction(probs, targets=torch.multinomial(probs, 1, generator=generator).squeeze(-1))
    assert metric(drawn) < 0.006
    overconfident = torch.softmax(3 * probs.log(), dim=-1)
    assert metric(Prediction(overconfident, targets=drawn.targets)) > 0.04


def test_ece_of_saturated_confidences_takes_no_logits():
    # One number above 1 by a rounding, and torchmetrics would apply a softmax to all of them.
    probs = torch.tensor([[1.0000001, 0.0], [0.7, 0.3], [0.7, 0.3]])
    assert ece(Prediction(probs, targets=[0, 0, 1])) == pytest.approx(2 / 3 * 0.2, abs=1e-7)


def test_a_confidence_of_1_is_in_the_last_bin():
    bins = reliability(Prediction([[1.0, 0.0], [0.96, 0.04], [0.5, 0.5]], targets=[0, 1, 0]))
    assert bins.counts.tolist() == [0.0] * 7 + [1.0] + [0.0] * 6 + [2.0]
    assert bins.accuracy[-1] == 0.5
    assert bins.ece == pytest.approx((abs(1 - 1.96) + 0.5) / 3)
    assert not math.isnan(bins.ece)


def test_a_class_that_never_occurs_counts_with_its_probability():
    probs = torch.tensor([[0.5, 0.3, 0.2]] * 2)
    # p_0 .5 against a share of 1/2, p_1 .3 against 1/2, p_2 .2 against 0
    assert classwise_ece(Prediction(probs, targets=[0, 1])) == pytest.approx((0 + 0.2 + 0.2) / 3, abs=1e-7)


def test_classwise_ece_in_parts_is_classwise_ece(monkeypatch):
    prediction = random_prediction(101, 3)
    whole = classwise_ece(prediction)
    monkeypatch.setattr("hesitant.prediction.parts._CHUNK_NUMBERS", 30)
    assert classwise_ece(prediction) == pytest.approx(whole, rel=1e-12)
