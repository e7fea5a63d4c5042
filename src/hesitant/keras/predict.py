"""Plain and SNGP models, Monte Carlo dropout and deep ensembles of Keras models, asked alike."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hesitant.keras.answers import (
    Answer,
    Outputs,
    as_kind,
    centred,
    logits_and_evidence,
    of_hesitant,
    of_members,
    of_passes,
    probabilities,
    two_columns,
    wide,
)
from hesitant.keras.asking import is_read_once, one_at_a_time
from hesitant.keras.concrete import array_of
from hesitant.keras.covariance_pass import PosteriorPass, batches_of
from hesitant.keras.dropout_passes import DropoutPasses, passes_at_once
from hesitant.keras.mean_field import mean_field_logits

_BATCH = 128


def predict_with_uncertainty(
    model: Any, x: Any, batch_size: int | None = None, num_iterations: int = 100, seed: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Answers mean and standard deviation of what the model answers over dropout passes, each ``(B, C)``.

    The recipe of Keras: dropout is on, everything else is as in inference, and the outputs are averaged as they are,
    so that the model should end in a softmax. `MCDropout` knows of logits.

    Args:
        model: A built Keras model with Dropout layers; functional, Sequential or a subclass.
        x: Inputs, as for ``model.predict``.
        batch_size: Inputs in a batch.
        num_iterations: Passes.
        seed: The same seed draws the same masks for the same batches; None draws one.

    Raises:
        ValueError: No dropout took part, or an argument is out of its range.
    """
    samples = MCDropout(model, num_iterations, outputs="probabilities").outputs(x, batch_size=batch_size, seed=seed)
    return samples.mean(axis=0), samples.std(axis=0)


class _Method(ABC):
    """What the methods share: that they answer arrays, and to hesitant's own data a Prediction with its targets."""

    def predict(self, x: Any, *, batch_size: int | None = None) -> Any:
        """Answers an `Answer` to inputs as ``model.predict`` takes them, to data of `hesitant.compare` a Prediction."""
        given = of_hesitant(x)
        if given is None:
            return self._answer(x, batch_size)
        inputs, targets = given
        return self._answer(np.concatenate(inputs), batch_size or max(map(len, inputs))).prediction(targets)

    @abstractmethod
    def _answer(self, x: Any, batch_size: int | None) -> Answer:
        """Answers about inputs as ``model.predict`` takes them."""


class Deterministic(_Method):
    """A Keras model as it is.

    Args:
        model: A built Keras classifier that answers ``(B, C)``, or ``(B, 1)`` or ``(B,)`` for two classes.
        outputs: ``"logits"`` or ``"probabilities"``: what it answers.

    Raises:
        ValueError: Its last layer shows that it answers probabilities, and ``outputs`` does not say so.
    """

    def __init__(self, model: Any, *, outputs: Outputs = "logits") -> None:
        self.model, self._kind = model, as_kind(outputs, model)

    def _answer(self, x: Any, batch_size: int | None) -> Answer:
        outputs = self.model.predict(x, batch_size=batch_size, verbose=0)
        probs = probabilities(outputs, self._kind)
        return Answer(probs, **logits_and_evidence(outputs, self._kind))


class SNGP(_Method):
    """A Keras model with a `RandomFeatureGaussianProcess` in it, asked for that layer's logits and their variance.

    Whatever the model's own call answers: what it makes of the layer's logits is not looked at.

    Args:
        model: A built model with one such layer.
        mean_field_factor: Of the mean-field logits whose softmax is the answer.

    Raises:
        ValueError: The model has not exactly one such layer; of ``predict``: the weights have moved since
            `fit_covariance`.
    """

    def __init__(self, model: Any, *, mean_field_factor: float = math.pi / 8) -> None:
        self.model, self.mean_field_factor = model, mean_field_factor
        self._posterior = PosteriorPass(model)

    def _answer(self, x: Any, batch_size: int | None) -> Answer:
        self._posterior.require_fitted()
        with one_at_a_time():
            logits, variance = map(wide, self._posterior.predict(x, batch_size=batch_size, verbose=0))
        adjusted = array_of(mean_field_logits(logits, variance, self.mean_field_factor))
        return Answer(
            probabilities(adjusted, "logits"),
            logits=two_columns(logits),
            evidence=centred(adjusted),
            logit_variance=variance,
        )


