import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from hesitant.evaluation import aupr, auroc, fpr95


def two_scores(num_in: int, num_out: int, levels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(levels + num_in)
    inside = torch.randint(levels, (num_in,), generator=generator).double() / levels
    outside = torch.randint(levels, (num_out,), generator=generator).double() / levels + 0.25
    return inside, torch.where(torch.rand(num_out, generator=generator) < 0.2, inside[0], outside)


def truth_and_scores(inside: Tensor, outside: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.zeros(len(inside)), np.ones(len(outside))], torch.cat([inside, outside]).numpy()


def plain_fpr95(inside: Tensor, outside: Tensor) -> float:
    caught = [t for t in torch.cat([inside, outside]).tolist() if (outside >= t).double().mean() >= 0.95]
    return (inside >= max(caught)).double().mean().item()


SIZES = pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (70, 50), (3, 400), (500, 2)])
LEVELS = (1, 2, 5, 10**9)  # of the scores: so many may differ


@SIZES
def test_they_agree_with_scikit_learn(num_in, num_out):
    for levels in LEVELS:
        inside, outside = two_scores(num_in, num_out, levels)
        truth, scores = truth_and_scores(inside, outside)
        assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)
        assert aupr(inside, outside) == pytest.approx(average_precision_score(truth, scores), rel=1e-12)
        fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
        assert fpr95(inside, outside) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


@SIZES
def test_they_agree_with_torchmetrics_given_ranks_scaled_to_probabilities(num_in, num_out):
    for levels in LEVELS:
        inside, outside = two_scores(num_in, num_out, levels)
        truth, scores = truth_and_scores(inside, outside)
        ranks = torch.from_numpy(np.unique(scores, return_inverse=True)[1]).double()
        between = ranks / (ranks.max() + 1)
        is_ood = torch.from_numpy(truth).long()
        assert auroc(inside, outside) == pytest.approx(binary_auroc(between, is_ood).item(), abs=1e-6)
        assert aupr(inside, outside) == pytest.approx(binary_average_precision(between, is_ood).item(), abs=1e-6)


@SIZES
def test_they_are_what_their_docstrings_say(num_in, num_out):
    for levels in LEVELS:
        inside, outside = two_scores(num_in, num_out, levels)
        pairs = outside.unsqueeze(1) - inside
        assert auroc(inside, outside) == pytest.approx(
            ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item(), rel=1e-12
        )
        assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))
        precision = [((outside >= s).sum() / ((outside >= s).sum() + (inside >= s).sum())).item() for s in outside]
        assert aupr(inside, outside) == pytest.approx(sum(precision) / num_out, rel=1e-6)
        assert fpr95(inside, outside) == plain_fpr95(inside, outside)


@pytest.mark.parametrize(("caught", "expected"), [(19, 0.0), (18, 1.0)])
def test_fpr95_counts_95_percent_in_whole_inputs(caught, expected):
    outside = torch.tensor([2.0] * caught + [0.0] * (20 - caught))
    assert fpr95([1.0], outside) == expected


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ([0.0, 0.1], [0.2, math.inf, math.inf], [1.0, 1.0, 0.0]),
        ([0.2, math.inf, math.inf], [0.0, 0.1], [0.0, (1 / 4 + 2 / 5) / 2, 1.0]),
        ([0.3] * 4, [0.3] * 6, [0.5, 0.6, 1.0]),
        ([0.0], [1.0], [1.0, 1.0, 0.0]),
        ([1.0], [0.0], [0.0, 0.5, 1.0]),
        ([-math.inf, 0.0], [0.0], [0.75, 0.5, 0.5]),
        (np.float32([1e-45, 3e-45]), torch.tensor([6e-45, 9e-45]), [1.0, 1.0, 0.0]),  # smaller than any tolerance
        ([1, 2], [3, 4], [1.0, 1.0, 0.0]),
    ],
    ids=["perfect", "worst", "all equal", "one each", "one each reversed", "a tie", "tiny", "integers"],
)
def test_the_ends(inside, outside, expected):
    assert [metric(inside, outside) for metric in (auroc, aupr, fpr95)] == pytest.approx(expected)


@pytest.mark.parametrize("metric", [auroc, aupr, fpr95])
def test_they_depend_on_the_order_of_the_scores_alone(metric):
    inside, outside = two_scores(200, 100, 50)
    assert metric(inside.exp() * 3, outside.exp() * 3) == metric(inside, outside)
    assert metric(inside.flip(0), outside.flip(0)) == metric(inside, outside)


def test_what_is_perfect_but_for_a_rounding_is_not_lost_in_a_million():
    inside = torch.linspace(0, 1, 1_000_000, dtype=torch.float64)
    outside = torch.full((1_000_000,), 1.0 + 1e-15, dtype=torch.float64)
    assert [metric(inside, outside) for metric in (auroc, aupr, fpr95)] == [1.0, 1.0, 0.0]
    swapped = [metric(outside, inside) for metric in (auroc, aupr, fpr95)]
    assert swapped == pytest.approx([0.0, 1 - math.log(2), 1.0], abs=1e-5)
