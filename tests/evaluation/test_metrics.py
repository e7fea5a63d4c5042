import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from hesitant.evaluation import accuracy, auroc, brier, ece, nll
from hesitant.prediction import Prediction

METRICS = [accuracy, nll, brier, ece]


def random_prediction(num_inputs: int, num_classes: int, *, scale: float = 2.0, dtype=torch.float64) -> Prediction:
    generator = torch.Generator().manual_seed(num_inputs * 7 + num_classes)
    logits = scale * torch.randn(num_inputs, num_classes, generator=generator, dtype=dtype)
    targets = torch.randint(num_classes, (num_inputs,), generator=generator)
    return Prediction.from_logits(logits, targets=targets)


def plain_ece(probs: Tensor, targets: Tensor, num_bins: int = 15) -> float:
    """One bin after another; a confidence of exactly 1 has its own."""
    confidence, hit = probs.max(dim=-1).values.double(), (probs.argmax(dim=-1) == targets).double()
    edges = [k / num_bins for k in range(num_bins + 1)] + [math.inf]
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            total += inside.double().mean().item() * abs((hit[inside].mean() - confidence[inside].mean()).item())
    return total


SIZES = pytest.mark.parametrize(("num_inputs", "num_classes"), [(1, 2), (200, 2), (500, 3), (100, 1000)])


@SIZES
@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
@pytest.mark.filterwarnings("ignore:The number of unique classes")  # scikit-learn 1.7, of more classes than inputs
def test_they_agree_with_scikit_learn_and_plain_formulas(num_inputs, num_classes, scale):
    prediction = random_prediction(num_inputs, num_classes, scale=scale)
    probs, targets = prediction.probs.numpy(), prediction.targets.numpy()
    one_hot = np.eye(num_classes)[targets]
    assert accuracy(prediction) == pytest.approx((probs.argmax(axis=1) == targets).mean())
    assert brier(prediction) == pytest.approx(((probs - one_hot) ** 2).sum(axis=1).mean(), rel=1e-12)
    assert nll(prediction) == pytest.approx(-np.log(probs[np.arange(num_inputs), targets]).mean(), rel=1e-9)
    assert ece(prediction) == pytest.approx(plain_ece(prediction.probs, prediction.targets), abs=1e-12)
    if scale < 30:  # beyond, scikit-learn clips
        assert nll(prediction) == pytest.approx(log_loss(targets, probs, labels=range(num_classes)), rel=1e-9)


@SIZES
@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_ece_agrees_with_torchmetrics_multiclass(num_inputs, num_classes, num_bins):
    prediction = random_prediction(num_inputs, num_classes)
    expected = multiclass_calibration_error(
        prediction.probs, prediction.targets, num_classes=num_classes, n_bins=num_bins, norm="l1"
    )
    assert ece(prediction, num_bins=num_bins) == pytest.approx(
        expected.item(), abs=1e-6
    )  # theirs is rounded to float32


def test_brier_with_two_classes_is_twice_the_binary_one():
    prediction = random_prediction(300, 2)
    binary = brier_score_loss(prediction.targets.numpy(), prediction.probs[:, 1].numpy())
    assert brier(prediction) == pytest.approx(2 * binary)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_perfect_predictions(num_classes):
    targets = torch.arange(20) % num_classes
    prediction = Prediction(torch.eye(num_classes)[targets], targets=targets)
    assert [accuracy(prediction), nll(prediction), brier(prediction), ece(prediction)] == [1.0, 0.0, 0.0, 0.0]
    assert math.copysign(1, nll(prediction)) == 1


@pytest.mark.parametrize("num_classes", [2, 5])
def test_worst_predictions(num_classes):
    targets = torch.arange(20) % num_classes
    prediction = Prediction(torch.eye(num_classes)[(targets + 1) % num_classes], targets=targets)
    assert [accuracy(prediction), nll(prediction), brier(prediction), ece(prediction)] == [0.0, math.inf, 2.0, 1.0]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_uniform_predictions_are_ties_that_go_to_the_first_class(num_classes):
    targets = torch.arange(4 * num_classes) % num_classes
    prediction = Prediction(torch.full((len(targets), num_classes), 1 / num_classes), targets=targets)
    assert accuracy(prediction) == pytest.approx(1 / num_classes)
    assert nll(prediction) == pytest.approx(math.log(num_classes))
    assert brier(prediction) == pytest.approx(1 - 1 / num_classes)
    assert ece(prediction) == pytest.approx(0, abs=1e-7)


