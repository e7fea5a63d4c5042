import itertools
import math

import pytest
import torch
from tests.evaluation.predictions import CASES
from torch import Tensor

from hesitant.evaluation import SCORES, uncertainty
from hesitant.prediction import Prediction, UnavailableError


def with_everything(dtype: torch.dtype = torch.float64) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 4, generator=generator, dtype=dtype)
    samples = torch.softmax(logits + torch.randn(6, 40, 4, generator=generator, dtype=dtype), dim=-1)
    return Prediction.from_samples(samples, logits=logits, logit_variance=logits.square())


def plain(prediction: Prediction, score: str) -> Tensor:
    p = prediction.probs
    return {
        "confidence": lambda: 1 - p.amax(dim=-1),
        "predictive_entropy": lambda: -(p * p.log()).sum(dim=-1),
        "mutual_information": lambda: -(p * p.log()).sum(dim=-1) - prediction.expected_entropy,
        "logit_variance": lambda: prediction.logit_variance.mean(dim=-1),
        "dempster_shafer": lambda: p.shape[1] / (p.shape[1] + prediction.logits.exp().sum(dim=-1)),
        "energy": lambda: -prediction.logits.exp().sum(dim=-1).log(),
    }[score]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_they_are_the_plain_formulas(score, dtype):
    prediction = with_everything(dtype)
    answer = uncertainty(prediction, score)
    assert (answer.dtype, answer.shape) == (torch.float64, (40,))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(answer, plain(prediction, score).double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("score", SCORES)
def test_in_parts_they_are_the_same(score, monkeypatch):
    whole = uncertainty(with_everything(), score)
    monkeypatch.setattr("hesitant.prediction.parts._CHUNK_NUMBERS", 30)
    torch.testing.assert_close(uncertainty(with_everything(), score), whole)
    assert uncertainty(with_everything()[:0], score).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_confidences_that_round_to_1_keep_their_order(dtype):
    margins = torch.tensor(
        [0.0, 1.0, 10.0, 20.0, 40.0, 80.0, 90.0, 103.0, 104.0, 110.0, 200.0, 400.0, 650.0], dtype=dtype
    )
    prediction = Prediction.from_logits(torch.stack([margins, torch.zeros_like(margins)], dim=-1))
    expected = torch.sigmoid(-margins.double())
    torch.testing.assert_close(uncertainty(prediction), expected, rtol=1e-4, atol=0)
    assert bool((uncertainty(prediction).diff() < 0).all())


def test_confidences_of_1_less_1e_30_and_1_less_1e_31_differ():
    log_probs = torch.tensor([[0.0, -30 * math.log(10)], [0.0, -31 * math.log(10)]])
    prediction = Prediction(torch.tensor([[1.0, 1e-30], [1.0, 1e-31]]), log_probs=log_probs)
    assert uncertainty(prediction).tolist() == pytest.approx([1e-30, 1e-31], rel=1e-4)


def test_certainty_is_an_uncertainty_of_0():
    prediction = Prediction(torch.eye(3))
    assert uncertainty(prediction).tolist() == [0.0] * 3
    assert uncertainty(prediction, "predictive_entropy").tolist() == [0.0] * 3


def test_the_size_of_the_logits_saturates_no_energy():
    logits = torch.tensor([[1e4, 0.0], [2e4, 0.0], [-1e4, -1e4], [-2e4, -2e4]])
    prediction = Prediction.from_logits(logits)
    assert uncertainty(prediction, "energy").tolist() == pytest.approx([-1e4, -2e4, 1e4, 2e4], rel=1e-4)
    assert uncertainty(prediction, "dempster_shafer").tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_members_in_full_disagreement(dtype):
    prediction = Prediction.from_samples(torch.eye(2, dtype=dtype).unsqueeze(1))  # (2, 1, 2)
    for score in ("predictive_entropy", "mutual_information"):
        assert uncertainty(prediction, score).item() == pytest.approx(math.log(2), rel=1e-6)
    assert uncertainty(prediction).item() == pytest.approx(0.5, rel=1e-6)
    agreeing = Prediction.from_samples(torch.full((2, 1, 2), 0.5, dtype=dtype))
    assert uncertainty(agreeing, "predictive_entropy").item() == pytest.approx(math.log(2), rel=1e-6)
    assert uncertainty(agreeing, "mutual_information").item() == 0


@pytest.mark.parametrize("log", [False, True], ids=["probabilities", "log-probabilities"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_total_is_aleatoric_plus_epistemic(dtype, log):
    shapes, scales = ((1, 2), (2, 2), (10, 3), (5, 1000)), (0.0, 1.0, 10.0, 100.0, 1e4)
    for (num_samples, num_classes), scale in itertools.product(shapes, scales):
        generator = torch.Generator().manual_seed(num_classes)
        logits = scale * torch.randn(num_samples, 50, num_classes, generator=generator, dtype=dtype)
        samples = torch.log_softmax(logits, dim=-1) if log else torch.softmax(logits, dim=-1)
        prediction = Prediction.from_samples(samples, log=log)
        total = uncertainty(prediction, "predictive_entropy")
        epistemic = uncertainty(prediction, "mutual_information")
        aleatoric = prediction.expected_entropy.double()
        allowed = 4 * torch.finfo(dtype).eps * math.log(num_classes)
        torch.testing.assert_close(aleatoric + epistemic, total, rtol=0, atol=allowed)
        assert bool((torch.stack([total, aleatoric, epistemic]) >= 0).all())
        assert bool((total <= math.log(num_classes) + 1e-5).all())
        each = torch.softmax(logits.double(), dim=-1)
        entropies = -torch.xlogy(each, each).sum(dim=-1)
        mean = each.mean(dim=0)
        torch.testing.assert_close(aleatoric, entropies.mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(total, -torch.xlogy(mean, mean).sum(dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_none_is_nan_or_infinite_on_extreme_inputs(name):
    for score in ("confidence", "predictive_entropy"):
        answer = uncertainty(CASES[name], score)
        assert bool(answer.isfinite().all())
        assert bool((answer >= 0).all())


@pytest.mark.parametrize(
    ("score", "missing"),
    [
        ("mutual_information", "mutual_information"),
        ("logit_variance", "logit_variance"),
        ("dempster_shafer", "logits"),
        ("energy", "logits"),
    ],
)
def test_what_the_method_cannot_give_is_named(score, missing):
    for prediction in (Prediction([[0.5, 0.5]]), Prediction([[0.5, 0.5]])[:0]):
        with pytest.raises(UnavailableError, match=f"^{missing} is not available"):
            uncertainty(prediction, score)


def test_an_unknown_score_is_named():
    with pytest.raises(ValueError, match="score is 'margin', expected one of 'confidence'"):
        uncertainty(with_everything(), "margin")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("score", SCORES)
def test_they_stay_on_the_device(score):
    answer = uncertainty(with_everything().to("cuda"), score)
    assert answer.device.type == "cuda"
    torch.testing.assert_close(answer.cpu(), uncertainty(with_everything(), score))
