"""Monte Carlo dropout: a trained model's own dropout, left on, as samples of its predictive distribution."""

import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hesitant.eager import run_eagerly
from hesitant.methods.batches import Batch, batches, logits_of, map_tensors, num_inputs, tensors_of, with_logits
from hesitant.methods.dropout_modes import attributes_kept, dropout_active, dropout_layers
from hesitant.methods.first_pass import DropoutPass, FirstPass
from hesitant.methods.further_passes import FurtherPasses, OtherCourseError
from hesitant.methods.masks import Masks
from hesitant.methods.operation_calls import address
from hesitant.methods.random_state import random_state_kept, seed_all
from hesitant.methods.served import Served
from hesitant.methods.tempering import at_temperature, tempered
from hesitant.methods.wrapper import Gathered, ModelWrapper, evaluating, is_distribution, log_probs_of
from hesitant.mixture import Mixture
from hesitant.prediction import Prediction

# The largest tensor of passes that run together: half of what the cache of a CPU's core holds, or more where most
# operations are passed over, which costs something each time; and what keeps a GPU busy.
_BYTES_AT_ONCE = {False: 2**19, True: 8 * 2**20}
_BYTES_AT_ONCE_ELSEWHERE = 256 * 2**20
_WORTH_KEEPING = 0.5  # the share of operations from which on passing them over saves more than it costs
_PASSES_AT_ONCE = 16  # to be averaged together
_ROUNDING = {False: 2e-3, True: 5e-2}  # of probabilities, in half precision or not: a pass alone and among others


class MCDropout(ModelWrapper):
    """Answers with the mean of ``num_samples`` forward passes of a trained model, each with dropout masks of its own.

    Everything but the dropout is as in eval mode, and nothing of the model is changed afterwards. Each way of writing
    dropout takes part: modules, functions, in attention, between the layers of a recurrent network; stochastic depth if
    asked for. What no dropout reaches is computed once and not ``num_samples`` times.

    In eval mode ``forward`` answers the logarithm of the mean probabilities (with masks of seed 0), so that its softmax
    is the predictive distribution; in training mode it is the model's own, so that the wrapped model can be trained.

    Source: Gal and Ghahramani 2016, "Dropout as a Bayesian Approximation", ICML.

    Args:
        model: A trained classifier with dropout that answers logits ``(B, C)`` (or a single logit, or probabilities),
            as a tensor or as the ``logits`` of an object or dict.
        num_samples: S, how many passes.
        masks: ``"per_input"`` draws masks for each input; ``"shared"`` the same for all inputs of a call, so that the S
            samples are the predictions of S sub-networks: joint samples, as batch active learning needs them.
        chunk_size: How many passes run together; None chooses by the size of their tensors.
        stochastic_depth: Whether whole layers are dropped too, where the model was trained so (DropPath).
        temperature: What divides each pass's logits in eval mode, before the mean (see :class:`Tempered`).

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``.
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        num_samples: int = 100,
        *,
        masks: Literal["per_input", "shared"] = "per_input",
        chunk_size: int | None = None,
        stochastic_depth: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(model, temperature=temperature)
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples={num_samples!r} is no integer of at least 1: it counts the forward passes.")
        if masks not in ("per_input", "shared"):
            raise ValueError(f"masks={masks!r} is not known: expected 'per_input' or 'shared'.")
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise ValueError(
                f"chunk_size={chunk_size!r} is no integer of at least 1: give one, or None to have it chosen."
            )
        self.num_samples, self.masks, self.chunk_size = num_samples, masks, chunk_size
        self.stochastic_depth = stochastic_depth

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Answers the model's output: in eval mode with the logarithm of the mean probabilities for logits."""
        if self.training:
            return self.model(*args, **kwargs)
        return self.sampled(args, kwargs, seed=0)

    @run_eagerly
    def sampled(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, seed: int | None, beside: float = 1.0) -> Any:
        """Answers what the model answers to these arguments, with the logarithm of the mean probabilities for logits.

        Args:
            args: Of the model's ``forward``.
            kwargs: Of the model's ``forward``; its ``labels`` make the loss.
            seed: Of the masks, as in :meth:`predict`.
            beside: A temperature beside the method's own, that of ensembles around it.

        Raises:
            ValueError: As :meth:`predict`.
        """
        with at_temperature(self, self.temperature * beside), self._sampling(seed) as (_, sampler):
            mixture = sampler.mixture(Batch(args, kwargs), 0)
        return with_logits(sampler.output, mixture.log_probs, kwargs.get("labels"))

    def predict(self, inputs: Any, *, seed: int | None = None, batch_size: int = 1024) -> Prediction:
        """Answers the Prediction for inputs of any length, in batches.

        Its ``probs`` are the mean and its ``class_std`` the standard deviation over the passes.

        Args:
            inputs: What the model takes (a tensor, several, a dict of them), a Dataset or a DataLoader. Targets come
                as the last entry of a tuple in a Dataset, or as ``labels`` in a dict.
            seed: Not negative. The same seed, inputs, batch and chunk sizes draw the same masks; None draws new ones.
            batch_size: Inputs in one forward pass.

        Raises:
            ValueError: No dropout took part, masks cannot be shared, the inputs are empty, or an argument is out of its
                range.
            TypeError: The inputs, or the model's output, are of an unknown type.
        """
        targets, probs, log_probs, entropies, deviations = (Gathered() for _ in range(5))
        served = Served(self)
        with self._sampling(seed) as (device, sampler):
            for position, batch in enumerate(batches(inputs, batch_size)):
                served.append(batch)
                mixture = sampler.mixture(batch.to(device), position)
                targets.append(batch.targets)
                probs.append(mixture.probs)
                log_probs.append(mixture.log_probs)
                entropies.append(mixture.expected_entropy)
                deviations.append(mixture.class_std)
        mean = probs.tensor()
        assert mean is not None
        return Prediction(
            mean,
            targets=targets.tensor(),
            log_probs=log_probs.tensor(),
            expected_entropy=entropies.tensor(),
            class_std=deviations.tensor(),
            served=served.tensor(len(mean)),
        )

    def predict_samples(
        self, inputs: Any, *, seed: int | None = None, batch_size: int = 1024, log: bool = False
    ) -> Tensor:
        """Answers the probabilities ``(S, N, C)`` of each pass; all of them are kept.

        With ``masks="shared"`` a sample is one sub-network's joint prediction of all inputs.

        Args:
            inputs: As for :meth:`predict`, as the other arguments.
            seed: Not negative; None draws new masks.
            batch_size: Inputs in one forward pass.
            log: Whether to answer their logarithms, which tell apart what a probability rounds to 0.

        Raises:
            ValueError: As :meth:`predict`.
            TypeError: As :meth:`predict`.
        """
        samples = Gathered()
        with self._sampling(seed) as (device, sampler):
            for position, batch in enumerate(batches(inputs, batch_size)):
                passes = torch.cat(list(sampler.passes(batch.to(device), position)))
                samples.append((passes if log else passes.exp_()).transpose(0, 1))  # (B, S, C)
        gathered = samples.tensor()
        assert gathered is not None
        return gathered.transpose(0, 1).contiguous()

    @contextmanager
    def _sampling(self, seed: int | None) -> "Iterator[tuple[torch.device, _Sampler]]":
        if seed is None:
            seed = secrets.randbits(63)
        elif not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed!r} is no integer from 0 to 2**64 - 1: give one, or None for new masks.")
        with ExitStack() as stack:
            device = stack.enter_context(evaluating(self))
            stack.enter_context(dropout_active(self.model, stochastic_depth=self.stochastic_depth))
            stack.enter_context(random_state_kept([device]))
            if "torch._dynamo" in sys.modules:  # a compiled graph was made with its own dropout, or with none
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield device, _Sampler(self, int(seed), device)


