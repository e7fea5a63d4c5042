"""Trains the members of one architecture together: their stack, data, validation and checkpoints."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from hesitant.checkpoint import Progress, load_checkpoint, save_checkpoint
from hesitant.ensemble_history import EnsembleHistory, merged
from hesitant.inputs import Batch, Order, Rows, as_batch, as_targets, member_loader, rows_of, tensors_of
from hesitant.member_stack import CannotStackError, MemberStack, member_losses, rows_for_all
from hesitant.methods import SNGP
from hesitant.methods.member_masks import Drawing, MemberMasks, drawing_from
from hesitant.run_identity import run_identity
from hesitant.schedule import Schedule
from hesitant.stacking_rules import probed
from hesitant.training_run import (
    History,
    fit_covariance,
    progress_bar,
    seeded,
    validation_nll,
    weights_of,
)
from hesitant.training_settings import Settings

_DATA_ON_DEVICE = 2**30  # bytes of training data that are kept on an accelerator


class MembersTogether:
    """The members of one architecture and what trains them."""

    def __init__(
        self, members: list[nn.Module], seeds: list[int], data: Any, settings: Settings, device: torch.device
    ) -> None:
        self.members, self.seeds, self.settings, self.device = members, seeds, settings, device
        self.data = data
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rows = rows_of(data)
        self.loaders = [] if rows is not None else [self._loader(generator) for generator in self.generators]
        if rows is not None:
            whole = self._checked(rows.whole)
            size = sum(tensor.nbytes for tensor in tensors_of(whole))
            rows = Rows(whole.to(device) if size <= _DATA_ON_DEVICE else whole, rows.length)
        self.rows = rows
        # What a Dataset draws from the global generator, each member's draws for itself.
        self.random_states = [_seeded_state(seed) for seed in seeds]
        self.identities: list[Any] = []
        self.progress = [Progress() for _ in members]
        self.best: list[dict[str, Tensor] | None] = [None for _ in members]

    def train(self) -> EnsembleHistory:
        """Trains all, if a rehearsal shows that they can be trained together."""
        settings = self.settings
        for member in self.members:
            member.to(self.device).train()
        firsts = []
        for seed in self.seeds:
            with seeded(seed, self.device):
                firsts.append(
                    self._checked(first_batch(self._loader(torch.Generator().manual_seed(seed)), self.device))
                )
        _keep_freed_blocks()
        # The other kernels of attention vmap would run member by member.
        with sdpa_kernel(SDPBackend.MATH), ExitStack() as leaving:
            drawing, why = probed(self.members[0], firsts[0], settings)
            if drawing is Drawing.OWN or why is not None:
                raise CannotStackError(why or "the model draws random numbers in a way that is not known")
            saved = self._load()
            for index, (member, batch) in enumerate(zip(self.members, firsts, strict=True)):
                self._first_forward(member, batch, drawing, self.seeds[index])
            stack = self._stack(drawing, firsts)
            if saved is not None:
                stack.load_optimizer_states(saved[0])
                if stack.schedule.scheduler is not None:
                    stack.schedule.scheduler.load_state_dict(saved[1])
            orders = [] if self.rows is None else [Order(self.rows.length, g) for g in self.generators]
            stack.attach()
            leaving.callback(stack.release)
            done = max(progress.epoch for progress in self.progress)
            advance = leaving.enter_context(progress_bar(settings.progress, settings.epochs, done, "training"))
            for number in range(done, settings.epochs):
                if all(self._stopped(index) for index in range(len(self.members))):
                    break
                began = time.perf_counter()
                losses = member_losses(stack.epoch(number, self._batches(orders)), self._stopped)
                self._finish_epoch(stack, number, losses, time.perf_counter() - began)
                self._save(stack)
                advance(self._last(number))
        began = time.perf_counter()
        for member, best in zip(self.members, self.best, strict=True):
            if settings.patience is not None and best is not None:
                member.load_state_dict(best)
            fit_covariance(member, self.data, settings.batch_size)
        seconds = max(progress.seconds for progress in self.progress) + time.perf_counter() - began
        histories = [History(p.train_loss, p.validation_nll, p.best_epoch, seconds) for p in self.progress]
        return merged(histories, None, seconds)

    # ---------------------------------------------------------------- inside

    def _loader(self, generator: torch.Generator) -> DataLoader[Any]:
        return member_loader(self.data, self.settings.batch_size, generator)

    def _first_forward(self, member: nn.Module, batch: Batch, drawing: Drawing, seed: int) -> None:
        """Runs the first forward pass of an SNGP, which sets its kernel scale and its covariance's state."""
        if isinstance(member, SNGP):
            with drawing_from(MemberMasks([(seed, 0)], self.device, together=False), drawing):
                member(*batch.args, **batch.kwargs)

    def _stack(self, drawing: Drawing, firsts: list[Batch]) -> MemberStack:
        try:
            stack = MemberStack(self.members, self.seeds, drawing, self.settings)
            stack.rehearse(firsts)
        except CannotStackError:
            raise
        except Exception as error:  # an error of the model's own comes again, one by one
            raise CannotStackError(f"{type(error).__name__}: {error}") from error
        return stack

    def _batches(self, orders: list[Order]) -> Iterator[Any]:
        if self.rows is not None:
            return rows_for_all(self.rows, orders, self.settings.batch_size, self.device)
        return self._loaded()

    def _loaded(self) -> Iterator[list[Batch]]:
        """Gives the members' batches, each drawn with the member's own global random state."""
        iterators: list[Iterator[Any]] = []
        for index, loader in enumerate(self.loaders):
            with self._random_state(index):
                iterators.append(iter(loader))
        while True:
            items = []
            for index, iterator in enumerate(iterators):
                with self._random_state(index):
                    items.append(next(iterator, None))
            if any(item is None for item in items):
                return
            yield [self._checked(as_batch(item)).to(self.device) for item in items]

    def _checked(self, batch: Batch) -> Batch:
        """Answers a batch with targets as the default loss has them."""
        return batch if self.settings.loss is not None else replace(batch, targets=as_targets(batch.targets))

    @contextmanager
    def _random_state(self, index: int) -> Iterator[None]:
        torch.set_rng_state(self.random_states[index])
        yield
        self.random_states[index] = torch.get_rng_state()

    def _stopped(self, index: int) -> bool:
        patience = self.settings.patience
        return patience is not None and self.progress[index].has_waited(patience)

    def _finish_epoch(self, stack: MemberStack, number: int, losses: list[float], seconds: float) -> None:
        began = time.perf_counter()
        settings = self.settings
        going = [index for index in range(len(self.members)) if not self._stopped(index)]
        for index in going:
            progress = self.progress[index]
            progress.train_loss.append(losses[index])
            progress.epoch = number + 1
            if settings.validation_data is not None:
                nll = validation_nll(self.members[index], self.data, settings)
                progress.validation_nll.append(nll)
                if nll <= min(progress.validation_nll):
                    progress.best_epoch = progress.epoch
                    self.best[index] = weights_of(self.members[index]) if settings.patience is not None else None
        stack.schedule.after_epoch(sum(losses) / len(losses))
        for index in going:
            self.progress[index].seconds += seconds + time.perf_counter() - began

    def _last(self, number: int) -> Progress:
        """Answers the means of an epoch, to show."""
        going = [progress for progress in self.progress if progress.epoch == number + 1]
        losses = [progress.train_loss[-1] for progress in going]
        nlls = [progress.validation_nll[-1] for progress in going if progress.validation_nll]
        return Progress(number + 1, [sum(losses) / len(losses)], [sum(nlls) / len(nlls)] if nlls else [])

    def _save(self, stack: MemberStack) -> None:
        """Writes the members' checkpoints, all before the first takes the place of an older one."""
        if self.settings.checkpoint is None:
            return
        paths = [checkpoint_of(self.settings, index) for index in range(len(self.members))]
        for index, path in enumerate(paths):
            assert path is not None
            save_checkpoint(
                path.with_name(path.name + ".next"),
                self.progress[index],
                self.members[index],
                _OptimizerState(stack.optimizer_state(index)),  # type: ignore[arg-type]
                self.generators[index],
                self.best[index],
                stack.schedule.scheduler,
                random_states={"cpu": self.random_states[index].unsqueeze(0)},
                run=self.identities[index],
            )
        for path in paths:
            assert path is not None
            os.replace(path.with_name(path.name + ".next"), path)

    def _load(self) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
        """Goes back to the members' checkpoints; answers the state of their optimizers, and of the schedule."""
        if self.settings.checkpoint is None:
            return None
        self.identities = [self._identity(index) for index in range(len(self.members))]
        paths = [path for index in range(len(self.members)) if (path := checkpoint_of(self.settings, index))]
        if not any(path.exists() for path in paths):
            return None
        if not all(path.exists() for path in paths):
            raise CannotStackError("some members have a checkpoint and some have none")
        states = []
        scheduler = _SchedulerState()
        for index, path in enumerate(paths):
            optimizer = _OptimizerState({})
            self.progress[index], self.best[index] = load_checkpoint(
                path,
                self.members[index],
                optimizer,  # type: ignore[arg-type]
                self.generators[index],
                scheduler,
                run=self.identities[index],
            )
            self.random_states[index] = torch.get_rng_state()
            states.append(optimizer.state)
        done = max(progress.epoch for progress in self.progress)
        if any(p.epoch != done and not self._stopped(index) for index, p in enumerate(self.progress)):
            raise CannotStackError("the members' checkpoints are of different epochs")
        return states, scheduler.state

    def _identity(self, index: int) -> Any:
        """Answers what identifies the run of one member, as if it trained alone."""
        own = replace(self.settings, seed=self.seeds[index])
        optimizer = own.make_optimizer([p for p in self.members[index].parameters() if p.requires_grad])
        schedule = Schedule(own.make_scheduler, own.schedule_every, optimizer)
        return run_identity(self.members[index], own, self._loader(torch.Generator()), optimizer, schedule, 1)


def first_batch(loader: DataLoader[Any], device: torch.device) -> Batch:
    """Answers the first batch of an epoch.

    Raises:
        ValueError: There is none.
    """
    item = next(iter(loader), None)
    if item is None:
        raise ValueError("data holds no batch: expected at least one input.")
    return as_batch(item).to(device)


def checkpoint_of(settings: Settings, index: int) -> Path | None:
    """Answers where a member's checkpoint is."""
    path = settings.checkpoint
    return None if path is None else path.with_name(f"{path.name}.member{index}")


class _OptimizerState:
    """Stands for a member's optimizer where a checkpoint is written or read."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class _SchedulerState(_OptimizerState):
    def __init__(self) -> None:
        super().__init__({})


def _keep_freed_blocks() -> None:
    """Once so large a block has been freed, glibc keeps freed ones: else it maps tensors page by page at every step."""
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _seeded_state(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()
