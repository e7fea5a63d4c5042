"""Metrics of batches are, to the bit, those of all predictions at once."""

import math
import pickle
import random

import pytest
import torch
from tests.evaluation.predictions import CASES, random_prediction, tied_prediction

from hesitant.evaluation import StreamingMetrics, accuracy, auroc, brier, ece, nll, uncertainty
from hesitant.prediction import Prediction

METRICS = {"accuracy": accuracy, "nll": nll, "brier": brier, "ece": ece}


def parts(prediction: Prediction, seed: int) -> list[Prediction]:
    """The inputs in random order, in batches of random sizes, some of them of one input."""
    order = torch.randperm(len(prediction), generator=torch.Generator().manual_seed(seed))
    sizes, choose = [], random.Random(seed)
    while sum(sizes) < len(prediction):
        sizes.append(choose.choice([1, 2, 7, 40, 200]))
    return [prediction[rows] for rows in order.split([*sizes[:-1], len(prediction) - sum(sizes[:-1])])]


def streamed(prediction: Prediction, seed: int = 0, **options) -> StreamingMetrics:
    metrics = StreamingMetrics(**options)
    for part in parts(prediction, seed):
        metrics.update(part)
    return metrics


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_batches_have_the_metrics_of_the_whole(name, seed):
    answer = streamed(CASES[name], seed, score="confidence").compute()
    assert answer == {name_of: metric(CASES[name]) for name_of, metric in METRICS.items()}


@pytest.mark.parametrize("kind", [random_prediction, tied_prediction])
def test_out_of_domain_sets_are_told_by_name(kind):
    inside, near, far = kind(900, 5), kind(300, 5)[:170], kind(500, 5)
    metrics = streamed(inside, score="predictive_entropy")
    for name, prediction in (("near", near), ("far", far)):
        for part in parts(prediction, 3):
            metrics.update_ood(name, part)
    scores = [uncertainty(prediction, "predictive_entropy") for prediction in (inside, near, far)]
    answer = metrics.compute()
    assert answer["auroc_near"] == auroc(scores[0], scores[1])
    assert answer["auroc_far"] == auroc(scores[0], scores[2])
    assert list(answer) == [*METRICS, "auroc_far", "auroc_near"]


def test_workers_are_merged_in_any_order():
    inside, outside = random_prediction(1000, 4), random_prediction(400, 4, scale=0.5)
    workers = []
    for part, other in zip(inside[:].probs.split(130), outside.probs.split(50), strict=True):
        rows = slice(130 * len(workers), 130 * len(workers) + len(part))
        metrics = StreamingMetrics(score="confidence")
        metrics.update(inside[rows])
        metrics.update_ood("noise", outside[50 * len(workers) : 50 * len(workers) + len(other)])
        workers.append(pickle.dumps(metrics))  # as they come from other processes
    answers = []
    for order in (range(8), reversed(range(8)), [3, 1, 4, 0, 5, 7, 2, 6]):
        merged = StreamingMetrics(score="confidence")
        for worker in order:
            merged.merge(pickle.loads(workers[worker]))
        answers.append(merged.compute())
    assert answers[0] == answers[1] == answers[2]
    whole = streamed(inside, score="confidence")
    whole.update_ood("noise", outside)
    assert answers[0] == whole.compute() == whole.of_all_workers().compute()


def test_scores_beyond_the_limit_are_a_uniform_sample():
    inside, outside = random_prediction(6000, 3), random_prediction(5000, 3, scale=0.5)
    exact = auroc(*(uncertainty(prediction, "confidence") for prediction in (inside, outside)))
    answers = []
    for seed in range(20):
        half = StreamingMetrics(score="confidence", max_scores=500, seed=seed)
        half.update(inside[:3000])
        half.update_ood("noise", outside[:2500])
        other = StreamingMetrics(score="confidence", max_scores=500, seed=100 + seed)
        other.update(inside[3000:])
        other.update_ood("noise", outside[2500:])
        half.merge(other)
        assert len(half._in_domain.kept()[0]) == len(half._ood["noise"].kept()[0]) == 500
        answer = half.compute()
        assert answer["nll"] == nll(inside)  # of all inputs, whatever is kept
        answers.append(answer["auroc_noise"])
    assert abs(sum(answers) / 20 - exact) < 0.01
    assert max(abs(answer - exact) for answer in answers) < 0.06


def test_a_reset_forgets_all():
    metrics = streamed(random_prediction(50, 3), score="confidence")
    metrics.update_ood("noise", random_prediction(20, 3))
    metrics.reset()
    with pytest.raises(ValueError, match="no in-domain predictions"):
        metrics.compute()
    metrics.update(random_prediction(30, 4))
    assert metrics.compute() == streamed(random_prediction(30, 4), score="confidence").compute()


def test_without_a_score_nothing_of_an_input_is_kept():
    metrics = StreamingMetrics(score=None)
    metrics.update(random_prediction(2000, 3))
    assert metrics.compute() == streamed(random_prediction(2000, 3), score=None).compute()
    few = streamed(random_prediction(20, 3), score=None)
    assert len(pickle.dumps(metrics)) < len(pickle.dumps(few)) + 500
    with pytest.raises(ValueError, match="score is None, so that 'noise'"):
        metrics.update_ood("noise", random_prediction(10, 3))


def test_an_impossible_target_costs_infinitely_much():
    metrics = StreamingMetrics(score=None)
    metrics.update(Prediction([[1.0, 0.0], [0.5, 0.5]], targets=[1, 0]))
    assert metrics.compute()["nll"] == math.inf


def test_what_cannot_be_counted_is_refused_and_nothing_added():
    metrics = StreamingMetrics()
    for wrong, message in (
        (Prediction([[0.5, 0.5]]), "targets is None"),
        (random_prediction(5, 3)[:0], "0 inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.update(wrong)
    assert metrics.num_inputs == 0
    with pytest.raises(ValueError, match="num_bins is 15 here and 10 there"):
        metrics.merge(StreamingMetrics(num_bins=10))
    with pytest.raises(ValueError, match="score is 'ood_score' here and 'confidence' there"):
        metrics.merge(StreamingMetrics(score="confidence"))
    with pytest.raises(ValueError, match="max_scores is 0"):
        StreamingMetrics(max_scores=0)
    with pytest.raises(ValueError, match="num_bins is 0"):
        StreamingMetrics(num_bins=0)
