import math
from functools import partial

import pytest
import torch
from tests.evaluation.predictions import random_prediction, tied_prediction

from hesitant.evaluation import (
    Estimate,
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
    uncertainty,
)
from hesitant.prediction import Prediction

OF_A_PREDICTION = [accuracy, nll, brier, ece, adaptive_ece, classwise_ece, aurc, e_aurc]
OF_SCORES = [auroc, aupr, fpr95]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def approximately(estimate: Estimate) -> list[float]:
    return pytest.approx([estimate.value, estimate.standard_error, estimate.low, estimate.high], rel=1e-9, abs=1e-12)


def parts(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.standard_error, estimate.low, estimate.high]


@pytest.mark.parametrize("metric", OF_A_PREDICTION)
def test_it_is_the_metric_of_inputs_drawn_with_replacement(metric):
    for prediction in (random_prediction(80, 3), tied_prediction(80, 3)):
        generator = seeded()
        drawn = [metric(prediction[torch.randint(80, (80,), generator=generator)]) for _ in range(40)]
        estimate = bootstrap(metric, prediction, num_resamples=40, generator=seeded())
        assert estimate.value == metric(prediction)
        assert estimate.standard_error == pytest.approx(torch.tensor(drawn, dtype=torch.float64).std().item(), rel=1e-9)
        assert [estimate.low, estimate.high] == pytest.approx([min(drawn), max(drawn)], rel=1e-9)


@pytest.mark.parametrize("levels", [3, 10**6])
@pytest.mark.parametrize("metric", OF_SCORES)
def test_each_vector_of_scores_is_drawn_by_itself(metric, levels):
    inside = torch.randint(levels, (70,), generator=seeded(1))
    outside = torch.randint(levels, (30,), generator=seeded(2)) + levels // 3
    generator = seeded()
    drawn = [
        metric(
            *(scores[torch.randint(len(scores), (len(scores),), generator=generator)] for scores in (inside, outside))
        )
        for _ in range(40)
    ]
    estimate = bootstrap(metric, inside, outside, num_resamples=40, generator=seeded())
    assert estimate.value == metric(inside, outside)
    assert estimate.standard_error == pytest.approx(torch.tensor(drawn, dtype=torch.float64).std().item(), rel=1e-9)
    assert [estimate.low, estimate.high] == pytest.approx([min(drawn), max(drawn)], rel=1e-9)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (partial(ece, num_bins=4), lambda p: ece(p, num_bins=4)),
        (partial(classwise_ece, num_bins=4), lambda p: classwise_ece(p, num_bins=4)),
        (partial(aurc, score="predictive_entropy"), lambda p: aurc(p, score="predictive_entropy")),
    ],
    ids=["ece", "classwise_ece", "aurc"],
)
def test_options_come_by_partial_and_any_function_will_do(given, plain):
    prediction = random_prediction(60, 3)
    one, other = (bootstrap(metric, prediction, num_resamples=30) for metric in (given, plain))
    assert parts(one) == approximately(other)


def test_a_function_of_two_predictions_draws_from_each():
    inside, outside = random_prediction(50, 3), random_prediction(40, 3, scale=0.5)
    together = bootstrap(lambda a, b: auroc(uncertainty(a), uncertainty(b)), inside, outside, num_resamples=30)
    assert parts(together) == approximately(
        bootstrap(auroc, uncertainty(inside), uncertainty(outside), num_resamples=30)
    )


def test_targets_go_with_their_inputs():
    prediction = random_prediction(200, 5)
    targets = prediction.targets
    assert bootstrap(accuracy, Prediction(prediction.probs), targets) == bootstrap(accuracy, prediction)
    assert bootstrap(accuracy, prediction, prediction.labels).low == 1  # and those given come first


