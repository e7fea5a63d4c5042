import pytest
import torch
from torch import Tensor

from hesitant import Prediction
from hesitant.prediction import Mixture, prediction_from_mixture

FIELDS = ("probs", "log_probs", "logits", "energy", "expected_entropy", "mutual_information", "class_std", "ood_score")


def logits_of_passes(scale: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return scale * torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)


def mixture_of(logits: Tensor) -> Mixture:
    return Mixture.of_passes(logits.log_softmax(-1), logits.mean(0))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_prediction_that_is_made_of_the_same_parts_checked(scale: float, dtype: torch.dtype) -> None:
    mixture = mixture_of(logits_of_passes(scale, dtype=dtype))
    targets = torch.tensor([0, 1, 2, 0, 1])
    checked = Prediction(
        mixture.probs,
        targets=targets,
        log_probs=mixture.log_probs,
        logits=mixture.logits,
        expected_entropy=mixture.expected_entropy,
        class_std=mixture.class_std,
    )
    prediction = prediction_from_mixture(mixture, targets=targets)
    for field in FIELDS:
        assert torch.equal(getattr(prediction, field), getattr(checked, field)), field
    assert prediction.targets is not None
    assert torch.equal(prediction.targets, targets)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_named(number: float) -> None:
    logits = logits_of_passes(1.0)
    logits[3, 2, 1] = number
    with pytest.raises(ValueError, match=r"logits\[2, 1\]"):
        prediction_from_mixture(mixture_of(logits))
    log_probs = torch.full((7, 5, 3), -1.0986)
    log_probs[:, 2] = float("nan")
    with pytest.raises(ValueError, match=r"probs\[2, 0\] is nan"):
        prediction_from_mixture(Mixture.of_passes(log_probs))


def test_large_logits_are_finite_ones() -> None:
    logits = torch.full((4, 7, 2), 5e37)
    prediction = prediction_from_mixture(mixture_of(logits))
    torch.testing.assert_close(prediction.probs, torch.full((7, 2), 0.5))
    assert len(prediction_from_mixture(mixture_of(logits[:, :0]))) == 0


def test_targets_are_checked() -> None:
    with pytest.raises(ValueError, match=r"targets\[1\] is 3"):
        prediction_from_mixture(mixture_of(logits_of_passes(1.0)), targets=torch.tensor([0, 3, 0, 0, 0]))
