"""Checkpoints of members that train as one: those that each would have by itself, next to each other."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hesitant.files import replacing
from hesitant.training.checkpoint import load_checkpoint, save_checkpoint
from hesitant.training.progress import Progress
from hesitant.training.run_identity import run_identity
from hesitant.training.schedule import Schedule
from hesitant.training.settings import Settings
from hesitant.training.vectorized.member_batches import MemberBatches
from hesitant.training.vectorized.stack import MemberStack
from hesitant.training.vectorized.weights import CannotStackError


class MemberCheckpoints:
    """Where the members' checkpoints are, and what identifies the run of each.

    Args:
        members: The members.
        each: Their settings, each with a path of its own.
        batches: Their data.
    """

    def __init__(self, members: Sequence[nn.Module], each: Sequence[Settings], batches: MemberBatches) -> None:
        self._members, self._batches = members, batches
        self._paths = [cast(Path, own.checkpoint) for own in each]
        self._identities = [self._identity(member, own) for member, own in zip(members, each, strict=True)]

    def save(self, stack: MemberStack, progress: Sequence[Progress], best: Sequence[dict[str, Tensor] | None]) -> None:
        """Writes all of them before the first takes the place of an older one."""
        with ExitStack() as files:
            for index, path in enumerate(self._paths):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_checkpoint(
                    files.enter_context(replacing(path)),
                    progress[index],
                    self._members[index],
                    cast(Any, _State(stack.weights.optimizer_state(stack.optimizer, index))),
                    self._batches.generators[index],
                    best[index],
                    stack.schedule.scheduler,
                    random_states={"cpu": self._batches.random_states[index].unsqueeze(0)},
                    run=self._identities[index],
                )

    def load(self) -> "Loaded | None":
        """Goes back to the checkpoints, if there are any.

        Raises:
            CannotStackError: Some members have one and some have none.
            ValueError: One is damaged, or of another run.
        """
        if not any(path.exists() for path in self._paths):
            return None
        if not all(path.exists() for path in self._paths):
            raise CannotStackError("some members have a checkpoint and some have none")
        loaded = Loaded()
        for index, (path, member) in enumerate(zip(self._paths, self._members, strict=True)):
            optimizer, scheduler = _State({}), _State({})
            progress, best = load_checkpoint(
                path,
                member,
                cast(Any, optimizer),
                self._batches.generators[index],
                scheduler,
                run=self._identities[index],
            )
            if progress.epoch > max((others.epoch for others in loaded.progress), default=-1):
                loaded.scheduler = scheduler  # of who has stopped early it stands still
            self._batches.random_states[index] = torch.get_rng_state()
            loaded.progress.append(progress)
            loaded.best.append(best)
            loaded.optimizers.append(optimizer.state)
        return loaded

    def _identity(self, member: nn.Module, own: Settings) -> Any:
        """Answers what identifies the run of one member, as if it trained alone."""
        optimizer = own.make_optimizer([p for p in member.parameters() if p.requires_grad])
        steps = self._batches.steps_per_epoch()
        schedule = Schedule(own.make_scheduler, own.schedule_every, optimizer, steps)
        return run_identity(member, own, self._batches.loader(torch.Generator()), optimizer, schedule, 1)


class Loaded:
    """What the members' checkpoints hold beside their weights."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.best: list[dict[str, Tensor] | None] = []
        self.optimizers: list[dict[str, Any]] = []
        self.scheduler = _State({})

    def give_to(self, stack: MemberStack) -> None:
        """Puts the optimizer and the schedule back to where they were."""
        stack.weights.load_optimizer_states(stack.optimizer, self.optimizers)
        if stack.schedule.scheduler is not None:
            stack.schedule.scheduler.load_state_dict(self.scheduler.state)


class _State:
    """Stands for a member's own optimizer or schedule where a checkpoint is written or read."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state
