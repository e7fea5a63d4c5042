"""Metrics of a `Prediction` against its targets, and of in-domain against out-of-domain scores."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesitant.checks import as_tensor
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["accuracy", "auroc", "brier", "ece", "nll"]

_CHUNK_NUMBERS = 2**22  # probabilities taken to float64 at a time: bounds the temporary memory


def accuracy(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None) -> float:
    """The share of inputs whose label is the target, in [0, 1]; a tie between classes goes to the first of them.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, or the targets do not fit.
    """
    return (prediction.labels == _targets(prediction, targets)).double().mean().item()


def nll(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None) -> float:
    """Negative log-likelihood `-mean_i log p_i[target_i]`, in nats, in [0, inf].

    Taken from `prediction.log_probs`, so a confidence that rounds to 1 still costs what it should. A target of
    probability 0 makes it infinite: nothing is hidden by clipping.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, or the targets do not fit.
    """
    checked = _targets(prediction, targets)
    log_likelihood = prediction.log_probs.gather(-1, checked.unsqueeze(-1))  # (B, 1)
    return abs(log_likelihood.double().mean().item())  # abs: no negative zero


def brier(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None) -> float:
    """Brier score `mean_i sum_c (p_i[c] - 1[c = target_i])^2`, in [0, 2].

    Brier's own sum over all classes (1950); the binary form that looks at one class alone is half of it.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, or the targets do not fit.
    """
    checked = _targets(prediction, targets)
    rows = max(1, _CHUNK_NUMBERS // prediction.probs.shape[1])
    total = 0.0
    for start in range(0, len(prediction), rows):
        hit = checked[start : start + rows].unsqueeze(-1)  # (b, 1)
        errors = prediction.probs[start : start + rows].double()
        errors = errors.scatter(-1, hit, errors.gather(-1, hit) - 1)
        total += errors.square().sum().item()
    return total / len(prediction)


def ece(prediction: Prediction, targets: "Tensor | ArrayLike | None" = None, num_bins: int = 15) -> float:
    """Expected calibration error of the confidence, `sum_b n_b / B |accuracy_b - confidence_b|`, in [0, 1].

    The bins are of equal width and contain their lower edge, `[k / num_bins, (k + 1) / num_bins)`; a confidence of
    exactly 1 has a bin of its own. By torchmetrics, which gets confidences in float64 and never logits. With two
    classes too it is the confidence of the label that counts, in [1/2, 1], not the probability of class 1. Guo et al.
    2017, https://arxiv.org/abs/1706.04599.

    Args:
        prediction: of `B >= 1` inputs.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        num_bins: at least 1.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, the targets do not fit, or `num_bins` is below 1.
        ImportError: torchmetrics is not installed.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, expected at least 1: 15 is the field's usual number")
    checked = _targets(prediction, targets)
    # Given confidence and hit the binary form is the multiclass one, without a float64 copy of all the probabilities.
    confidence = prediction.confidence.cpu().double().clamp(0, 1)
    hit = (prediction.labels == checked).cpu().long()
    calibration = _library("torchmetrics.functional.classification", "torchmetrics")
    error: Tensor = calibration.binary_calibration_error(confidence, hit, n_bins=num_bins, norm="l1")
    return min(error.item(), 1.0)


def auroc(in_domain_scores: "Tensor | ArrayLike", ood_scores: "Tensor | ArrayLike") -> float:
    """The probability that an out-of-domain input scores above an in-domain one, in [0, 1]; a tie counts one half.

    Area under the ROC curve with out-of-domain as the positive class: 1 separates perfectly, 1/2 is chance. A score is
    higher the less in-domain the input looks: an entropy, a variance, `1 - confidence`. By scikit-learn.

    Args:
        in_domain_scores: `(N,)` numbers, `N >= 1`; infinite ones are allowed.
        ood_scores: `(K,)` numbers, `K >= 1`.

    Raises:
        TypeError: the scores are not numbers.
        ValueError: the scores are not of one dimension, there are none, or one is NaN.
        ImportError: scikit-learn is not installed.
    """
    parts = [_scores("in_domain_scores", in_domain_scores), _scores("ood_scores", ood_scores)]
    # Ranks carry all that AUROC looks at, ties included, and unlike infinite scores scikit-learn takes them.
    ranks = torch.unique(torch.cat(parts), return_inverse=True)[1]
    is_ood = torch.cat([torch.zeros(len(parts[0])), torch.ones(len(parts[1]))])
    return float(_library("sklearn.metrics", "scikit-learn").roc_auc_score(is_ood.numpy(), ranks.numpy()))


def _targets(prediction: Prediction, targets: "Tensor | ArrayLike | None") -> Tensor:
    if len(prediction) == 0:
        raise ValueError("prediction has 0 inputs, expected at least 1: the mean over no inputs is undefined")
    checked = (prediction if targets is None else prediction.with_targets(targets)).targets
    if checked is None:
        raise ValueError(
            "targets is None and prediction has no targets: pass targets=..., or predict on (x, target) pairs"
        )
    return checked


def _scores(name: str, scores: "Tensor | ArrayLike") -> Tensor:
    tensor = as_tensor(name, scores, device=torch.device("cpu"))
    if tensor.is_complex():
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected real numbers: pass one score for each input")
    tensor = tensor.double()
    if tensor.dim() != 1 or len(tensor) == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (N,) with N >= 1: one score for each input")
    if bool(tensor.isnan().any()):
        row = int(tensor.isnan().nonzero()[0])
        raise ValueError(f"{name}[{row}] is nan, expected a number: look for the input that made it")
    return tensor


def _library(module: str, package: str) -> ModuleType:
    # Imported when used: evaluation must not make `import hesitant` heavy.
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"this metric needs {package}: pip install {package}") from error
