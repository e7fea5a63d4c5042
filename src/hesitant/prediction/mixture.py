"""The mean of several distributions for each input, gathered a few at a time."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hesitant.prediction.arguments import as_tensor
from hesitant.prediction.distributions import as_distributions, as_log_probs, entropy, exact_log

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_TINY = 1e-30  # below, a float32 loses digits
_CHUNK_NUMBERS = 2**22  # numbers of samples handled at a time


class Mixture(NamedTuple):
    """The mean of `num_samples` distributions over `C` classes for each of `B` inputs, and how they differ.

    Attributes:
        num_samples: How many.
        probs: `(B, C)`, their mean.
        log_probs: `(B, C)`, its logarithm, exact where `probs` rounds to 0 or 1.
        expected_entropy: `(B,)`, the mean of their entropies, in nats.
        class_std: `(B, C)`, their population standard deviation.
        logits: `(B, C)`, the mean of their logits, where these are known.
    """

    num_samples: int
    probs: Tensor
    log_probs: Tensor
    expected_entropy: Tensor
    class_std: Tensor
    logits: Tensor | None = None

    @classmethod
    def of(cls, samples: "Tensor | ArrayLike", *, log: bool) -> "Mixture":
        """The mixture of `S` distributions `(S, B, C)`; `log`: they are log-probabilities.

        Temporary memory is bounded, whatever `B`.

        Raises:
            TypeError: `samples` are not floating.
            ValueError: the shape is wrong, or a row is not a distribution.
        """
        given = as_tensor("samples", samples)
        if given.dim() != 3 or given.shape[0] == 0 or given.shape[2] < 2:
            raise ValueError(
                f"samples has shape {tuple(given.shape)}, expected (S, B, C) with S >= 1 and C >= 2: stack the (B, C) "
                "probabilities of each pass or member with torch.stack(passes)"
            )
        num_samples, num_inputs, num_classes = given.shape
        size = max(1, _CHUNK_NUMBERS // (num_samples * num_classes))
        chunks = []
        for start in range(0, max(1, num_inputs), size):
            chunk = given[:, start : start + size]
            if log:
                passes = as_distributions("samples.exp()", chunk.exp())
                log_passes = as_log_probs("samples", chunk, passes)
                passes = log_passes.exp()
            else:
                passes = as_distributions("samples", chunk)
                log_passes = exact_log(passes)
            chunks.append(_summary(passes, log_passes))
        return cls(num_samples, *(torch.cat(part) for part in zip(*chunks, strict=True)))

    @classmethod
    def of_passes(cls, log_probs: Tensor, logits: Tensor | None = None) -> "Mixture":
        """The mixture of log-probabilities `(S, B, C)` in at least float32, without any check.

        Args:
            log_probs: `(S, B, C)`.
            logits: `(B, C)`, the mean of the logits that they were made of.
        """
        return cls(log_probs.shape[0], *_summary(log_probs.exp(), log_probs), logits)

    def merged(self, other: "Mixture") -> "Mixture":
        """The mixture of the distributions of both.

        Their variance is the mean of both plus the variance of both means (Chan et al. 1983).
        """
        num_samples = self.num_samples + other.num_samples
        own, others = self.num_samples / num_samples, other.num_samples / num_samples
        shift = other.probs - self.probs
        variance = own * self.class_std.square() + others * other.class_std.square() + own * others * shift.square()
        return Mixture(
            num_samples,
            self.probs + others * shift,  # and not a weighted sum, which rounds where both are the same
            torch.logaddexp(self.log_probs + math.log(own), other.log_probs + math.log(others)),
            own * self.expected_entropy + others * other.expected_entropy,
            variance.sqrt(),
            None if self.logits is None or other.logits is None else self.logits.lerp(other.logits, others),
        )


def _summary(passes: Tensor, log_passes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean `(B, C)` of passes `(S, B, C)`, its logarithm, their expected entropy `(B,)` and spread `(B, C)`."""
    shifts = passes - passes[0]  # 0 where all are the same, of whom a mean may round
    shift = shifts.mean(dim=0)
    mean = passes[0] + shift
    mean_log = mean.log()
    # Where the mean is exact, its logarithm is, at a fifth of the cost.
    if mean.shape[0] > 0 and float(mean.amin()) < _TINY:
        mean_log = torch.logsumexp(log_passes, dim=0) - math.log(len(passes))
    std = shifts.sub_(shift).square_().mean(dim=0).sqrt()
    return mean, mean_log, entropy(passes, log_passes).mean(dim=0), std
