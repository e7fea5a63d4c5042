"""The forward of training: plain logits, from which the layer learns its scale and a running covariance its sums."""

import warnings
from typing import Any

import torch
from torch import nn

from hesitant.methods.gaussian_head.features import counted_features
from hesitant.methods.gaussian_head.penalized import with_penalty
from hesitant.nn import RandomFeatureGaussianProcess, recorded

_FROZEN = (
    "the output weights of the Gaussian process, gp.beta, are frozen: they stay as they were drawn at random. Set"
    " model.gp.beta.requires_grad = True; with PEFT, name the classifier among its modules_to_save."
)


class FrozenHeadWarning(UserWarning):
    """The output weights of an SNGP do not train: they stay as they were drawn at random."""


def training_output(
    model: nn.Module, gp: RandomFeatureGaussianProcess, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Answers what a model in training mode answers; a loss in it has the L2 penalty on the output weights."""
    running = gp.laplace.momentum is not None
    if not gp.beta.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        warnings.warn(_FROZEN, FrozenHeadWarning, stacklevel=5)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not (running or gp.is_open or gp.scale.follows):
        return with_penalty(model(*args, **kwargs), gp)
    # Plain, for the layer alone would count padding too.
    with recorded(plain=running, decides=True) as calls:
        output = model(*args, **kwargs)
    if running and not gp.is_open:
        for call in calls:
            gp.update(counted_features(model, call, output, args, kwargs))
    return with_penalty(output, gp)
