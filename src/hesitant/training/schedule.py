"""When a learning-rate schedule advances: after each step of the optimizer, or after each epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

MakeScheduler = Callable[[Optimizer], LRScheduler]
Every = Literal["epoch", "step"]


@dataclass(frozen=True)
class CosineSchedule:
    """Half a cosine over a run, from the full rate at its first step to almost none at its last.

    A run of few epochs, as those that fine-tune a pretrained model are, is over before a rate that falls from epoch to
    epoch has fallen: the last of three would have a quarter of it. Source: Loshchilov and Hutter, "SGDR: Stochastic
    Gradient Descent with Warm Restarts", ICLR 2017, equation 5, which counts batches, too.
    """

    epochs: int

    def of(self, optimizer: Optimizer, steps_per_epoch: int | None) -> tuple[LRScheduler, Every]:
        """Answers the schedule of an optimizer, and when it advances: where nobody knows of steps, by epochs."""
        total = self.epochs * (steps_per_epoch or 1)
        schedule = LambdaLR(optimizer, lambda done: (1 + math.cos(math.pi * min(done / total, 1.0))) / 2)
        return schedule, "epoch" if steps_per_epoch is None else "step"


class Schedule:
    """The learning-rate schedule of one optimizer.

    Args:
        make: Makes it of the optimizer; None is a constant rate.
        every: ``"step"``, as warm-up and OneCycle need, or ``"epoch"``. ReduceLROnPlateau goes by what an epoch came
            to: the validation NLL, or without validation data the training loss. A CosineSchedule goes by steps.
        optimizer: Whose rate it sets.
        steps_per_epoch: Of the optimizer; None where the data do not say how many they are.

    Raises:
        ValueError: A ReduceLROnPlateau is to advance after each step.
    """

    def __init__(
        self,
        make: MakeScheduler | CosineSchedule | None,
        every: Every,
        optimizer: Optimizer,
        steps_per_epoch: int | None,
    ) -> None:
        self.scheduler: LRScheduler | None = None
        if isinstance(make, CosineSchedule):
            self.scheduler, every = make.of(optimizer, steps_per_epoch)
        elif make is not None:
            self.scheduler = make(optimizer)
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


def steps_per_epoch(loader: "DataLoader[Any]", num_workers: int, gradient_accumulation_steps: int) -> int | None:
    """Answers the optimizer's steps in an epoch of each worker; None if the loader does not say how many batches."""
    try:
        num_batches = len(loader)
    except TypeError:  # of a stream
        return None
    return max(1, math.ceil(math.ceil(num_batches / num_workers) / gradient_accumulation_steps))