def test_the_generator_decides():
    prediction = random_prediction(100, 3)
    state = torch.random.get_rng_state()
    assert bootstrap(nll, prediction) == bootstrap(nll, prediction)
    assert bootstrap(nll, prediction, generator=seeded(1)) == bootstrap(nll, prediction, generator=seeded(1))
    assert bootstrap(nll, prediction, generator=seeded(1)) != bootstrap(nll, prediction, generator=seeded(2))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_standard_error_of_an_accuracy_is_the_binomial_one():
    prediction = random_prediction(2000, 3)
    p = accuracy(prediction)
    estimate = bootstrap(accuracy, prediction, num_resamples=2000)
    assert estimate.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 2000), rel=0.06)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * estimate.standard_error, rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """AUROC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    generator = seeded(5)
    covered = 0
    for _ in range(150):
        inside = torch.randn(100, generator=generator)
        outside = 1 + torch.randn(80, generator=generator)
        estimate = bootstrap(auroc, inside, outside, num_resamples=100, level=0.9, generator=generator)
        covered += estimate.low <= truth <= estimate.high
    assert 0.8 <= covered / 150 <= 0.97


def test_a_higher_level_is_wider():
    prediction = random_prediction(300, 3)
    widths = [(e := bootstrap(nll, prediction, level=level)).high - e.low for level in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_one_input_has_no_error_to_estimate():
    estimate = bootstrap(nll, random_prediction(1, 2), num_resamples=5)
    assert estimate.standard_error == pytest.approx(0, abs=1e-12)
    assert str(estimate).endswith(" ± .000")
    assert estimate.low == estimate.high == estimate.value


def test_an_infinite_metric_has_an_infinite_error_and_no_nan():
    prediction = Prediction(torch.eye(2)[[0] * 50], targets=[0] * 49 + [1])
    estimate = bootstrap(nll, prediction)
    assert (estimate.value, estimate.standard_error) == (math.inf, math.inf)
    assert (estimate.low, estimate.high) == (0, math.inf)
    assert str(estimate) == "inf ± inf"


@pytest.mark.parametrize(
    ("value", "standard_error", "text"),
    [
        (0.9576, 0.0041, ".958 ± .004"),
        (1.0, 0.0, "1.000 ± .000"),
        (0.0, 0.0, ".000 ± .000"),
        (0.9999, 0.0021, "1.000 ± .002"),
        (2.73, 0.05, "2.730 ± .050"),
        (12.0, 1.5, "12.000 ± 1.500"),
        (0.01543, 0.00042, ".0154 ± .0004"),
        (0.5, 2e-6, ".500000 ± .000002"),
        (0.5, 1e-16, ".500 ± .000"),
        (-0.25, 0.01, "-.250 ± .010"),
        (10.0, 0.01, "10.000 ± .010"),
    ],
)
def test_it_reads_as_papers_print_it(value, standard_error, text):
    assert str(Estimate(value, standard_error, value, value)) == text


def test_bad_input_is_named():
    prediction = random_prediction(5, 2)
    with pytest.raises(ValueError, match="args is empty, expected at least one Prediction or vector"):
        bootstrap(accuracy)
    with pytest.raises(ValueError, match="num_resamples is 1, expected at least 2"):
        bootstrap(accuracy, prediction, num_resamples=1)
    for level in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(ValueError, match=rf"level is {level}, expected to be in \(0, 1\)"):
            bootstrap(accuracy, prediction, level=level)
    with pytest.raises(ValueError, match=r"args\[0\] has 0 inputs, expected at least 1"):
        bootstrap(len, prediction[:0])
    with pytest.raises(ValueError, match=r"args\[1\]\[0\] is nan"):
        bootstrap(auroc, [0.0], [math.nan])
    with pytest.raises(ValueError, match="targets is None and prediction has no targets"):
        bootstrap(accuracy, Prediction([[0.5, 0.5]]))
    with pytest.raises(TypeError, match=r"targets has dtype torch\.float32, expected integers"):
        bootstrap(accuracy, prediction, torch.zeros(5))
    with pytest.raises(ValueError, match="metric is nan on resample 0 of 1000, expected a number"):
        bootstrap(lambda p: math.nan, prediction)


def test_no_rows_of_probabilities_are_drawn_where_a_number_or_two_will_do(monkeypatch):
    prediction = random_prediction(50, 1000)
    original = Prediction.__getitem__

    def slices_alone(self: Prediction, index: slice) -> Prediction:
        assert isinstance(index, slice)
        return original(self, index)

    monkeypatch.setattr(Prediction, "__getitem__", slices_alone)
    for metric in (accuracy, nll, brier, ece, adaptive_ece, aurc, e_aurc):
        assert bootstrap(metric, prediction, num_resamples=5).value == metric(prediction)
    with pytest.raises(AssertionError):
        bootstrap(classwise_ece, prediction, num_resamples=5)
