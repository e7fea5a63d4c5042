"""What the methods of Keras models answer with: arrays, and a `hesitant.Prediction` where one is asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from hesitant.prediction import Prediction

Outputs = Literal["logits", "probabilities"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method answers for B inputs over C classes, as arrays.

    Attributes:
        probs: ``(B, C)``, the predictive distributions.
        samples: ``(S, B, C)`` probabilities whose mean they are, of dropout passes or members; None of one pass.
        logits: ``(B, C)``, before any mean-field adjustment, the mean over passes or members; None of a model that
            answers probabilities.
        evidence: ``(B, C)``, the logits that scores look at, where these are others: SNGP's mean-field logits, and
            ``[-z/2, z/2]`` of a single one.
        logit_variance: ``(B,)``; None where there is none.
    """

    probs: np.ndarray
    samples: np.ndarray | None = None
    logits: np.ndarray | None = None
    evidence: np.ndarray | None = None
    logit_variance: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """``(B,)``: the most probable class."""
        return np.asarray(self.probs.argmax(axis=-1))

    @property
    def class_std(self) -> np.ndarray:
        """``(B, C)``: the standard deviation of each probability over passes or members.

        Raises:
            ValueError: It is the answer of one pass.
        """
        if self.samples is None:
            raise ValueError("class_std is over dropout passes or members, and this is the answer of one pass.")
        return np.asarray(self.samples.std(axis=0))

    def prediction(self, targets: Any = None) -> "Prediction":
        """Answers the same as a `hesitant.Prediction`, with targets ``(B,)`` where they are known; imports PyTorch.

        Raises:
            ImportError: PyTorch is not installed.
        """
        import torch

        from hesitant.prediction import Prediction

        truth = None if targets is None else torch.from_numpy(np.array(targets)).reshape(-1).long()
        logits, evidence = (None if each is None else torch.from_numpy(each) for each in (self.logits, self.evidence))
        if self.samples is not None:
            samples = torch.from_numpy(self.samples)
            return Prediction.from_samples(samples, targets=truth, logits=logits, evidence=evidence)
        variance = None
        if self.logit_variance is not None:
            variance = torch.from_numpy(np.repeat(self.logit_variance[:, None], self.probs.shape[1], axis=1))
        return Prediction(
            torch.from_numpy(self.probs), targets=truth, logits=logits, evidence=evidence, logit_variance=variance
        )


def probabilities(outputs: np.ndarray, kind: Outputs) -> np.ndarray:
    """Answers distributions ``(..., C)`` of what a model answers; one column ``z`` is the class 1 of two.

    Raises:
        ValueError: They are said to be probabilities and are none.
    """
    outputs = wide(outputs)
    if kind == "probabilities":
        if outputs.shape[-1] == 1:
            outputs = np.concatenate([1 - outputs, outputs], axis=-1)
        if not (outputs.min(initial=0) >= 0 and np.abs(outputs.sum(axis=-1) - 1).max(initial=0) < 1e-2):
            raise ValueError(
                'outputs="probabilities", but the model answers rows that are no distributions: say outputs="logits".'
            )
        return np.asarray(outputs / outputs.sum(axis=-1, keepdims=True))
    outputs = two_columns(outputs)
    odds = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))


def of_passes(outputs: np.ndarray, kind: Outputs) -> Answer:
    """Answers the mean of what passes or members answered, ``(S, B, C)``."""
    outputs = wide(outputs)
    samples = probabilities(outputs, kind)
    return Answer(samples.mean(axis=0), samples=samples, **logits_and_evidence(outputs.mean(axis=0), kind))


def logits_and_evidence(outputs: np.ndarray, kind: Outputs) -> dict[str, np.ndarray | None]:
    """Answers what an `Answer` says of logits ``(B, C)``, or of one column of them; of probabilities nothing."""
    if kind == "probabilities":
        return {}
    outputs = wide(outputs)
    return {"logits": two_columns(outputs), "evidence": centred(outputs) if outputs.shape[-1] == 1 else None}


def wide(numbers: np.ndarray) -> np.ndarray:
    """Answers numbers in float32 at least: PyTorch reads no bfloat16 of NumPy's."""
    return np.asarray(numbers, dtype=np.float64 if numbers.dtype == np.float64 else np.float32)


def centred(logits: np.ndarray) -> np.ndarray:
    """Answers logits ``(B, C)``; one column ``z`` is ``[-z/2, z/2]``, for which of two is 0 is a convention."""
    return logits if logits.shape[-1] > 1 else two_columns(logits) - logits / 2


def two_columns(logits: np.ndarray) -> np.ndarray:
    """Answers logits ``(..., C)``; one column ``z`` is ``[0, z]``."""
    return logits if logits.shape[-1] > 1 else np.concatenate([np.zeros_like(logits), logits], axis=-1)


def as_kind(outputs: str, model: Any) -> Outputs:
    """Answers ``outputs``, refused where it is unknown or the model's last layer shows the contrary.

    Raises:
        ValueError: As said.
    """
    if outputs not in ("logits", "probabilities"):
        raise ValueError(f"outputs={outputs!r} is not known: expected 'logits' or 'probabilities'.")
    if outputs == "logits" and _ends_in_probabilities(model):
        raise ValueError(
            f'model {model.name} ends in a softmax or sigmoid: say outputs="probabilities", or let it answer logits.'
        )
    return "logits" if outputs == "logits" else "probabilities"


def _ends_in_probabilities(model: Any) -> bool:
    layers = [layer for layer in getattr(model, "layers", []) if layer.weights or hasattr(layer, "activation")]
    last = layers[-1] if layers else None
    name = getattr(getattr(last, "activation", None), "__name__", "")
    return name in ("softmax", "sigmoid") or type(last).__name__ == "Softmax"


def of_hesitant(data: Any) -> "tuple[list[np.ndarray], np.ndarray | None] | None":
    """Answers the inputs and targets of data that hesitant has made batches of, as `hesitant.compare` does, or None."""
    if isinstance(data, (np.ndarray, dict, str, tuple)) or hasattr(data, "shape") or not isinstance(data, Iterable):
        return None
    if not (type(data).__module__.startswith("hesitant.") or _is_list_of_batches(data)):
        return None
    inputs: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for batch in data:
        if batch.kwargs or len(batch.args) != 1:
            raise ValueError("a Keras model in hesitant.compare takes one input: expected data of (inputs, targets).")
        inputs.append(np.asarray(batch.args[0]))
        if batch.targets is not None:
            targets.append(np.asarray(batch.targets))
    return inputs, np.concatenate(targets) if len(targets) == len(inputs) else None


def _is_list_of_batches(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and type(data[0]).__module__.startswith("hesitant.")
