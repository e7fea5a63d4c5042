"""What every metric refuses, and by what words."""

import math

import pytest
import torch
from tests.evaluation.predictions import CASES

from hesitant.evaluation import (
    accuracy,
    adaptive_ece,
    aupr,
    aurc,
    auroc,
    bootstrap,
    brier,
    classwise_ece,
    e_aurc,
    ece,
    fpr95,
    nll,
    reliability,
    risk_coverage,
    uncertainty,
)
from hesitant.evaluation.metrics.arguments import as_scores
from hesitant.prediction import Prediction

OF_A_PREDICTION = [accuracy, nll, brier, ece, adaptive_ece, classwise_ece, reliability, aurc, e_aurc, risk_coverage]
OF_SCORES = [auroc, aupr, fpr95]


@pytest.mark.parametrize("metric", OF_A_PREDICTION)
def test_targets_that_do_not_fit_are_named(metric):
    prediction = Prediction([[0.5, 0.5]] * 2)
    with pytest.raises(ValueError, match="targets is None and prediction has no targets"):
        metric(prediction)
    with pytest.raises(ValueError, match="prediction has 0 inputs, expected at least 1"):
        metric(prediction[:0], [])
    with pytest.raises(ValueError, match=r"targets has shape \(3,\), expected \(2,\)"):
        metric(prediction, [0, 1, 0])
    with pytest.raises(ValueError, match=r"targets\[1\] is 2, expected a class index in \[0, 2\)"):
        metric(prediction, [0, 2])
    with pytest.raises(ValueError, match=r"targets\[0\] is -1, expected a class index in \[0, 2\)"):
        metric(prediction, [-1, 1])
    with pytest.raises(TypeError, match=r"targets has dtype torch\.float32, expected integers"):
        metric(prediction, [0.0, 1.0])


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (torch.tensor([0.0, math.nan]), ValueError, r"_scores\[1\] is nan, expected a number"),
        (torch.zeros(0), ValueError, r"_scores has shape \(0,\), expected \(N,\) with N >= 1"),
        (torch.zeros(3, 2), ValueError, r"_scores has shape \(3, 2\)"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "_scores has dtype torch.complex64"),
        ("high", TypeError, "_scores is str"),
    ],
    ids=["nan", "none", "two dimensions", "complex", "no numbers"],
)
def test_scores_that_are_none_are_named(scores, error, message):
    for metric in OF_SCORES:
        with pytest.raises(error, match="ood" + message):
            metric(torch.zeros(3), scores)
        with pytest.raises(error, match="in_domain" + message):
            metric(scores, torch.zeros(3))


@pytest.mark.parametrize("metric", [ece, adaptive_ece, classwise_ece, reliability])
def test_a_calibration_error_needs_a_bin(metric):
    for num_bins in (0, -3):
        with pytest.raises(ValueError, match=f"num_bins is {num_bins}, expected at least 1"):
            metric(Prediction([[0.5, 0.5]], targets=[0]), num_bins=num_bins)


@pytest.mark.parametrize("metric", [aurc, e_aurc, risk_coverage])
def test_an_unknown_score_is_named(metric):
    with pytest.raises(ValueError, match="score is 'entropy', expected one of 'confidence', 'ood_score'"):
        metric(Prediction([[0.5, 0.5]], targets=[0]), score="entropy")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(CASES)[:3])
def test_inputs_may_be_on_a_gpu(name):
    there = CASES[name].to("cuda")
    for metric in (accuracy, nll, brier, ece, adaptive_ece, classwise_ece, aurc, e_aurc):
        assert metric(there) == pytest.approx(metric(CASES[name]), rel=1e-9)
        assert bootstrap(metric, there, num_resamples=3).value == metric(there)
    assert risk_coverage(there).risk.device.type == reliability(there).counts.device.type == "cpu"
    scores = uncertainty(there)
    assert [metric(scores, scores) for metric in OF_SCORES] == [
        metric(scores.cpu(), scores.cpu()) for metric in OF_SCORES
    ]


def test_a_list_keeps_the_digits_of_its_numbers():
    assert as_scores("scores", [0.3, 1e-50]).tolist() == [0.3, 1e-50]
