"""Runs a model pass by pass, each on a replica that is as the model was and on inputs as they were given."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn

from hesitant.inputs import Batch, map_tensors, tensors_of
from hesitant.methods.dropout.dropping_replicas import dropping_replicas
from hesitant.methods.dropout.light_pass import LightPass
from hesitant.methods.dropout.replay import ReplayedPasses
from hesitant.methods.dropout.vectorized_passes import VectorizedPasses
from hesitant.methods.dropout.watched_pass import ModelWrittenError, WatchedPass
from hesitant.methods.operation_calls import address
from hesitant.methods.outputs import Ending, OutputProbe, Outputs, logits_of

Mode = TypeVar("Mode", bound=WatchedPass | LightPass | VectorizedPasses)


class PassRunner:
    """Runs the passes of one call, and keeps the model and the caller's inputs as they are.

    Args:
        model: What runs.
        stochastic_depth: Whether whole layers are dropped too.
        outputs: What the model answers.
        ending: What is known of how its code ends; the first pass looks.

    Attributes:
        num_weights, scripted: Of the model, as of :class:`Replicas`.
    """

    def __init__(self, model: nn.Module, *, stochastic_depth: bool, outputs: Outputs, ending: Ending) -> None:
        self._model, self._outputs, self._ending = model, outputs, ending
        self._replicas = dropping_replicas(model, stochastic_depth=stochastic_depth)
        self.scripted, self.num_weights = self._replicas.scripted, self._replicas.num_weights
        self._copies_inputs = False  # until the model turns out to write to them
        self._last_guarded: tuple[Batch, set[int]] | None = None

    def run(self, mode_of: Callable[[], Mode], batch: Batch) -> tuple[Mode, Any]:
        """Runs the model under a mode, and answers with the mode what the model answered.

        What it is about to write to, of the model's or the caller's, it has copies of in another attempt.

        Raises:
            ValueError: The model's code ends in a softmax or sigmoid, and its outputs are said to be logits.
        """
        while True:
            mode = mode_of()
            inputs = map_tensors(batch, Tensor.clone) if self._copies_inputs else batch
            if isinstance(mode, ReplayedPasses):
                inputs = map_tensors(batch, mode.placeholder)
            try:
                with nullcontext() if self._ending.seen else OutputProbe() as probe:
                    output = mode.call(self._replicas.fresh(), inputs.args, inputs.kwargs)
                if not mode.wrote:
                    if probe is not None:
                        probe.require(logits_of(output), self._outputs, self._model)
                        self._ending.seen = True
                    return mode, output
            except ModelWrittenError:
                pass
            except Exception:
                if not mode.wrote:
                    raise
            self._copies_inputs |= bool(mode.wrote - self._replicas.memory)
            self._replicas.have_their_own(mode.wrote & self._replicas.memory)

    def guarded(self, batch: Batch) -> set[int]:
        """Answers the addresses of what no pass may write to."""
        if self._copies_inputs:
            return self._replicas.memory
        if self._last_guarded is None or self._last_guarded[0] is not batch:
            self._last_guarded = batch, self._replicas.memory | {address(tensor) for tensor in tensors_of(batch)}
        return self._last_guarded[1]

    def known(self, batch: Batch) -> set[int]:
        """Answers the addresses of the inputs and of what belongs to the model or to its replica."""
        return self._replicas.memory | self._replicas.copies | set(map(address, tensors_of(batch)))
