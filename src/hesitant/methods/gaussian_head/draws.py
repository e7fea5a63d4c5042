"""Monte Carlo over the logits: the mean softmax of draws from their Gaussian."""

import torch
from torch import Tensor

from hesitant.nn import GaussianLogits
from hesitant.prediction import Prediction, two_class_logits

_SAMPLES_AT_ONCE = 2**22  # numbers, 16 MiB in float32


def monte_carlo(
    gaussian: GaussianLogits,
    targets: Tensor | None,
    num_samples: int,
    generator: torch.Generator,
    temperature: float,
    evidence: Tensor,
) -> Prediction:
    """Answers the Prediction of ``num_samples`` draws of each input's logits, a few inputs at a time.

    ``evidence`` ``(B, C)`` are the mean-field logits, which scores look at.
    """
    gaussian = GaussianLogits(two_class_logits(gaussian.mean), two_class_logits(gaussian.variance))
    rows = max(1, _SAMPLES_AT_ONCE // (num_samples * gaussian.mean.shape[1]))
    parts: list[Prediction] = []
    for start in range(0, len(gaussian.mean), rows):
        chosen = slice(start, start + rows)
        part = GaussianLogits(gaussian.mean[chosen], gaussian.variance[chosen])
        parts.append(
            Prediction.from_samples(
                torch.log_softmax(part.sample(num_samples, generator) / temperature, -1),  # (S, B, C)
                targets=None if targets is None else targets[chosen],
                logits=part.mean,
                evidence=evidence[chosen],
                logit_variance=part.variance,
                log=True,
            )
        )
    return Prediction.cat(parts)
