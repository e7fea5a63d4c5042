import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from tests.evaluation.predictions import CASES, one_hot_prediction, random_prediction, uniform_prediction
from torchmetrics.functional.classification import multiclass_accuracy

from hesitant.evaluation import accuracy, brier, nll
from hesitant.prediction import Prediction

METRICS = [accuracy, nll, brier]


@pytest.mark.parametrize("name", CASES)
def test_they_agree_with_plain_formulas_and_libraries(name):
    prediction = CASES[name]
    probs, targets = prediction.probs.double().numpy(), prediction.targets.numpy()
    one_hot = np.eye(probs.shape[1])[targets]
    assert accuracy(prediction) == accuracy_score(targets, probs.argmax(axis=1))
    assert accuracy(prediction) == pytest.approx(
        multiclass_accuracy(prediction.labels, prediction.targets, num_classes=probs.shape[1], average="micro").item()
    )
    assert brier(prediction) == pytest.approx(((probs - one_hot) ** 2).sum(axis=1).mean(), rel=1e-12)
    with np.errstate(divide="ignore"):
        of_probs = abs(np.log(probs[np.arange(len(probs)), targets]).mean())
    assert nll(prediction) == pytest.approx(of_probs, rel=1e-6) or of_probs == math.inf


@pytest.mark.parametrize(("num_inputs", "num_classes"), [(1, 2), (200, 2), (500, 3), (1000, 1000)])
def test_nll_agrees_with_scikit_learn(num_inputs, num_classes):
    probs = random_prediction(num_inputs, num_classes).probs
    targets = torch.arange(num_inputs) % num_classes
    expected = log_loss(targets.numpy(), probs.numpy(), labels=range(num_classes))
    assert nll(Prediction(probs), targets) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_nll_agrees_with_cross_entropy_of_the_logits(scale):
    logits = scale * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(200) % 5
    expected = torch.nn.functional.cross_entropy(logits.double(), targets).item()
    assert nll(Prediction.from_logits(logits, targets=targets)) == pytest.approx(expected, rel=1e-6)


def test_brier_with_two_classes_is_twice_the_binary_one():
    prediction = random_prediction(300, 2)
    binary = brier_score_loss(prediction.targets.numpy(), prediction.probs[:, 1].numpy())
    assert brier(prediction) == pytest.approx(2 * binary)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_perfect_and_worst_predictions(num_classes):
    assert [metric(one_hot_prediction(num_classes, right=True)) for metric in METRICS] == [1.0, 0.0, 0.0]
    assert [metric(one_hot_prediction(num_classes, right=False)) for metric in METRICS] == [0.0, math.inf, 2.0]
    assert math.copysign(1, nll(one_hot_prediction(num_classes, right=True))) == 1


@pytest.mark.parametrize("num_classes", [2, 4, 1000])
def test_uniform_predictions_are_ties_that_go_to_the_first_class(num_classes):
    prediction = uniform_prediction(num_classes)
    assert accuracy(prediction) == pytest.approx(1 / num_classes)
    assert nll(prediction) == pytest.approx(math.log(num_classes), rel=1e-6)
    assert brier(prediction) == pytest.approx(1 - 1 / num_classes, rel=1e-6)


def test_nll_of_a_confident_prediction_is_not_lost_to_rounding():
    prediction = Prediction.from_logits(torch.tensor([[40.0, 0.0]]), targets=[0])
    assert nll(prediction) == pytest.approx(math.exp(-40), rel=1e-4)
    assert nll(prediction, [1]) == pytest.approx(40)


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_that_never_occurs_changes_nothing(metric):
    known = random_prediction(50, 3)
    probs = torch.cat([known.probs, torch.zeros(50, 1, dtype=torch.float64)], dim=-1)
    assert metric(Prediction(probs), known.targets) == pytest.approx(metric(known))


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_the_inputs_does_not_matter(metric):
    prediction = random_prediction(101, 3)
    assert metric(prediction[::-1]) == pytest.approx(metric(prediction), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_targets_given_come_before_those_of_the_prediction(metric):
    prediction = random_prediction(40, 3)
    assert metric(prediction, prediction.labels.numpy()) == metric(prediction.with_targets(prediction.labels))
    assert metric(prediction, prediction.labels) != metric(prediction)


def test_brier_in_parts_is_brier(monkeypatch):
    prediction = random_prediction(101, 3)
    whole = brier(prediction)
    monkeypatch.setattr("hesitant.prediction.parts._CHUNK_NUMBERS", 30)
    assert brier(prediction) == pytest.approx(whole, rel=1e-12)
