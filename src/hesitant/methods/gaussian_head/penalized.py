"""A model that answers its own loss: the penalty on the output weights belongs in it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hesitant.nn import RandomFeatureGaussianProcess


def with_penalty(output: Any, gp: RandomFeatureGaussianProcess) -> Any:
    """Answers what a model answered, the L2 penalty added to the loss in it; where there is no loss, as it is.

    A loss is an entry or attribute ``loss``, or the first of a tuple that is a scalar, as Hugging Face's models have it
    when they are given ``labels``.
    """
    if gp.l2_penalty == 0 or not torch.is_grad_enabled():
        return output
    if isinstance(output, tuple) and not hasattr(output, "loss"):
        if not output or not isinstance(output[0], Tensor) or output[0].ndim > 0:
            return output
        return output[0] + gp.regularization_loss(), *output[1:]
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        return output
    loss = loss + gp.regularization_loss()
    if isinstance(output, tuple):
        named: Any = output
        return named._replace(loss=loss)
    output = copy.copy(output)
    if isinstance(output, Mapping):
        output["loss"] = loss  # type: ignore[index]
    else:
        output.loss = loss
    return output
