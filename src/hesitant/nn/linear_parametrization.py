"""Output weights of random features that learn at the rate of the Linear in whose place they stand."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.nn.kernel_scale import UNIT


class LinearParametrization(nn.Module):
    r"""Makes output weights ``w`` of what an optimizer learns, ``beta``, so that steps are as large as a Linear's.

    A step of SGD on beta changes the logits at x' by ``lr k(x, x')`` times the error at x. For a Linear,
    ``k(x, x') = x^T x' + 1``; for features whose norm is about 1 it is at most 1, and learning is as many times slower
    as there are inputs. Worse, all features have the large mean ``m = E phi(x)`` in common: it is learned a hundred
    times as fast as what tells inputs apart, and sets the highest rate that does not diverge. With
    ``u = m / |m|``,

    ``w = s (beta - (1 - r) u u^T beta)``, ``s^2 = max(D, tr Var(x)) / tr Var(phi)``, ``(s r)^2 = 1 / |m|^2``

    the inputs' spread and the bias of the Linear are both matched, on average over the training data; inputs of less
    than unit variance count as of unit variance, for a Linear learns too slowly from them. Any w is made by some beta:
    neither the model nor its posterior over w is another one, the path to the optimum alone. Source: the tangent kernel
    of a step, Jacot et al., "Neural Tangent Kernel", NeurIPS 2018, section 4.

    Until training data has come, s is that of features of unit variance at the median heuristic's scale, and r is 1.
    What is decided is kept in integers, as :class:`~hesitant.nn.kernel_scale.KernelScale` does and for its reason.

    Args:
        in_features: D, the width of the Linear's inputs.
        num_features: M, of the random features.
        device: Where it is kept.
    """

    scale_code: Tensor
    damping_code: Tensor
    direction_code: Tensor
    decided: Tensor

    def __init__(self, in_features: int, num_features: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        stand_in = math.log(in_features / (1 - math.exp(-0.5))) / 2
        self.register_buffer("scale_code", torch.tensor(round(stand_in / UNIT), dtype=torch.int64, device=device))
        self.register_buffer("damping_code", torch.zeros((), dtype=torch.int64, device=device))  # of 1 - r
        self.register_buffer("direction_code", torch.zeros(num_features, dtype=torch.int64, device=device))  # of u
        self.register_buffer("decided", torch.zeros((), dtype=torch.uint8, device=device))
        #: Whether the buffers are to be asked: False spares a device the question once it has said yes.
        self.is_open = True

    def forward(self, beta: Tensor) -> Tensor:
        """Answers the output weights w, ``(M, C)``, of beta ``(M, C)``."""
        scale, damping, direction = self._numbers(beta.dtype)
        common = (direction @ beta) * -damping  # (C,)
        return torch.addr(beta, direction, common) * scale

    def product(self, features: Tensor, beta: Tensor) -> Tensor:
        """Answers ``features w``, ``(B, C)``, of features ``(B, M)`` and beta ``(M, C)``, without making w.

        The map from beta to w is symmetric, and features are fewer than weights where there are many classes.
        """
        scale, damping, direction = self._numbers(beta.dtype)
        common = (features @ direction) * -damping  # (B,)
        return (torch.addr(features, common, direction) @ beta) * scale

    def inverse(self, weights: Tensor) -> Tensor:
        """Answers the beta ``(M, C)`` of which :meth:`forward` makes these output weights."""
        scale, damping, direction = self._numbers(weights.dtype)
        common = (direction @ weights) * (damping / (1 - damping))
        return torch.addr(weights, direction, common) / scale

    def is_decided(self) -> bool:
        """Answers whether the scale is no stand-in any more."""
        if self.is_open and bool(self.decided):
            self.is_open = False
        return not self.is_open

    @torch.no_grad()
    def decide(self, x: Tensor, features: Tensor) -> bool:
        """Decides by training inputs ``(..., D)`` and their features ``(..., M)``, if it is not yet; whether it is now.

        Inputs that are all alike decide nothing. In a run of several workers all call this, and agree.
        """
        if self.is_decided():
            return True
        x, features = (each.reshape(-1, each.shape[-1]).double() for each in (x, features))
        numbers = torch.stack([x.new_tensor(len(x)), x.square().sum(), features.square().sum()])
        sums = torch.cat([features.sum(0), x.sum(0), numbers])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        num_features = features.shape[1]
        count, x_squares, feature_squares = sums[-3:].tolist()
        if count < 2:
            return False
        mean, x_mean = sums[:num_features] / count, sums[num_features:-3] / count
        mean_square = float(mean.square().sum())
        spread = x_squares / count - float(x_mean.square().sum())
        feature_spread = feature_squares / count - mean_square
        if not (spread > 1e-12 * x_squares / count and feature_spread > 1e-12 * feature_squares / count):
            return False
        scale = math.sqrt(max(spread, float(x.shape[1])) / feature_spread)
        common = mean_square - feature_spread / (count - 1)  # without what the noise of so few inputs adds
        rate = min(1.0, 1 / (scale * math.sqrt(common))) if common > 0 else 1.0
        self.scale_code.fill_(round(math.log(scale) / UNIT))
        self.damping_code.fill_(round((1 - rate) / UNIT))
        self.direction_code.copy_((mean / mean.norm() / UNIT).round().long())
        self.decided.fill_(1)
        self.is_open = False
        return True

    def _numbers(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Answers s ``()``, 1 - r ``()`` and u ``(M,)``."""
        scale = torch.exp(self.scale_code.to(torch.float64) * UNIT).to(dtype)
        return scale, self.damping_code.to(dtype) * UNIT, self.direction_code.to(dtype) * UNIT

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_open = True  # asked when a training forward comes
