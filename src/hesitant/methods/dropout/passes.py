"""The passes of one call of Monte Carlo dropout: which of them run together, and which one after the other."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch, num_inputs, tensors_of
from hesitant.methods.dropout.dropping_replicas import dropout_layers
from hesitant.methods.dropout.masks import Masks
from hesitant.methods.dropout.other_draws import OtherDraws
from hesitant.methods.dropout.replay import OtherCourseError, RecordedPass, ReplayedPasses
from hesitant.methods.dropout.runner import PassRunner
from hesitant.methods.dropout.whole_passes import FEW_AS_ONE, ROUNDING, Passes, WholePasses
from hesitant.methods.outputs import Ending, Outputs, log_probs_of, logits_of, require_kind, require_rows
from hesitant.methods.random_state import pass_seeds
from hesitant.methods.temperature import tempered
from hesitant.prediction import Mixture, as_floating, two_class_logits

# The largest tensor of passes that run together: half of what the cache of a CPU's core holds, or more where most
# operations are passed over, which costs something each time; and what keeps a GPU busy.
_BYTES_AT_ONCE = {False: 2**19, True: 8 * 2**20}
_BYTES_AT_ONCE_ELSEWHERE = 256 * 2**20
_WORTH_KEEPING = 0.5  # the share of operations from which on passing them over saves more than it costs
_PASSES_AT_ONCE = 16  # to be averaged together
# So small a model, on so few inputs, is done sooner than it is known what the passes have in common.
_FEW_NUMBERS = 2**17
_TINY = 2**13  # weights of a model whose every pass is over sooner than it is known what they have in common
_ROWS_AS_ONE = 4096  # of all passes that run as one
_NUMBERS_AS_ONE = 2**18  # of their inputs: the activations of an image model are some hundred times as many
_FEW_PASSES = 16  # that, where they cannot run as one, are over before it is known what they have in common


class DropoutPasses:
    """The passes of one call, batch after batch, on replicas of the model.

    Args:
        model: What runs.
        num_samples: S, how many passes.
        shared: Whether all inputs of a pass have the same masks.
        chunk_size: How many passes run together; None chooses.
        stochastic_depth: Whether whole layers are dropped too.
        outputs: What the model answers.
        ending: What is known of how its code ends; the first pass looks.
        others: What is known of its draws from other generators than torch's; the first passes look.
        temperature: What divides each pass's logits.
        seed: Of the masks.
        device: Where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_samples: int,
        shared: bool,
        chunk_size: int | None,
        stochastic_depth: bool,
        outputs: Outputs,
        ending: Ending,
        others: OtherDraws,
        temperature: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.num_samples, self.chunk_size = model, num_samples, chunk_size
        self.shared, self.temperature, self.seed, self.device = shared, temperature, seed, device
        self._output: Any = None  # of the last batch's first pass, or its logits alone
        self._runner = PassRunner(model, stochastic_depth=stochastic_depth, outputs=outputs, ending=ending)
        self._whole = WholePasses(self._runner, model, others)
        self._outputs: Outputs = outputs
        self._seeds = pass_seeds(num_samples, seed, 0)
        self._verified: set[int] = set()  # numbers of inputs for which passes are known to run together
        self._apart = False  # until passes turn out not to run together
        self._half = False
        self._output_is_bare = False  # whether it was more than logits, and these alone are kept
        self._shared_shapes: list[tuple[int, ...]] | None = None

    def mixture(self, batch: Batch, position: int) -> Mixture:
        """Answers the mixture of all passes."""
        answer: Mixture | None = None
        for logits in self._passes(batch, position):
            mean = logits.mean(0) if self._outputs == "logits" else None
            part = Mixture.of_passes(self._log_probs(logits), mean)
            answer = part if answer is None else answer.merged(part)
        assert answer is not None
        return answer

    def passes(self, batch: Batch, position: int) -> Iterator[Tensor]:
        """Gives the log-probabilities ``(s, B, C)`` of some passes at a time, ``num_samples`` in all."""
        return (self._log_probs(logits) for logits in self._passes(batch, position))

    @property
    def single(self) -> bool:
        """Whether the model answers a single logit."""
        logits = logits_of(self._output)
        return logits.ndim == 1 or logits.shape[-1] == 1

    def output_for(self, batch: Batch) -> Any:
        """Answers what the model answers to the last batch in its first pass, of whatever type that is."""
        if self._output_is_bare:
            self._output, self._output_is_bare = self._whole.output(self._seeds, batch), False
        return self._output

    # ---------------------------------------------------------------- inside

    def _passes(self, batch: Batch, position: int) -> Iterator[Tensor]:
        """Gives the logits ``(s, B, C)`` of some passes at a time, or log-probabilities where there are none."""
        if position > 0 and not self.shared:
            self._seeds = pass_seeds(self.num_samples, self.seed, position)
        return self._untempered(batch)

    def _log_probs(self, logits: Tensor) -> Tensor:
        # Only now: a low temperature enlarges the rounding by which passes are told to run together.
        if self._outputs == "logits":
            return torch.log_softmax(logits if self.temperature == 1 else logits / self.temperature, -1)
        return tempered(logits, self.temperature)

    def _untempered(self, batch: Batch) -> Iterator[Tensor]:
        rows = num_inputs(batch)
        small, done = self._is_small(batch), 0
        at_once = self._passes_as_one(batch, rows) if small and self._whole.can_be_one else 1
        if at_once > FEW_AS_ONE:
            for logits in self._each_whole(batch, rows, 0, at_once, as_one=True):
                yield logits
                done += len(logits)
            if done == self.num_samples:
                return
        if self._apart or (small and self.num_samples <= _FEW_PASSES):
            yield from self._each_whole(batch, rows, 0, _PASSES_AT_ONCE)
            return
        first = self._first(batch, rows)
        logits = logits_of(self._output)
        if not self.shared:
            yield self._logits(logits, rows, 1)
            done = 1
        size = self._size(first)
        while done < self.num_samples and (size > 1 or self.shared or first.once >= _WORTH_KEEPING):
            times = min(size, self.num_samples - done)
            try:
                yield self._together(first, batch, rows, times, done)
                done += times
            except OtherCourseError as error:
                if self.shared:
                    raise ValueError(f"masks='shared' cannot be kept: {error}. Use masks='per_input'.") from None
                if size == 1 or first.once < _WORTH_KEEPING:
                    self._apart = True
                    break
                size = 1
        yield from self._each_whole(batch, rows, done, _PASSES_AT_ONCE)

    def _is_small(self, batch: Batch) -> bool:
        if self.shared or self.chunk_size or self.num_samples == 1 or self.device.type != "cpu":
            return False
        return self._runner.num_weights + sum(tensor.numel() for tensor in tensors_of(batch)) <= _FEW_NUMBERS

    def _passes_as_one(self, batch: Batch, rows: int) -> int:
        numbers = sum(tensor.numel() for tensor in tensors_of(batch))
        at_once = min(self.num_samples, _ROWS_AS_ONE // max(1, rows), _NUMBERS_AS_ONE // max(1, numbers))
        # Each such run computes what no dropout reaches: in several, a larger model would do so several times.
        several = self._runner.num_weights <= _TINY or self.num_samples <= _FEW_PASSES
        return at_once if several or at_once == self.num_samples else 1

    def _each_whole(
        self, batch: Batch, rows: int, done: int, at_once: int, *, as_one: bool = False
    ) -> Iterator[Tensor]:
        """Gives the logits of the passes that are left, each computed whole.

        Args:
            batch: The inputs.
            rows: How many.
            done: How many passes are.
            at_once: How many passes are averaged together.
            as_one: Whether these run as one, where they can; where they cannot and are many, nothing is given.
        """
        for start in range(done, self.num_samples, at_once):
            seeds = self._seeds[start : start + at_once]
            passes: Passes | None
            if as_one:
                at_any_rate = start > 0 or self.num_samples <= _FEW_PASSES
                passes = self._whole.as_one(seeds, batch, rows, at_any_rate=at_any_rate)
                if passes is None:
                    return
            else:
                passes = self._whole.one_by_one(seeds, batch, rows)
            if start == 0:
                self._output, self._output_is_bare = passes.output, passes.bare
                self._look_at(passes.logits[0])
                if not passes.drew:
                    self._first(batch, rows)  # raises where no dropout can have a part in the answer
            yield self._logits(passes.logits.flatten(0, 1), rows, len(seeds))

    def _first(self, batch: Batch, rows: int) -> RecordedPass:
        """Runs the first pass, and requires that its dropout has a part in the answer."""

        def mode() -> RecordedPass:
            return RecordedPass(self._masks(0, 1), self._runner.guarded(batch), rows, self._runner.known(batch))

        first, self._output = self._runner.run(mode, batch)
        logits = logits_of(self._output)
        self._require_rows(logits, rows)
        self._look_at(logits)
        self._require_dropout(first, logits)
        return first

    def _together(self, first: RecordedPass, batch: Batch, rows: int, times: int, done: int) -> Tensor:
        """Answers the logits of some passes, which compute what drawn numbers reach alone."""
        logits, passes = self._further(first, batch, rows, times, done, company=2)
        if times > 1 and rows not in self._verified:
            # One of them again by itself: does the model answer an input alike, whatever stands beside it?
            again = list(passes.drawn_by(times - 1))
            company = 2 if times > 2 else 3
            alone, _ = self._further(first, batch, rows, 1, done + times - 1, company=company, again=again)
            if bool(((alone[0].softmax(-1) - logits[-1].softmax(-1)).abs() > ROUNDING[self._half]).any()):
                raise OtherCourseError("the model's answer to an input depends on the others in its batch")
            self._verified.add(rows)
        return logits

    def _further(
        self,
        first: RecordedPass,
        batch: Batch,
        rows: int,
        times: int,
        done: int,
        *,
        company: int,
        again: list[list[Tensor]] | None = None,
    ) -> tuple[Tensor, ReplayedPasses]:
        """Runs some passes; with shared masks in ``company``, whose shapes show the batch axis."""
        at_once = max(times, company) if self.shared else times

        def mode() -> ReplayedPasses:
            answers = None if again is None else iter(again)
            masks = self._masks(done, at_once)
            return ReplayedPasses(
                first, masks, self._runner.guarded(batch), rows, at_once, shared=self.shared, again=answers
            )

        try:
            passes, output = self._runner.run(mode, batch)
            logits = self._logits(logits_of(output), rows, at_once)
        except (OtherCourseError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # code that reads a placeholder's content; an error of the model's own comes again
            raise OtherCourseError(f"{type(error).__name__}: {error}") from error
        if self._shared_shapes is None:
            self._shared_shapes = passes.masks.shapes
        elif self.shared and passes.masks.shapes != self._shared_shapes:
            raise OtherCourseError("the inputs of one batch have other lengths than those of another")
        return logits[:times], passes

    def _masks(self, sample: int, times: int) -> Masks:
        """Answers the masks of some passes; in a second attempt they draw alike."""
        last = sample + times
        if last > len(self._seeds):  # company, of which nothing is kept
            return Masks(pass_seeds(last, self.seed, 0)[sample:])
        return Masks(self._seeds[sample:last])

    def _size(self, first: RecordedPass) -> int:
        """Answers how many passes run together."""
        budget = _BYTES_AT_ONCE_ELSEWHERE
        if self.device.type == "cpu":
            budget = _BYTES_AT_ONCE[first.once >= _WORTH_KEEPING]
        if not first.followed:
            return 1
        return self.chunk_size or max(1, budget // max(1, first.largest))

    def _look_at(self, logits: Tensor) -> None:
        self._half = logits.dtype.itemsize < 4
        require_kind(logits, self._outputs, self.model)

    def _logits(self, output: Tensor, rows: int, times: int) -> Tensor:
        self._require_rows(output, times * rows)
        if self._outputs == "logits":
            output = two_class_logits(as_floating("logits", output))
        else:
            output = log_probs_of(output, self._outputs)
        return output.view(times, rows, -1)  # (s, B, C)

    def _require_rows(self, output: Tensor, rows: int) -> None:
        require_rows(output, rows, self.model)

    def _require_dropout(self, first: RecordedPass, logits: Tensor) -> None:
        if first.drew and first.reached(logits):
            return
        rates = ", ".join(f"{name or 'the model'} (p={rate})" for name, rate in dropout_layers(self.model).items())
        what = "no dropout took part" if not first.drew else "no dropout reached the logits"
        raise ValueError(
            f"{what} in the forward pass of {type(self.model).__name__}: all its samples would be the same. Its dropout"
            f" layers: {rates or 'none'}. Train it with dropout (p > 0), or use another method, such as SNGP or"
            " DeepEnsemble."
        )