class MCDropout(_Method):
    """Monte Carlo dropout of a Keras model: passes with dropout on and everything else as in inference.

    Whatever way the model is built, and whether or not its layers were called with ``training=True``. What comes before
    the first dropout is computed once. Nothing of the model changes, batch statistics and seeds included.

    Args:
        model: A built Keras classifier with Dropout layers.
        num_samples: S, the passes.
        outputs: ``"logits"`` or ``"probabilities"``: what the model answers.

    Raises:
        ValueError: The model is not built, has no dropout, or its last layer shows that it answers probabilities and
            ``outputs`` does not say so.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.
    """

    def __init__(self, model: Any, num_samples: int = 100, *, outputs: Outputs = "logits", seed: int = 0) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        self.model, self.num_samples, self.seed = model, num_samples, seed
        self._kind = as_kind(outputs, model)
        self._passes: dict[int, DropoutPasses] = {}
        self._of(passes_at_once(num_samples, _BATCH))  # refuses what has no dropout

    def outputs(self, x: Any, *, batch_size: int | None = None, seed: int | None = None) -> np.ndarray:
        """Answers what the model answered in each pass, ``(S, B, C)``.

        Args:
            x: Inputs, as for ``model.predict``.
            batch_size: Inputs in a batch.
            seed: The same seed draws the same masks for the same batches; None draws one.

        Raises:
            ValueError: No dropout took part.
        """
        batch_size = batch_size or _BATCH
        with one_at_a_time():
            passing = self._of(passes_at_once(self.num_samples, batch_size))
            passing.start_from(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)
            calls = [passing] * -(-self.num_samples // passing.passes)
            parts = _answers_to_the_same(calls, x, batch_size)
        return np.swapaxes(np.concatenate(parts, axis=1), 0, 1)[: self.num_samples]

    def _answer(self, x: Any, batch_size: int | None) -> Answer:
        return of_passes(self.outputs(x, batch_size=batch_size, seed=self.seed), self._kind)

    def _of(self, passes: int) -> DropoutPasses:
        if passes not in self._passes:
            self._passes[passes] = DropoutPasses(self.model, passes)
        return self._passes[passes]


class DeepEnsemble(_Method):
    """Several Keras models of the same classes, asked one after another: the mean of their distributions.

    Args:
        members: Built Keras classifiers.
        outputs: ``"logits"`` or ``"probabilities"``: what they answer.

    Raises:
        ValueError: There are fewer than two, or two of them are the same model or have the same weights.

    Source: Lakshminarayanan, Pritzel and Blundell, "Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles", NeurIPS 2017.
    """

    def __init__(self, members: Sequence[Any], *, outputs: Outputs = "logits") -> None:
        if len(members) < 2:
            raise ValueError(f"members has {len(members)} models: expected at least two.")
        if len({id(member) for member in members}) < len(members):
            raise ValueError("members holds the same model twice: build one for each.")
        self.members = list(members)
        self._kind = [as_kind(outputs, member) for member in members].pop()
        self._require_different()

    @classmethod
    def from_builder(cls, build: Callable[[], Any], num_members: int, *, outputs: Outputs = "logits") -> "DeepEnsemble":
        """Answers an ensemble of models that ``build()`` makes, each with an initialisation of its own.

        Raises:
            ValueError: As the constructor; an initializer with a fixed seed makes all members alike.
        """
        if num_members < 2:
            raise ValueError(f"num_members={num_members} must be at least 2.")
        return cls([build() for _ in range(num_members)], outputs=outputs)

    def fit(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Trains each member by its own ``fit`` with these arguments, and answers their histories.

        Members must be compiled, each with an optimizer of its own.
        """
        return [member.fit(*args, **kwargs) for member in self.members]

    def _answer(self, x: Any, batch_size: int | None) -> Answer:
        self._require_different()
        return of_members(_answers_to_the_same(self.members, x, batch_size), self._kind)

    def _require_different(self) -> None:
        first = self.members[0]
        for place, member in enumerate(self.members[1:], 1):
            if not (first.built and member.built and first.trainable_variables):
                continue
            ours, theirs = first.trainable_variables, member.trainable_variables
            if len(ours) == len(theirs) and all(
                a.shape == b.shape and np.array_equal(array_of(a), array_of(b))
                for a, b in zip(ours, theirs, strict=True)
            ):
                raise ValueError(
                    f"members 0 and {place} have the same weights: an ensemble of them is one model. Does the builder's"
                    " initializer have a fixed seed?"
                )


def _answers_to_the_same(models: Sequence[Any], x: Any, batch_size: int | None) -> list[Any]:
    """Answers what each of the models answers to the same inputs, which are read once where they may come otherwise."""
    if not is_read_once(x):
        return [model.predict(x, batch_size=batch_size, verbose=0) for model in models]
    parts = [[wide(model.predict_on_batch(batch)) for model in models] for batch in batches_of(x, 1)]
    if not parts:
        raise ValueError("x has no batches: expected at least one. A generator that was read already has none left.")
    return [np.concatenate(of_model) for of_model in zip(*parts, strict=True)]
