"""Logits or predictions that are there already, of any framework: as components, and calibrated."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hesitant.evaluation.calibration.components import Components
from hesitant.nn import mean_field_logits
from hesitant.prediction import Prediction, UnavailableError, as_finite, as_floating, two_class_logits

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Given = Prediction | Tensor | np.ndarray


def components_of_given(given: Given, targets: Any) -> Components:
    """Answers one distribution an input, with its targets.

    Raises:
        ValueError: There are no targets, or two sorts of them, or a shape is wrong.
    """
    logits, variance = _parts(given)
    if isinstance(given, Prediction):
        if targets is not None:
            raise ValueError("the prediction comes with targets of its own: call calibrate(prediction) alone.")
        truth = given.targets
    else:
        truth = (
            None
            if targets is None
            else torch.as_tensor(np.array(targets) if not isinstance(targets, Tensor) else targets)
        )
    if truth is None:
        raise ValueError(
            "there are no targets: expected calibrate(logits, targets), or a Prediction with targets,"
            " prediction.with_targets(targets)."
        )
    one = torch.ones(1, dtype=torch.float64)
    return Components(
        logits.cpu().unsqueeze(0), None if variance is None else variance.cpu().unsqueeze(0), 0 * one, one, truth.cpu()
    )


def calibrated(
    given: Given, temperature: float, factor: float | None, targets: "ArrayLike | Tensor | None"
) -> Prediction:
    """Answers ``softmax(logits / (T sqrt(1 + factor variance)))``."""
    logits, variance = _parts(given)
    scaled = logits / temperature
    if variance is not None:
        scaled = mean_field_logits(scaled, variance, factor)
    known = given.targets if isinstance(given, Prediction) and targets is None else targets
    truth = None if known is None else torch.as_tensor(known)
    return Prediction.from_logits(scaled, targets=truth, mean_logits=logits, logit_variance=variance)


def _parts(given: Given) -> tuple[Tensor, Tensor | None]:
    """Answers logits ``(B, C)`` and, where it is known, their variance."""
    if isinstance(given, Prediction):
        try:
            logits = given.logits
        except UnavailableError:  # of several passes or members, or made by hand
            return given.log_probs, None
        try:
            return logits, given.logit_variance
        except UnavailableError:
            return logits, None
    tensor = as_floating("logits", torch.as_tensor(given))
    if tensor.dim() not in (1, 2):
        raise ValueError(f"logits has shape {tuple(tensor.shape)}: expected (B, C), or (B, 1) or (B,) for two classes.")
    return two_class_logits(as_finite("logits", tensor, tensor.shape, like=tensor)), None
