"""Monte Carlo dropout: a trained model's own dropout, left on, as samples of its predictive distribution."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch, as_class_targets, batches
from hesitant.methods.calibration_digest import calibration_digest
from hesitant.methods.dropout import DropoutPasses, OtherDraws
from hesitant.methods.outputs import Outputs, with_logits
from hesitant.methods.random_state import require_seed
from hesitant.methods.wrapper import Gathered, ModelWrapper, device_of
from hesitant.nn import run_eagerly
from hesitant.prediction import Mixture, Prediction, evidence_of, prediction_from_mixture


class MCDropout(ModelWrapper):
    """Answers with the mean of ``num_samples`` forward passes of a trained model, each with dropout masks of its own.

    Everything but the dropout is as in eval mode, and nothing of the model is changed afterwards. Each way of writing
    dropout takes part: modules, functions, in attention, between the layers of a recurrent network; stochastic depth if
    asked for. What no dropout reaches is computed once and not ``num_samples`` times.

    In eval mode ``forward`` answers the logarithm of the mean probabilities (with masks of seed 0), so that its softmax
    is the predictive distribution; in training mode it is the model's own, so that the wrapped model can be trained.

    Source: Gal and Ghahramani 2016, "Dropout as a Bayesian Approximation", ICML.

    Example:
        >>> import torch
        >>> from hesitant import MCDropout
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 3))
        >>> prediction = MCDropout(net, num_samples=20).predict(torch.randn(5, 2))
        >>> prediction.class_std.shape
        torch.Size([5, 3])
        >>> bool((prediction.mutual_information > 0).all())
        True

    Args:
        model: A trained classifier with dropout that answers logits ``(B, C)`` or a single logit, as a tensor or as the
            ``logits`` of an object or dict.
        num_samples: S, how many passes.
        masks: ``"per_input"`` draws masks for each input; ``"shared"`` the same for all inputs of a call, so that the S
            samples are the predictions of S sub-networks: joint samples, as batch active learning needs them.
        chunk_size: How many passes run together; None chooses by the size of their tensors.
        stochastic_depth: Whether whole layers are dropped too, where the model was trained so (DropPath).
        temperature: What divides each pass's logits in eval mode, before the mean (see :attr:`temperature`).
        outputs: ``"probabilities"`` for a model that ends in a softmax or a sigmoid, else ``"logits"``.

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
        outputs: Outputs = "logits",
    ) -> None:
        super().__init__(model, temperature=temperature, outputs=outputs)
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
        self.other_draws = OtherDraws()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Answers the model's output: in eval mode with the logarithm of the mean probabilities for logits."""
        if self.training:
            return self.model(*args, **kwargs)
        return self.sampled(args, kwargs, seed=0, temperature=self.temperature)

    @run_eagerly
    def sampled(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, seed: int, temperature: float) -> Any:
        """Answers what the model answers to these arguments, with the logarithm of the mean probabilities for logits.

        Args:
            args: Of the model's ``forward``.
            kwargs: Of the model's ``forward``; its ``labels`` make the loss.
            seed: Of the masks, as in :meth:`predict`.
            temperature: What divides each pass's logits, the method's own and those around it together.

        Raises:
            ValueError: As :meth:`predict`.
        """
        passes, batch = self._passes(seed, temperature), Batch(args, kwargs)
        with torch.no_grad():
            mixture = passes.mixture(batch, 0)
        return with_logits(passes.output_for(batch), mixture.log_probs, kwargs.get("labels"))

    def predict(self, inputs: Any, *, seed: int = 0, batch_size: int | None = None) -> Prediction:
        """Answers the Prediction for inputs of any length, in batches.

        Its ``probs`` are the mean and its ``class_std`` the standard deviation over the passes, its ``logits`` the mean
        of theirs before any temperature.

        Args:
            inputs: A tensor, a list or a dict of several, ``(inputs, targets)``, a Dataset, a DataLoader, a list of
                examples (see :func:`hesitant.inputs.understood`).
            seed: Not negative. The same seed, inputs, batch and chunk sizes draw the same masks, whatever else runs
                meanwhile: no generator of the process is drawn from, seeded or put back. What the model's code draws
                from Python's or NumPy's generator, or within kernels that are not torch's, is up to these.
            batch_size: Inputs in one forward pass; None chooses by their size.

        Raises:
            ValueError: No dropout took part, masks cannot be shared, the model does not answer one row for each input,
                a branch of its code both drops and does something else that belongs to training, the inputs are empty,
                or an argument is out of its range.
            TypeError: The inputs, or the model's output, are of an unknown type.
        """
        answer = self.answer(batches(inputs, batch_size), temperature=self.temperature, seed=seed)
        return answer.with_calibration(calibration_digest(self))

    def predict_samples(
        self, inputs: Any, *, seed: int = 0, batch_size: int | None = None, log: bool = False
    ) -> Tensor:
        """Answers the probabilities ``(S, N, C)`` of each pass; all of them are kept.

        With ``masks="shared"`` a sample is one sub-network's joint prediction of all inputs.

        Args:
            inputs: As for :meth:`predict`, as the other arguments.
            seed: Not negative.
            batch_size: Inputs in one forward pass; None chooses.
            log: Whether to answer their logarithms, which tell apart what a probability rounds to 0.

        Raises:
            ValueError: As :meth:`predict`.
            TypeError: As :meth:`predict`.
        """
        return self.samples(batches(inputs, batch_size), temperature=self.temperature, seed=seed, log=log)

    def calibration_state(self) -> tuple[Any, ...]:
        """Answers what tells this method's scores from those of another."""
        own = self.outputs, self.num_samples, self.masks, self.stochastic_depth
        return *super().calibration_state(), *own

    def saved_options(self) -> dict[str, Any]:
        """Answers the options of the constructor, as JSON, with which the method is made again."""
        return {
            "num_samples": self.num_samples,
            "masks": self.masks,
            "chunk_size": self.chunk_size,
            "stochastic_depth": self.stochastic_depth,
            **super().saved_options(),
        }

    def answer(self, given: Iterable[Batch], *, temperature: float, seed: int) -> Prediction:
        """Answers :meth:`predict` at a temperature, the method's own and those around it together."""
        passes = self._passes(seed, temperature)
        targets, *parts = (Gathered() for _ in range(6))
        for position, batch in enumerate(given):
            moved = batch.to(passes.device)
            with torch.no_grad():
                mixture = passes.mixture(moved, position)
            targets.append(as_class_targets(batch.targets))
            for part, of_batch in zip(parts, mixture[1:], strict=True):
                part.append(of_batch, own=True)
        tensors: Any = [part.tensor() for part in parts]
        whole = Mixture(self.num_samples, *tensors)
        evidence = evidence_of(whole.logits[:, 1:]) if passes.single and whole.logits is not None else None
        return prediction_from_mixture(whole, targets=targets.tensor(), evidence=evidence)

    def samples(self, given: Iterable[Batch], *, temperature: float, seed: int, log: bool) -> Tensor:
        """Answers :meth:`predict_samples` at a temperature, the method's own and those around it together."""
        passes, gathered = self._passes(seed, temperature), Gathered()
        for position, batch in enumerate(given):
            moved = batch.to(passes.device)
            with torch.no_grad():
                log_probs = torch.cat(list(passes.passes(moved, position)))
                gathered.append((log_probs if log else log_probs.exp_()).transpose(0, 1))  # (B, S, C)
        samples = gathered.tensor()
        assert samples is not None
        return samples.transpose(0, 1).contiguous()

    def _passes(self, seed: int, temperature: float) -> DropoutPasses:
        require_seed(seed)
        return DropoutPasses(
            self.model,
            num_samples=self.num_samples,
            shared=self.masks == "shared",
            chunk_size=self.chunk_size,
            stochastic_depth=self.stochastic_depth,
            outputs=self.outputs,
            ending=self.ending,
            others=self.other_draws,
            temperature=temperature,
            seed=int(seed),
            device=device_of(self),
        )
