"""How much evidence logits are for any class at all: what a softmax, which sees differences alone, forgets.

The *energy* `-log sum_c exp f_c` (Liu et al. 2020, https://arxiv.org/abs/2010.03759) is low where some logit is large;
`C / (C + sum_c exp f_c)`, the *Dempster-Shafer uncertainty*, is the same order on [0, 1] (Sensoy et al. 2018,
https://arxiv.org/abs/1806.01768; of SNGP, Liu et al. 2020, https://arxiv.org/abs/2006.10108).

**Why it is the default to detect by, for each method that has logits.** The confidence sees how logits differ, and not
how large they are. An input between two known classes is ambiguous, and no less known for it; one unlike all classes
may still be nearer to one than to the others. SNGP says that an input is far by shrinking its mean-field logits, all of
them: that is what this score reads. Mutual information is 0 where all members agree that they know nothing. Where a
model answers probabilities alone, there is no evidence to be seen, and the predictive entropy stands in its place: the
total uncertainty, of which what comes of not knowing is a part.

**Of which logits.** Of those before any temperature: it is fitted to in-domain data, and one below 1 sharpens the
confidences of the unknown, too. For SNGP they are the mean-field logits, not the posterior mean, which knows no
distance; and these at the temperature, for it is no calibration of its own there. Factor and temperature are fitted
together, and the one undoes on the data what the other shrinks: without it a large factor leaves all logits next to 0,
where `log sum_c exp f_c` is `log C` plus their mean, which training by softmax does not determine. For MC dropout and
an ensemble they are the mean over passes or members. A member's `log sum_c exp f_c(x)` is the logarithm of a density
that lacks its normaliser, another one for each member: a mean of logarithms turns these into one constant, whereas a
mean of `exp f` would let the member of the largest logits speak for all. And with `f` the mean of the `f_s`, the energy
of `f` is the mean of the members' energies plus the mean of `KL(softmax(f) || softmax(f_s))`: it rises where each finds
little and where they disagree, and not with what all agree is ambiguous.
"""

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
