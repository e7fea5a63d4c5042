"""What tells one training run from another: a checkpoint goes on in the run that it was made in, and in no other."""

import zlib
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from hesitant.training.schedule import CosineSchedule, MakeScheduler, Schedule, length_of
from hesitant.training.settings import Settings


def run_identity(
    model: nn.Module,
    settings: Settings,
    loader: "DataLoader[Any]",
    optimizer: Optimizer,
    schedule: Schedule,
    num_workers: int,
) -> dict[str, str | int | float | None]:
    """Answers what identifies a run, by the names that an error calls it.

    More epochs do not make it another one, unless its learning rate falls over all of them.
    """
    weights = [(name, tuple(weight.shape), str(weight.dtype)) for name, weight in model.named_parameters()]
    plain = {name: value for name, value in optimizer.defaults.items() if isinstance(value, (int, float, str))}
    return {
        "method": type(model).__name__,
        "weights": f"{len(weights)} of digest {zlib.crc32(repr(weights).encode()):08x}",
        "number of inputs": length_of(loader.dataset),
        "batch_size": getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size,
        "seed": settings.seed,
        "optimizer": type(optimizer).__name__,
        **{f"optimizer's {name}": value for name, value in sorted(plain.items())},
        "scheduler": _name_of(settings.make_scheduler, schedule),
        "schedule_every": None if isinstance(settings.make_scheduler, CosineSchedule) else settings.schedule_every,
        "loss": None if settings.loss is None else getattr(settings.loss, "__qualname__", type(settings.loss).__name__),
        "mixed_precision": settings.mixed_precision,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "max_grad_norm": settings.max_grad_norm,
        "patience": settings.patience,
        "number of workers": num_workers,
    }


def _name_of(make_scheduler: MakeScheduler | CosineSchedule | None, schedule: Schedule) -> str | None:
    if isinstance(make_scheduler, CosineSchedule):
        return f"a rise and a cosine over {make_scheduler.epochs} epochs"
    return None if schedule.scheduler is None else type(schedule.scheduler).__name__
