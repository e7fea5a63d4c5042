"""What several metrics ask of their arguments."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hesitant.prediction import Prediction, as_tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["as_scores", "known_targets"]


def known_targets(prediction: Prediction, targets: "Tensor | ArrayLike | None") -> Tensor:
    """The `(B,)` int64 `targets`, by default those of `prediction`, of at least one input.

    Raises:
        TypeError: `targets` are not integers.
        ValueError: there are no inputs or no targets, or the targets do not fit.
    """
    if len(prediction) == 0:
        raise ValueError(
            "prediction has 0 inputs, expected at least 1: no metric is defined over no inputs. Look at the mask or "
            "the data that it comes from"
        )
    known = (prediction if targets is None else prediction.with_targets(targets)).targets
    if known is None:
        raise ValueError(
            "targets is None and prediction has no targets: pass targets=..., or predict on (x, target) pairs"
        )
    return known


def as_scores(name: str, scores: "Tensor | ArrayLike") -> Tensor:
    """`scores` as `(N,)` float64 on the CPU, `N >= 1`, none of them NaN.

    Raises:
        TypeError: they are not real numbers.
        ValueError: they are not of one dimension, there are none, or one is NaN.
    """
    tensor = as_tensor(name, scores, device=torch.device("cpu"))
    if tensor.is_complex():
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected real numbers: pass one score for each input")
    # A list's numbers are float64: as torch reads them, a score of .3 would lie above a threshold of .3.
    tensor = tensor.double() if isinstance(scores, Tensor) else torch.as_tensor(np.asarray(scores, dtype=np.float64))
    if tensor.dim() != 1 or len(tensor) == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (N,) with N >= 1: one score for each input")
    if bool(tensor.isnan().any()):
        row = int(tensor.isnan().nonzero()[0])
        raise ValueError(f"{name}[{row}] is nan, expected a number: look for the input that made it")
    return tensor
