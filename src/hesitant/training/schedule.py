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

_RISING = 0.1  # of all steps


@dataclass(frozen=True)
class CosineSchedule:
    """A rate that rises over the first tenth of a run's steps, and falls by half a cosine to almost none at the last.

    Both are for the few epochs in which a pretrained model is fine-tuned. A full rate at the first steps, when Adam has
    seen no gradients and the classifier nothing at all, takes it apart; Mosbach et al., "On the Stability of
    Fine-tuning BERT", ICLR 2021, section 6, warm up for a tenth, too. And a rate that falls from epoch to epoch would
    still be a quarter in the last of three. Source of the cosine: Loshchilov and Hutter, "SGDR: Stochastic Gradient
    Descent with Warm Restarts", ICLR 2017, equation 5, which counts batches.
    """

    epochs: int

    def of(self, optimizer: Optimizer, steps_per_epoch: int | None) -> tuple[LRScheduler, Every]:
        """Answers the schedule of an optimizer, and when it advances: where nobody knows of steps, by epochs.

        By epochs it only falls.
        """
        total = self.epochs * (steps_per_epoch or 1)
        rising = 0.0 if steps_per_epoch is None else _RISING * total

        def share(done: int) -> float:
            if done + 1 < rising:
                return (done + 1) / rising
            return (1 + math.cos(math.pi * min(max(done - rising, 0.0) / (total - rising), 1.0))) / 2

        return LambdaLR(optimizer, share), "epoch" if steps_per_epoch is None else "step"


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
