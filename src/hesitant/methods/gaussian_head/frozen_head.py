"""A Gaussian process whose output weights do not train, which is said: they stay as they were drawn at random."""

import warnings

import torch

from hesitant.nn import RandomFeatureGaussianProcess

_FROZEN = (
    "the output weights of the Gaussian process, gp.beta, are frozen: they stay as they were drawn at random. Set"
    " model.gp.beta.requires_grad = True; with PEFT, name the classifier among its modules_to_save."
)


class FrozenHeadWarning(UserWarning):
    """The output weights of an SNGP do not train: they stay as they were drawn at random."""


def warn_if_frozen(gp: RandomFeatureGaussianProcess) -> None:
    """Warns of a training forward whose Gaussian process learns nothing."""
    if not gp.beta.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        warnings.warn(_FROZEN, FrozenHeadWarning, stacklevel=6)
