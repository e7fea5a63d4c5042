"""The run that trains members as one: their stack, data, validation and checkpoints, epoch after epoch."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch
from hesitant.methods import SNGP
from hesitant.training.history import EnsembleHistory, History, merged
from hesitant.training.loop import finite, fit_covariance, progress_bar, seeded, start_head, validation_nll, weights_of
from hesitant.training.progress import Progress
from hesitant.training.settings import Settings
from hesitant.training.vectorized.checkpoints import Loaded, MemberCheckpoints
from hesitant.training.vectorized.member_batches import MemberBatches
from hesitant.training.vectorized.stack import MemberStack
from hesitant.training.vectorized.weights import CannotStackError


class VectorizedRun:
    """The members of one architecture and what trains them.

    Args:
        members: The members.
        each: The settings of each by itself: they differ in seed and checkpoint alone.
        data: What fit was given.
        device: Where to train.
    """

    def __init__(self, members: list[nn.Module], each: list[Settings], data: Any, device: torch.device) -> None:
        self.members, self.each, self.settings, self.device = members, each, each[0], device
        self.data, self.batches = data, MemberBatches(data, each, device)
        self.progress = [Progress() for _ in members]
        self.best: list[dict[str, Tensor] | None] = [None for _ in members]

    def train(self) -> EnsembleHistory:
        """Trains all, if a rehearsal shows that they can be trained together.

        Raises:
            CannotStackError: They cannot; nothing of the members has changed.
        """
        settings = self.settings
        for member, own in zip(self.members, self.each, strict=True):
            start_head(member, self.data, own, self.device)
            member.to(self.device).train()
        firsts = self.batches.firsts(lambda seed: seeded(seed, self.device))
        _keep_freed_blocks()
        with ExitStack() as leaving:
            checkpoints = None
            if settings.checkpoint is not None:
                checkpoints = MemberCheckpoints(self.members, self.each, self.batches)
            loaded = None if checkpoints is None else self._resumed(checkpoints)
            for member, own, batch in zip(self.members, self.each, firsts, strict=True):
                if isinstance(member, SNGP):  # decides its kernel scale, and sets its covariance's state
                    member.gp.expect_no_step()
                    with seeded(own.seed, self.device):
                        member(*batch.args, **batch.kwargs)
            stack = self._rehearsed(firsts)
            if loaded is not None:
                loaded.give_to(stack)
            stack.weights.attach()
            leaving.callback(stack.weights.release)
            done = max(progress.epoch for progress in self.progress)
            advance = leaving.enter_context(progress_bar(settings.progress, settings.epochs, done, "training"))
            for number in range(done, settings.epochs):
                if all(self._has_stopped(index) for index in range(len(self.members))):
                    break
                began = time.perf_counter()
                losses = self._finite(stack.epoch(number, self.batches.epoch()))
                self._finish_epoch(stack, number, losses, time.perf_counter() - began)
                if checkpoints is not None:
                    checkpoints.save(stack, self.progress, self.best)
                advance(self._means(number))
        return self._finished()

    # ---------------------------------------------------------------- inside

    def _resumed(self, checkpoints: MemberCheckpoints) -> Loaded | None:
        loaded = checkpoints.load()
        if loaded is None:
            return None
        self.progress, self.best = loaded.progress, loaded.best
        done = max(progress.epoch for progress in self.progress)
        if any(p.epoch != done and not self._has_stopped(index) for index, p in enumerate(self.progress)):
            raise CannotStackError("the members' checkpoints are of different epochs")
        return loaded

    def _rehearsed(self, firsts: Sequence[Batch]) -> MemberStack:
        try:
            stack = MemberStack(self.members, self.settings, self.batches.steps_per_epoch())
            stack.rehearse(firsts)
        except CannotStackError:
            raise
        except Exception as error:  # an error of the model's own comes again, one by one
            raise CannotStackError(f"{type(error).__name__}: {error}") from error
        return stack

    def _has_stopped(self, index: int) -> bool:
        patience = self.settings.patience
        return patience is not None and self.progress[index].has_waited(patience)

    def _finite(self, losses: Tensor) -> list[float]:
        """Answers the losses, if all are numbers but those of members that have stopped.

        Raises:
            ValueError: One is none.
        """
        answer: list[float] = losses.tolist()
        for index, loss in enumerate(answer):
            if not self._has_stopped(index):
                try:
                    finite(loss)
                except ValueError as error:
                    raise ValueError(f"members[{index}]: {error}") from None
        return answer

    def _finish_epoch(self, stack: MemberStack, number: int, losses: list[float], seconds: float) -> None:
        began = time.perf_counter()
        settings = self.settings
        going = [index for index in range(len(self.members)) if not self._has_stopped(index)]
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

    def _means(self, number: int) -> Progress:
        """Answers the means of an epoch, to show."""
        going = [progress for progress in self.progress if progress.epoch == number + 1]
        losses = [progress.train_loss[-1] for progress in going]
        nlls = [progress.validation_nll[-1] for progress in going if progress.validation_nll]
        return Progress(number + 1, [sum(losses) / len(losses)], [sum(nlls) / len(nlls)] if nlls else [])

    def _finished(self) -> EnsembleHistory:
        began = time.perf_counter()
        for member, best in zip(self.members, self.best, strict=True):
            if self.settings.patience is not None and best is not None:
                member.load_state_dict(best)
            fit_covariance(member, self.data, self.settings.batch_size)
        seconds = max(progress.seconds for progress in self.progress) + time.perf_counter() - began
        histories = [History(p.train_loss, p.validation_nll, p.best_epoch, seconds) for p in self.progress]
        return merged(histories, None, seconds)


def _keep_freed_blocks() -> None:
    """Once so large a block has been freed, glibc keeps freed ones: else it maps tensors page by page at every step."""
    torch.empty(31 * 2**20, dtype=torch.uint8)
