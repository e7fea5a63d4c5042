"""The scale of a kernel, and when it is decided."""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.nn.random_features import median_kernel_scale

_UNIT = 2.0**-52  # of the logarithm, as it is kept


class KernelScale(nn.Module):
    """The squared length scale of a kernel: a number, or what the median heuristic makes of the first training data.

    It is kept as an integer (its logarithm, in units of 2^-52). Averages of models (SWA, EMA) blend floating buffers
    but copy integers: so a copy that was made before the scale was decided has the model's own after its next update,
    and no blend of two. For the same reason what is learned is a change of the logarithm, which begins at 0.

    Until it is decided, the scale is the number of features, a stand-in that fits features of unit variance. An
    evaluation never decides; the layer around says which forward passes are training.

    Args:
        scale: A positive number, or ``"median"``.
        in_features: D, the stand-in.
        trainable: Whether the optimizer learns a factor of it.
        device: Where it is kept.
        dtype: That of the learned change.
    """

    code: Tensor
    decided: Tensor

    def __init__(
        self,
        scale: float | Literal["median"],
        in_features: int,
        *,
        trainable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        number = float(in_features) if scale == "median" else float(scale)
        code = torch.tensor(round(math.log(number) / _UNIT), dtype=torch.int64, device=device)
        self.register_buffer("code", code)
        self.register_buffer("decided", torch.tensor(scale != "median", dtype=torch.uint8, device=device))
        self.log_change = nn.Parameter(torch.zeros((), device=device, dtype=dtype)) if trainable else None
        #: Whether the buffers are to be asked: False spares a device the question once it has said yes.
        self.is_open = scale == "median"

    def log(self, dtype: torch.dtype) -> Tensor:
        """Answers the logarithm of the scale, ``()``."""
        log = self.code.to(dtype) * _UNIT
        return log if self.log_change is None else log + self.log_change.to(dtype)

    def is_decided(self) -> bool:
        """Answers whether the scale is no stand-in any more."""
        if self.is_open and bool(self.decided):
            self.is_open = False
        return not self.is_open

    @torch.no_grad()
    def decide(self, x: Tensor) -> bool:
        """Decides the scale by training inputs ``(..., D)``, if it is not yet; answers whether it is now.

        Inputs that are all alike, or one alone, decide nothing. In a run of several workers all call this, and agree.
        """
        if self.is_decided():
            return True
        median = median_kernel_scale(x)
        vote = torch.zeros(2, dtype=torch.float64, device=x.device)
        if median is not None:
            vote[0], vote[1] = median.log(), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(vote)
        total, voters = vote.tolist()
        if voters == 0:
            return False
        self.code.fill_(round(total / voters / _UNIT))
        self.decided.fill_(1)
        self.is_open = False
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_open = True  # asked when a training forward comes
