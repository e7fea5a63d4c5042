from itertools import permutations

import numpy as np
import pytest
import torch
from tests.evaluation.predictions import CASES, one_hot_prediction, random_prediction, tied_prediction

from hesitant.evaluation import SCORES, accuracy, aurc, e_aurc, risk_coverage, uncertainty
from hesitant.prediction import Prediction, UnavailableError


def area_in_order(wrong: np.ndarray) -> float:
    """The mean error rate of the first 1, 2, ... inputs."""
    return float((wrong.cumsum() / np.arange(1, len(wrong) + 1)).mean())


def scores_and_errors(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    wrong = (prediction.labels != prediction.targets).double().numpy()
    return uncertainty(prediction).numpy(), wrong


@pytest.mark.parametrize("name", CASES)
def test_the_curve_is_what_each_threshold_accepts(name):
    prediction = CASES[name]
    score, wrong = scores_and_errors(prediction)
    curve = risk_coverage(prediction)
    thresholds = np.unique(score)
    assert curve.threshold.tolist() == thresholds.tolist()
    assert curve.coverage.tolist() == pytest.approx([(score <= t).mean() for t in thresholds])
    assert curve.risk.tolist() == pytest.approx([wrong[score <= t].mean() for t in thresholds])
    assert curve.coverage[-1] == 1
    assert curve.risk[-1].item() == pytest.approx(1 - accuracy(prediction))
    assert curve.num_inputs == len(prediction)
    assert (curve.aurc, curve.e_aurc) == (aurc(prediction), e_aurc(prediction))


@pytest.mark.parametrize("name", CASES)
def test_aurc_is_the_mean_over_random_orders_of_what_is_tied(name):
    prediction = CASES[name]
    score, wrong = scores_and_errors(prediction)
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(400):
        shuffled = generator.permutation(len(score))
        areas.append(area_in_order(wrong[shuffled[np.argsort(score[shuffled], kind="stable")]]))
    sampling = 5 * np.std(areas) / 20
    assert aurc(prediction) == pytest.approx(np.mean(areas), abs=sampling + 1e-12)


def test_aurc_of_a_few_ties_is_the_mean_over_all_orders():
    confidence = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.6, 0.6, 0.5], dtype=torch.float64)
    prediction = Prediction(torch.stack([confidence, 1 - confidence], dim=-1), targets=[0, 1, 0, 0, 1, 0, 1])
    _, wrong = scores_and_errors(prediction)
    areas = [
        area_in_order(wrong[[0, *middle, *last, 6]]) for middle in permutations([1, 2, 3]) for last in [(4, 5), (5, 4)]
    ]
    assert aurc(prediction) == pytest.approx(np.mean(areas), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_e_aurc_is_the_excess_over_accepting_all_errors_last(name):
    prediction = CASES[name]
    _, wrong = scores_and_errors(prediction)
    assert e_aurc(prediction) == pytest.approx(aurc(prediction) - area_in_order(np.sort(wrong)), abs=1e-12)
    assert e_aurc(prediction) >= 0


@pytest.mark.parametrize("num_errors", [1, 3, 10])
def test_e_aurc_of_a_perfect_ranking_is_0_and_never_below(num_errors):
    for num_right in range(1, 60):
        confidence = torch.linspace(0.9, 0.6, num_right + num_errors, dtype=torch.float64)
        targets = torch.arange(num_right + num_errors) >= num_right
        prediction = Prediction(torch.stack([confidence, 1 - confidence], dim=-1), targets=targets.long())
        assert 0 <= e_aurc(prediction) < 1e-14


def test_the_best_area_tends_to_the_papers_approximation():
    prediction = random_prediction(100_000, 3)
    rate = 1 - accuracy(prediction)
    best = aurc(prediction) - e_aurc(prediction)
    assert best == pytest.approx(rate + (1 - rate) * np.log(1 - rate), abs=1e-4)


def test_the_ends():
    assert aurc(one_hot_prediction(3, right=True)) == e_aurc(one_hot_prediction(3, right=True)) == 0
    assert aurc(one_hot_prediction(3, right=False)) == 1
    assert e_aurc(one_hot_prediction(3, right=False)) == 0  # no score can help
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6])
    probs = torch.stack([confidence, 1 - confidence], dim=-1)
    assert e_aurc(Prediction(probs, targets=[0, 0, 1, 1])) == 0  # every error after every right answer
    assert aurc(Prediction(probs, targets=[1, 1, 0, 0])) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)


def test_a_constant_score_has_the_error_rate():
    prediction = Prediction([[0.6, 0.4]] * 5, targets=[0, 1, 0, 0, 1])
    assert aurc(prediction) == pytest.approx(0.4)
    assert risk_coverage(prediction).coverage.tolist() == [1.0]
    assert risk_coverage(prediction).risk.tolist() == pytest.approx([0.4])


@pytest.mark.parametrize("metric", [aurc, e_aurc])
def test_no_order_of_the_inputs_matters(metric):
    prediction = tied_prediction(401, 3)
    shuffled = prediction[torch.randperm(401, generator=torch.Generator().manual_seed(3))]
    assert metric(shuffled) == pytest.approx(metric(prediction), rel=1e-12)


def test_saturated_confidences_are_ranked():
    # In float32 both have a confidence of 1.
    prediction = Prediction.from_logits(torch.tensor([[80.0, 0.0], [60.0, 0.0], [150.0, 0.0]]), targets=[0, 1, 0])
    assert prediction.confidence.tolist() == [1.0] * 3
    curve = risk_coverage(prediction)
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3])
    assert curve.e_aurc == 0


@pytest.mark.parametrize("score", SCORES)
def test_every_score_ranks(score):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 3, generator=generator)
    samples = torch.softmax(logits + torch.randn(5, 60, 3, generator=generator), dim=-1)
    targets = torch.randint(3, (60,), generator=generator)
    prediction = Prediction.from_samples(samples, logits=logits, logit_variance=logits.exp(), targets=targets)
    wrong = (prediction.labels != targets).double().numpy()
    order = np.argsort(uncertainty(prediction, score).numpy())
    assert aurc(prediction, score=score) == pytest.approx(area_in_order(wrong[order]))
    assert e_aurc(prediction, score=score) == risk_coverage(prediction, score=score).e_aurc


def test_a_score_that_the_method_lacks_says_so():
    with pytest.raises(UnavailableError, match="logit_variance is not available"):
        aurc(random_prediction(5, 2), score="logit_variance")
