"""When a learning-rate schedule advances: after each step of the optimizer, or after each epoch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

MakeScheduler = Callable[[Optimizer], LRScheduler]
Every = Literal["epoch", "step"]


@dataclass(frozen=True)
class CosineSchedule:
    """Half a cosine over the epochs of a run, from the full rate in the first to almost none in the last.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5.
    """

    epochs: int

    def __call__(self, optimizer: Optimizer) -> LRScheduler:
        """Answers the schedule of an optimizer."""
        return CosineAnnealingLR(optimizer, self.epochs)


class Schedule:
    """The learning-rate schedule of one optimizer.

    Args:
        make: Makes it of the optimizer; None is a constant rate.
        every: ``"step"``, as warm-up and OneCycle need, or ``"epoch"``. ReduceLROnPlateau goes by what an epoch came
            to: the validation NLL, or without validation data the training loss.
        optimizer: Whose rate it sets.

    Raises:
        ValueError: A ReduceLROnPlateau is to advance after each step.
    """

    def __init__(self, make: MakeScheduler | None, every: Every, optimizer: Optimizer) -> None:
        self.scheduler = None if make is None else make(optimizer)
        self._every = every
        if every == "step" and isinstance(self.scheduler, ReduceLROnPlateau):
            raise ValueError("schedule_every='step' and a ReduceLROnPlateau, which goes by epochs: leave it out.")

    def after_step(self) -> None:
        """Advances a schedule of steps."""
        if self.scheduler is not None and self._every == "step":
            self.scheduler.step()

    def after_epoch(self, measured: float) -> None:
        """Advances a schedule of epochs; ``measured`` is what a plateau is told by."""
        if self.scheduler is None or self._every == "step":
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            plateau: Any = self.scheduler
            plateau.step(measured)
        else:
            self.scheduler.step()
