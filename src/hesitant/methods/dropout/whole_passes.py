"""Passes that are computed whole: as one where a small model's code lets them, else one after the other."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch
from hesitant.methods.dropout.light_pass import LightPass
from hesitant.methods.dropout.masks_ahead import MasksAhead
from hesitant.methods.dropout.other_draws import OtherDraws, Suspicion
from hesitant.methods.dropout.runner import PassRunner
from hesitant.methods.dropout.vectorized_passes import VectorizedPasses
from hesitant.methods.dropout.watched_pass import WatchedPass
from hesitant.methods.outputs import logits_of, require_rows
from hesitant.methods.random_state import PassSeed

ROUNDING = {False: 2e-3, True: 5e-2}  # of probabilities, in half precision or not: a pass alone and among others
FEW_AS_ONE = 3  # passes that take no longer one after the other than as one
_POOR = 2  # runs in a row of which so few went the same way, after which no more are tried


class Passes(NamedTuple):
    """What some passes have answered.

    Attributes:
        logits: ``(s, B, C)``, or ``(s, B)``.
        output: What the model answered in the first of them.
        bare: Whether ``output`` is its logits alone, and the model answered more.
        drew: Whether a draw took part in them.
    """

    logits: Tensor
    output: Any
    bare: bool
    drew: bool


class WholePasses:
    """Runs passes of one call.

    Args:
        runner: Runs the model.
        model: What runs.
        others: What is known of its draws from other generators; the first passes that run as one look.

    Attributes:
        can_be_one: Whether passes may run as one, until they turn out not to.
    """

    def __init__(self, runner: PassRunner, model: nn.Module, others: OtherDraws) -> None:
        self._runner, self._model, self._others = runner, model, others
        self.can_be_one = not runner.scripted and not others.found

    def one_by_one(self, seeds: Sequence[PassSeed], batch: Batch, rows: int) -> Passes:
        """Answers the passes of these seeds, which have run one after the other."""
        return self._completed(MasksAhead(seeds), batch, rows, {}, None)

    def as_one(self, seeds: Sequence[PassSeed], batch: Batch, rows: int, *, at_any_rate: bool) -> Passes | None:
        """Answers the passes of these seeds, run as one, as far as they go the same way.

        Args:
            seeds: Of the passes.
            batch: The inputs.
            rows: How many.
            at_any_rate: Whether they are to run one after the other where they cannot: else None is answered.
        """
        ahead = MasksAhead(seeds)
        known: dict[int, Tensor] = {}
        waiting: Sequence[int] = range(len(seeds))
        first: Passes | None = None
        poor = 0
        suspicion = None if self._others.known else Suspicion(self._model)
        while self.can_be_one and len(waiting) > FEW_AS_ONE:
            run = self._run_as_one(ahead, waiting, batch)
            if run is None:
                break
            passes, logits = run
            require_rows(logits[0], rows, self._model)
            if suspicion is not None and suspicion.holds() and not self._alike(ahead, logits[0], batch):
                self._others.known = self._others.found = True
                self.can_be_one = False
                break
            self._others.known, suspicion = True, None
            first = first or Passes(logits, logits[0], passes.structured, passes.reached)
            if len(passes.same) == len(seeds):
                return first
            known |= {waiting[place]: logits[place] for place in passes.same}
            waiting = [index for index in waiting if index not in known]
            poor = poor + 1 if waiting and len(passes.same) <= FEW_AS_ONE else 0
            self.can_be_one = poor < _POOR
        if first is None and not at_any_rate:
            return None
        return self._completed(ahead, batch, rows, known, first)

    def output(self, seeds: Sequence[PassSeed], batch: Batch) -> Any:
        """Answers what the model answers in the first pass."""
        return self._runner.run(partial(self._alone, MasksAhead(seeds[:1]), 0, batch), batch)[1]

    # ---------------------------------------------------------------- inside

    def _run_as_one(
        self, ahead: MasksAhead, indices: Sequence[int], batch: Batch
    ) -> tuple[VectorizedPasses, Tensor] | None:
        def mode() -> VectorizedPasses:
            return VectorizedPasses(ahead, indices, partial(self._runner.guarded, batch))

        try:
            return self._runner.run(mode, batch)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of what cannot run as one; an error of the model's own comes again
            self.can_be_one = False
            return None

    def _alike(self, ahead: MasksAhead, logits: Tensor, batch: Batch) -> bool:
        """Answers whether the first pass answers by itself what it answered among others."""
        alone = logits_of(self._runner.run(partial(self._alone, ahead, 0, batch), batch)[1])
        return bool(((alone.softmax(-1) - logits.softmax(-1)).abs() <= ROUNDING[logits.dtype.itemsize < 4]).all())

    def _completed(
        self, ahead: MasksAhead, batch: Batch, rows: int, known: dict[int, Tensor], first: Passes | None
    ) -> Passes:
        """Answers all passes, those that are not known run one after the other."""
        output, bare, drew = (None, False, False) if first is None else first[1:]
        for index in range(len(ahead.seeds)):
            if index not in known:
                mode, answer = self._runner.run(partial(self._alone, ahead, index, batch), batch)
                known[index] = require_rows(logits_of(answer), rows, self._model)
                drew |= mode.drew
                if index == 0:
                    output = answer
        logits = torch.stack([known[index] for index in range(len(ahead.seeds))])
        return Passes(logits, output, bare, drew and not bool((logits == logits[:1]).all()))

    def _alone(self, ahead: MasksAhead, index: int, batch: Batch) -> WatchedPass | LightPass:
        masks = ahead.of(index)
        if self._runner.scripted:
            return WatchedPass(masks, self._runner.guarded(batch))
        return LightPass(masks, partial(self._runner.guarded, batch))
