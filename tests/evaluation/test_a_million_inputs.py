"""At a million inputs the metrics agree with NumPy's plain formulas, and need little more memory than their inputs."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesitant.evaluation import (
    accuracy,
    adaptive_ece,
    aupr,
    aurc,
    auroc,
    brier,
    classwise_ece,
    ece,
    fpr95,
    nll,
    risk_coverage,
    uncertainty,
)
from hesitant.prediction import Prediction

NUM_INPUTS = 1_000_000


def million() -> Prediction:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(NUM_INPUTS, 3, generator=generator)
    right = torch.rand(NUM_INPUTS, generator=generator) < 0.8
    others = torch.randint(3, (NUM_INPUTS,), generator=generator)
    return Prediction.from_logits(logits, targets=torch.where(right, logits.argmax(dim=-1), others))


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return million()


def binned(values: np.ndarray, events: np.ndarray) -> float:
    count = np.histogram(values, bins=15, range=(0, 1))[0]
    expected = np.histogram(values, bins=15, range=(0, 1), weights=values)[0]
    happened = np.histogram(values, bins=15, range=(0, 1), weights=events)[0]
    return abs(happened - expected)[count > 0].sum() / len(values)


def test_the_metrics_of_a_prediction(prediction):
    probs, targets = prediction.probs.double().numpy(), prediction.targets.numpy()
    hit = (probs.argmax(axis=1) == targets).astype(float)
    confidence = probs.max(axis=1)
    one_hot = np.eye(3)[targets]
    assert accuracy(prediction) == pytest.approx(hit.mean(), rel=1e-12)
    assert nll(prediction) == pytest.approx(-np.log(probs[one_hot == 1]).mean(), rel=1e-6)
    assert brier(prediction) == pytest.approx(((probs - one_hot) ** 2).sum(axis=1).mean(), rel=1e-9)
    assert ece(prediction) == pytest.approx(binned(confidence, hit), abs=1e-6)
    classwise = [binned(probs[:, c], one_hot[:, c]) for c in range(3)]
    assert classwise_ece(prediction) == pytest.approx(np.mean(classwise), abs=1e-6)
    order = np.argsort(confidence, kind="stable")
    equal_masses = [abs((hit[rows] - confidence[rows]).sum()) for rows in np.array_split(order, 15)]
    assert adaptive_ece(prediction) == pytest.approx(sum(equal_masses) / NUM_INPUTS, abs=1e-5)  # they split ties


def test_the_risk_coverage_curve(prediction):
    curve = risk_coverage(prediction)
    score = uncertainty(prediction).numpy()
    wrong = (prediction.labels != prediction.targets).numpy()[np.argsort(score, kind="stable")]
    risk = wrong.cumsum() / np.arange(1, NUM_INPUTS + 1)
    last_of_each = np.flatnonzero(np.diff(np.sort(score), append=np.inf))
    assert np.array_equal(curve.risk.numpy(), risk[last_of_each])
    assert np.array_equal(curve.coverage.numpy(), (last_of_each + 1) / NUM_INPUTS)
    assert aurc(prediction) == pytest.approx(risk.mean(), abs=1e-6)


@pytest.mark.parametrize("decimals", [2, 12])
def test_the_metrics_of_scores(decimals):
    generator = torch.Generator().manual_seed(0)
    inside = torch.randn(NUM_INPUTS, generator=generator).double().round(decimals=decimals)
    outside = (torch.randn(NUM_INPUTS // 2, generator=generator) + 2).double().round(decimals=decimals)
    truth, scores = np.r_[np.zeros(len(inside)), np.ones(len(outside))], torch.cat([inside, outside]).numpy()
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), rel=1e-9)
    assert aupr(inside, outside) == pytest.approx(average_precision_score(truth, scores), rel=1e-9)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert fpr95(inside, outside) == pytest.approx(fpr[tpr >= 0.95].min(), rel=1e-9)


class LargestResult(TorchDispatchMode):
    """Remembers how many numbers the largest result of an operation has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        self.numbers = max([self.numbers, *(part.numel() for part in tensors)])
        return result


@pytest.fixture(scope="module")
def of_many_classes() -> Prediction:
    logits = torch.randn(20_000, 400, generator=torch.Generator().manual_seed(0))
    return Prediction.from_logits(logits, targets=torch.arange(20_000) % 400)


@pytest.mark.parametrize("metric", [accuracy, nll, brier, ece, adaptive_ece, classwise_ece, aurc, uncertainty])
def test_none_copies_the_probabilities(metric, of_many_classes):
    with LargestResult() as largest:
        metric(of_many_classes)
    assert 20_000 <= largest.numbers <= 2**22 < of_many_classes.probs.numel()