def test_a_class_that_never_occurs_changes_nothing():
    probs = torch.cat([random_prediction(50, 3).probs, torch.zeros(50, 1, dtype=torch.float64)], dim=-1)
    targets = random_prediction(50, 3).targets
    for metric in METRICS:
        assert metric(Prediction(probs), targets) == pytest.approx(metric(random_prediction(50, 3)))


def test_ece_of_saturated_confidences_takes_no_logits():
    # One number above 1 by a rounding, and torchmetrics would apply a softmax to all of them.
    probs = torch.tensor([[1.0000001, 0.0], [0.7, 0.3], [0.7, 0.3]])
    assert ece(Prediction(probs, targets=[0, 0, 1])) == pytest.approx(2 / 3 * 0.2, abs=1e-7)


def test_nll_of_a_confident_prediction_is_not_lost_to_rounding():
    prediction = Prediction.from_logits(torch.tensor([[40.0, 0.0]]), targets=[0])
    assert nll(prediction) == pytest.approx(math.exp(-40), rel=1e-4)
    assert nll(prediction, [1]) == pytest.approx(40)


def test_the_order_of_the_inputs_does_not_matter():
    prediction = random_prediction(101, 3)
    for metric in METRICS:
        assert metric(prediction[::-1]) == pytest.approx(metric(prediction), rel=1e-12)


def test_targets_given_come_before_those_of_the_prediction():
    prediction = random_prediction(40, 3)
    for metric in METRICS:
        assert metric(prediction, prediction.labels) == metric(prediction.with_targets(prediction.labels))
    assert accuracy(prediction, prediction.labels.numpy()) == 1


def test_brier_in_chunks_is_brier(monkeypatch):
    prediction = random_prediction(101, 3)
    whole = brier(prediction)
    monkeypatch.setattr("hesitant.evaluation.metrics._CHUNK_NUMBERS", 30)
    assert brier(prediction) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_bad_input_is_named(metric):
    prediction = Prediction([[0.5, 0.5]] * 2)
    with pytest.raises(ValueError, match="targets is None and prediction has no targets"):
        metric(prediction)
    with pytest.raises(ValueError, match="prediction has 0 inputs"):
        metric(prediction[:0], [])
    with pytest.raises(ValueError, match=r"targets has shape \(3,\), expected \(2,\)"):
        metric(prediction, [0, 1, 0])
    with pytest.raises(ValueError, match=r"targets\[1\] is 2, expected a class index in \[0, 2\)"):
        metric(prediction, [0, 2])
    with pytest.raises(TypeError, match="targets has dtype"):
        metric(prediction, [0.0, 1.0])


def test_ece_needs_a_bin():
    with pytest.raises(ValueError, match="num_bins is 0, expected at least 1"):
        ece(random_prediction(5, 2), num_bins=0)


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_auroc_agrees_with_scikit_learn_and_with_counting_pairs(levels):
    generator = torch.Generator().manual_seed(levels)
    inside = torch.randint(levels, (70,), generator=generator).double() / levels
    outside = torch.randint(levels, (50,), generator=generator).double() / levels + 0.1
    outside[:10] = inside[:10]
    pairs = outside.unsqueeze(1) - inside
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item()
    assert auroc(inside, outside) == pytest.approx(expected, rel=1e-12)
    truth = np.r_[np.zeros(70), np.ones(50)]
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, torch.cat([inside, outside]).numpy()))
    assert auroc(outside, inside) == pytest.approx(1 - expected)


def test_auroc_at_its_ends():
    low, high = torch.tensor([0.0, 0.1]), torch.tensor([0.2, math.inf, math.inf])
    assert auroc(low, high) == 1
    assert auroc(high, low) == 0
    assert auroc([0.3] * 4, [0.3] * 5) == 0.5
    assert auroc([0.0], [1.0]) == 1
    assert auroc([-math.inf, 0.0], [0.0]) == 0.75
    assert auroc(np.float32([1e-45, 3e-45]), torch.tensor([6e-45, 9e-45])) == 1  # smaller than any tolerance


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (torch.tensor([0.0, math.nan]), ValueError, r"ood_scores\[1\] is nan"),
        (torch.zeros(0), ValueError, r"ood_scores has shape \(0,\), expected \(N,\) with N >= 1"),
        (torch.zeros(3, 2), ValueError, r"ood_scores has shape \(3, 2\)"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "ood_scores has dtype torch.complex64"),
        ("high", TypeError, "ood_scores is str"),
    ],
)
def test_scores_that_are_none_are_refused(scores, error, message):
    with pytest.raises(error, match=message):
        auroc(torch.zeros(3), scores)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        ece(random_prediction(5, 2))
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        auroc([0.0], [1.0])