class _Sampler:
    """The passes of one call, batch after batch.

    Attributes:
        output: What the model answered in the last first pass.
    """

    def __init__(self, method: MCDropout, seed: int, device: torch.device) -> None:
        self.model, self.num_samples, self.chunk_size = method.model, method.num_samples, method.chunk_size
        self.shared, self.temperature = method.masks == "shared", method.temperature
        self.seed, self.device = seed, device
        self.output: Any = None
        self._weights = {
            address(tensor) for tensors in (self.model.parameters(), self.model.buffers()) for tensor in tensors
        }
        self._verified: set[int] = set()  # numbers of inputs for which passes are known to run together
        self._half = self._distribution = False
        self._seeds = True  # until it is known that all is drawn from the masks
        self._shared_shapes: list[tuple[int, ...]] | None = None

    def mixture(self, batch: Batch, position: int) -> Mixture:
        """Answers the mixture of all passes."""
        answer: Mixture | None = None
        for log_probs in self.passes(batch, position):
            part = Mixture.of_passes(log_probs)
            answer = part if answer is None else answer.merged(part)
        assert answer is not None
        return answer

    def passes(self, batch: Batch, position: int) -> Iterator[Tensor]:
        """Gives the log-probabilities ``(s, B, C)`` of some passes at a time, ``num_samples`` in all."""
        # Only now: a low temperature enlarges the rounding by which passes are told to run together.
        return (tempered(log_probs, self.temperature) for log_probs in self._untempered(batch, position))

    # ---------------------------------------------------------------- inside

    def _untempered(self, batch: Batch, position: int) -> Iterator[Tensor]:
        rows = num_inputs(batch)
        self._seeds = True
        inputs = map_tensors(batch, Tensor.clone)  # the model may write to them
        known = {address(tensor) for tensor in tensors_of(inputs)} | self._weights
        first = FirstPass(self._masks(position, 0, 1), rows, known)
        self.output = self._run(first, inputs)
        logits = logits_of(self.output)
        self._half = logits.dtype.itemsize < 4
        self._distribution = is_distribution(logits)
        self._seeds = not (first.repeatable and first.followed)
        self._require_dropout(first, logits)
        done = 0
        if not self.shared:
            yield self._log_probs(logits, rows, 1)
            done = 1
        size = self._size(first)
        while done < self.num_samples and (size > 1 or self.shared or first.once >= _WORTH_KEEPING):
            times = min(size, self.num_samples - done)
            try:
                yield self._together(first, batch, rows, times, position, done)
                done += times
            except OtherCourseError as error:
                if self.shared:
                    raise ValueError(f"masks='shared' cannot be kept: {error}. Use masks='per_input'.") from None
                if size == 1:
                    break
                size = 1
        for start in range(done, self.num_samples, _PASSES_AT_ONCE):
            alone = range(start, min(start + _PASSES_AT_ONCE, self.num_samples))
            yield torch.cat([self._alone(batch, rows, position, sample) for sample in alone])

    def _alone(self, batch: Batch, rows: int, position: int, sample: int) -> Tensor:
        """Answers the log-probabilities of one pass, all of it computed."""
        output = self._run(DropoutPass(self._masks(position, sample, 1)), map_tensors(batch, Tensor.clone))
        return self._log_probs(logits_of(output), rows, 1)

    def _together(self, first: FirstPass, batch: Batch, rows: int, times: int, position: int, done: int) -> Tensor:
        """Answers the log-probabilities of some passes, which compute what drawn numbers reach alone."""
        log_probs, passes = self._further(first, batch, rows, times, position, done, company=2)
        if times > 1 and rows not in self._verified:
            # One of them again by itself: does the model answer an input alike, whatever stands beside it?
            again = passes.drawn_by(times - 1)
            company = 2 if times > 2 else 3
            alone, _ = self._further(first, batch, rows, 1, position, done + times - 1, company=company, again=again)
            if bool(((alone[0].exp() - log_probs[-1].exp()).abs() > _ROUNDING[self._half]).any()):
                raise OtherCourseError("the model's answer to an input depends on the others in its batch")
            self._verified.add(rows)
        return log_probs

    def _further(
        self,
        first: FirstPass,
        batch: Batch,
        rows: int,
        times: int,
        position: int,
        done: int,
        *,
        company: int,
        again: Iterator[list[Tensor]] | None = None,
    ) -> tuple[Tensor, FurtherPasses]:
        """Runs some passes; with shared masks in ``company``, whose shapes show the batch axis."""
        at_once = max(times, company) if self.shared else times
        masks = self._masks(position, done, at_once)
        passes = FurtherPasses(first, masks, rows, at_once, shared=self.shared, again=again)
        stand_ins = map_tensors(batch, passes.placeholder)
        try:
            with attributes_kept(self.model):
                log_probs = self._log_probs(logits_of(self._run(passes, stand_ins)), rows, at_once)
        except (OtherCourseError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # code that reads a placeholder's content; an error of the model's own comes again
            raise OtherCourseError(f"{type(error).__name__}: {error}") from error
        if self._shared_shapes is None:
            self._shared_shapes = masks.shapes
        elif self.shared and masks.shapes != self._shared_shapes:
            raise OtherCourseError("the inputs of one batch have other lengths than those of another")
        return log_probs[:times], passes

    def _run(self, mode: DropoutPass, batch: Batch) -> Any:
        # Below autograd an operation is seen as the code wrote it: a dropout, not the draws that it consists of.
        with torch._C._AutoDispatchBelowAutograd(), mode:
            return self.model(*batch.args, **batch.kwargs)

    def _masks(self, position: int, sample: int, times: int) -> Masks:
        """Answers the masks of some passes of a batch, and seeds what draws by itself: a second attempt draws alike."""
        position = 0 if self.shared else position
        masks = Masks([(self.seed, position, sample + i) for i in range(times)])
        if self._seeds:
            seed_all(masks.device_seed, [self.device])
        return masks

    def _size(self, first: FirstPass) -> int:
        """Answers how many passes run together."""
        budget = _BYTES_AT_ONCE_ELSEWHERE
        if self.device.type == "cpu":
            budget = _BYTES_AT_ONCE[first.once >= _WORTH_KEEPING]
        if not first.followed:
            return 1
        return self.chunk_size or max(1, budget // max(1, first.largest))

    def _log_probs(self, output: Tensor, rows: int, times: int) -> Tensor:
        if output.ndim not in (1, 2) or len(output) != times * rows:
            raise ValueError(
                f"the model answered logits of shape {tuple(output.shape)} for {times * rows} inputs: expected (B, C),"
                " or (B, 1) or (B,) for a binary model."
            )
        return log_probs_of(output, self._distribution).view(times, rows, -1)  # (s, B, C)

    def _require_dropout(self, first: FirstPass, logits: Tensor) -> None:
        if first.drew and first.reached(logits):
            return
        rates = ", ".join(f"{name or 'the model'} (p={rate})" for name, rate in dropout_layers(self.model).items())
        what = "no dropout took part" if not first.drew else "no dropout reached the logits"
        raise ValueError(
            f"{what} in the forward pass of {type(self.model).__name__}: all its samples would be the same. Its dropout"
            f" layers: {rates or 'none'}. Train it with dropout (p > 0), or use another method, such as SNGP or"
            " DeepEnsemble."
        )
