"""When a learning-rate schedule advances: after each step of the optimizer, or after each epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

MakeScheduler = Callable[[Optimizer], LRScheduler]
Every = Literal["epoch", "step"]

_RISING = 0.1  # of a run


@dataclass(frozen=True)
class CosineSchedule:
    """A rate that rises over the first tenth of a run, and falls by half a cosine to almost none at its last step.

    Both are for the few epochs in which a pretrained model is fine-tuned. A full rate at the first steps, when Adam has
    seen no gradients and the classifier nothing at all, takes it apart; Mosbach et al., "On the Stability of
    Fine-tuning BERT", ICLR 2021, section 6, warm up for a tenth, too. And a rate that falls from epoch to epoch would
    still be a quarter in the last of three. Source of the cosine: Loshchilov and Hutter, "SGDR: Stochastic Gradient
    Descent with Warm Restarts", ICLR 2017, equation 5, which counts batches.
    """

    epochs: int


class RisingAndFalling(LambdaLR):
    """The CosineSchedule of one optimizer.

    How far the run is it counts in epochs, and within an epoch by the steps that the data say it has; from the second
    epoch on by those that the one before had. So it ends where the last epoch does, whatever a stream says of its
    length, and where a run goes on with batches of another size. Of data that say nothing the first epoch has the full
    rate.

    Args:
        optimizer: Whose rate it sets.
        epochs: Of the run.
        steps_per_epoch: Of the optimizer; None where nobody knows.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int | None) -> None:
        self.epochs, self.epochs_done = epochs, 0
        self.steps_per_epoch, self.steps_done = steps_per_epoch, 0  # of this epoch
        self.rising = _RISING if steps_per_epoch else 0.0
        super().__init__(optimizer, lambda _: self._share())

    def after_step(self) -> None:
        """Takes note of a step of the optimizer, and sets the rate of the next."""
        self.steps_done += 1
        self.step()

    def after_epoch(self) -> None:
        """Takes note of an epoch's end, and sets the rate of the next step."""
        self.epochs_done += 1
        self.steps_per_epoch, self.steps_done = self.steps_done, 0
        self.step()

    def _share(self) -> float:
        steps = self.steps_per_epoch or 0
        done = (self.epochs_done + min(self.steps_done / steps, 1.0) if steps else self.epochs_done) / self.epochs
        next_done = done + 1 / (steps * self.epochs) if steps else done
        if next_done < self.rising:
            return next_done / self.rising
        return (1 + math.cos(math.pi * min(max(done - self.rising, 0.0) / (1 - self.rising), 1.0))) / 2


class Schedule:
    """The learning-rate schedule of one optimizer.

    Args:
        make: Makes it of the optimizer; None is a constant rate.
        every: When a schedule of the user's own advances: ``"step"``, as warm-up and OneCycle need, or ``"epoch"``.
            ReduceLROnPlateau goes by what an epoch came to: the validation NLL, or without validation data the training
            loss.
        optimizer: Whose rate it sets.
        steps_per_epoch: Of the optimizer; None where nobody knows.

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
            self.scheduler = RisingAndFalling(optimizer, make.epochs, steps_per_epoch)
        elif make is not None:
            self.scheduler = make(optimizer)
        self._every = every
        if every == "step" and isinstance(self.scheduler, ReduceLROnPlateau):
            raise ValueError("schedule_every='step' and a ReduceLROnPlateau, which goes by epochs: leave it out.")

    def after_step(self) -> None:
        """Advances a schedule of steps."""
        if isinstance(self.scheduler, RisingAndFalling):
            self.scheduler.after_step()
        elif self.scheduler is not None and self._every == "step":
            self.scheduler.step()

    def after_epoch(self, measured: float) -> None:
        """Advances a schedule of epochs; ``measured`` is what a plateau is told by."""
        if isinstance(self.scheduler, RisingAndFalling):
            self.scheduler.after_epoch()
        elif self.scheduler is None or self._every == "step":
            return
        elif isinstance(self.scheduler, ReduceLROnPlateau):
            plateau: Any = self.scheduler
            plateau.step(measured)
        else:
            self.scheduler.step()


def steps_per_epoch(batches: Any, gradient_accumulation_steps: int) -> int | None:
    """Answers the optimizer's steps in an epoch of these batches; None if they do not say how many they are."""
    num_batches = length_of(batches)
    return None if not num_batches else math.ceil(num_batches / gradient_accumulation_steps)


def length_of(data: Any) -> int | None:
    """Answers the length that data say they have; None where they say none, as streams and some samplers."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
