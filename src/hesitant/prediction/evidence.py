"""What logits say of how well an input is known: the score that every method detects by, and two of the literature.

**The default, `uniformity`**: `exp(-KL(U || softmax f))` in (0, 1], with `U` the uniform distribution over the classes:
1 where the logits `f` prefer no class, near 0 where they rule most of them out. Its logarithm is, but for `log C`, the
score of Outlier Exposure, the cross-entropy from `U` to the answer (Hendrycks et al. 2019,
https://arxiv.org/abs/1812.04606), and it is `C / sum_c exp(f_c - mean f)`: the Dempster-Shafer uncertainty (Sensoy et
al. 2018, https://arxiv.org/abs/1806.01768; of SNGP, Liu et al. 2020, https://arxiv.org/abs/2006.10108) of logits whose
mean is taken off, without the `C` that keeps it below 1. Why it is the default:

- The *energy* `-log sum_c exp f_c` (Liu et al. 2020, https://arxiv.org/abs/2010.03759) and the Dempster-Shafer
  uncertainty change with a number that is added to all logits of an input, and cross-entropy does not: nothing that a
  network is trained by determines that number. Under plain gradient descent the classes' gradients sum to 0 and it
  stays as it was drawn; under Adam, whose steps are signs, it drifts by the ratio of a class to all others. A score
  that it moves tells of the optimizer. This one is a function of `softmax f`.
- The confidence sees the two or three largest logits: an input between two known classes is ambiguous, and no less
  known for it. This score sees all of them: there the other classes are ruled out. (Of two classes, both are one
  order.)
- SNGP says that an input is far by shrinking its mean-field logits towards their prior, all of them: to no preference.
- Mutual information is 0 where all members agree that they know nothing.

Where a model answers probabilities alone, they may be counts, of which one zero would say that all is known: the
predictive entropy stands in its place, which looks at what is likely.

**Of which logits.** Of those before any temperature: it is fitted to in-domain data, and one below 1 sharpens the
confidences of the unknown, too. For SNGP they are the mean-field logits, not the posterior mean, which knows no
distance; and these at the temperature, for it is no calibration of its own there. Factor and temperature are fitted
together, and the one undoes on the data what the other shrinks. For MC dropout and an ensemble they are the mean over
passes or members: `-log uniformity` of the mean is the mean of the members' less the mean of
`KL(softmax f || softmax f_s)`, so that the score rises where each finds little and where they disagree.
"""

import math

import torch
from torch import Tensor

from hesitant.prediction.arguments import as_floating
from hesitant.prediction.distributions import two_class_logits

__all__ = ["dempster_shafer", "energy_of", "evidence_of", "uniformity"]


def evidence_of(logits: Tensor) -> Tensor:
    """The logits `(B, C)` that scores look at, of a model's `(B, C)`; of a single one `z`, `(B, 1)` or `(B,)`.

    A single logit is `[-z/2, z/2]`: which of two is 0 is a convention, and the energy of `[0, z]` would call all of
    class 0 unknown.
    """
    logits = as_floating("logits", logits)
    if logits.ndim == 2 and logits.shape[1] != 1:
        return logits
    return two_class_logits(logits) - logits.reshape(-1, 1) / 2


def energy_of(evidence: Tensor) -> Tensor:
    """The energy `-log sum_c exp f_c` `(B,)` of logits `f` `(B, C)`."""
    return -evidence.logsumexp(dim=-1)


def dempster_shafer(evidence: Tensor) -> Tensor:
    """The Dempster-Shafer uncertainty `C / (C + sum_c exp f_c)` `(B,)` in [0, 1], float64, of logits `f` `(B, C)`."""
    return torch.sigmoid(math.log(evidence.shape[-1]) + energy_of(evidence).double())


def uniformity(evidence: Tensor) -> Tensor:
    """`exp(-KL(U || softmax f))` `(B,)` in [0, 1], float64, of logits `f` `(B, C)`: how near they are to no preference.

    The geometric mean of the probabilities over their arithmetic mean, `1 / C`.
    """
    divergence = -torch.log_softmax(evidence.double(), dim=-1).mean(dim=-1) - math.log(evidence.shape[-1])
    return torch.exp(-divergence).clamp(max=1)
