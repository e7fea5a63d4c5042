"""How much evidence logits are for any class at all: what a softmax, which sees differences alone, forgets."""

import math

import torch
from torch import Tensor

__all__ = ["dempster_shafer", "energy_of"]


def energy_of(logits: Tensor, *, single: bool = False) -> Tensor:
    """The energy `-log sum_c exp f_c` `(B,)` of logits `f` `(B, C)`.

    Args:
        logits: `(B, C)`.
        single: they are the `[0, z]` of a model with a single logit `z`. Which of the two is 0 is a convention, and
            `-log(1 + exp z)` would call all of class 0 unknown: `[-z/2, z/2]` stand in their place.
    """
    return -(logits - logits.mean(dim=-1, keepdim=True) if single else logits).logsumexp(dim=-1)


def dempster_shafer(energy: Tensor, num_classes: int) -> Tensor:
    """The Dempster-Shafer uncertainty `C / (C + sum_c exp f_c)` `(B,)` in [0, 1], float64, of energies `(B,)`."""
    return torch.sigmoid(math.log(num_classes) + energy.double())
