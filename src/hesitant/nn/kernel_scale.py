"""The scale of a kernel, and when it is decided."""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.nn.random_features import median_kernel_scale

UNIT = 2.0**-52  # of the logarithm, as it is kept
_FOLLOWED = 64  # inputs of a step: a moving average over a hundred steps needs no more of each
_RATE = 0.02  # of the moving average


class KernelScale(nn.Module):
    """The squared length scale of a kernel: a number, or what the median heuristic makes of the training data.

    ``"median"`` is that of the first training data, for good. ``"running_median"`` begins with it and grows with the
    inputs: it is the largest that a moving average of the median's logarithm over training batches has been. Where the
    network's features grow as a whole, as in fine-tuning, the random features of the scaled inputs stay as they are.
    It does not shrink with them. A network whose steps are too large makes its features smaller or more alike, and with
    them its steps; a scale that went along would undo that, and the features would fall to nothing.

    It is kept as an integer (its logarithm, in units of 2^-52). Averages of models (SWA, EMA) blend floating buffers
    but copy integers: so a copy that was made before the scale was decided has the model's own after its next update,
    and no blend of two. For the same reason what is learned is a change of the logarithm, which begins at 0.

    Until it is decided, the scale is the number of features, a stand-in that fits features of unit variance. An
    evaluation never decides; the layer around says which forward passes are training.

    Args:
        scale: A positive number, ``"median"`` or ``"running_median"``.
        in_features: D, the stand-in.
        trainable: Whether the optimizer learns a factor of it.
        device: Where it is kept.
        dtype: That of the learned change.
    """

    #: The buffers that move while it follows.
    FOLLOWING = ("code", "average_code")

    code: Tensor
    average_code: Tensor
    decided: Tensor

    def __init__(
        self,
        scale: float | Literal["median", "running_median"],
        in_features: int,
        *,
        trainable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        number = float(in_features) if isinstance(scale, str) else float(scale)
        code = torch.tensor(round(math.log(number) / UNIT), dtype=torch.int64, device=device)
        self.register_buffer("code", code)
        self.register_buffer("average_code", code.clone())
        self.register_buffer("decided", torch.tensor(not isinstance(scale, str), dtype=torch.uint8, device=device))
        self.log_change = nn.Parameter(torch.zeros((), device=device, dtype=dtype)) if trainable else None
        #: Whether the buffers are to be asked: False spares a device the question once it has said yes.
        self.is_open = isinstance(scale, str)
        self.follows = scale == "running_median"

    def log(self, dtype: torch.dtype) -> Tensor:
        """Answers the logarithm of the scale, ``()``."""
        log = self.code.to(dtype) * UNIT
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
        self.code.fill_(round(total / voters / UNIT))
        self.average_code.copy_(self.code)
        self.decided.fill_(1)
        self.is_open = False
        return True

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Moves the average towards the median of training inputs ``(..., D)`` of now, and lets a decided scale grow.

        In a run of several workers all call this, and agree. Nothing waits for a device.
        """
        x = x.detach().reshape(-1, x.shape[-1])
        x = x[:: max(1, len(x) // _FOLLOWED)][:_FOLLOWED].float()
        if len(x) < 2:
            return
        x = x - x.mean(0)
        squares = x.square().sum(1)
        rows, columns = torch.triu_indices(len(x), len(x), 1, device=x.device)
        distances = squares[rows] + squares[columns] - 2 * (x @ x.T)[rows, columns]  # pdist knows no vmap
        log = distances.clamp(min=0).median().log().double()
        change = log - self.average_code * UNIT
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(change)
            change /= dist.get_world_size()
        # Inputs that are all alike, or not finite, say nothing.
        change = torch.where(torch.isfinite(change), change, torch.zeros_like(change))
        self.average_code += (change * (_RATE / UNIT)).round().long()
        self.code.copy_(torch.maximum(self.code, self.average_code))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_open = True  # asked when a training forward comes
