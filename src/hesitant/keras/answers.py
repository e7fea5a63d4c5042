"""What the methods of Keras models answer with: arrays, and a `hesitant.Prediction` where one is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from hesitant.prediction import Prediction

Outputs = Literal["logits", "probabilities"]

_EXPECTED = "(B, C), or (B, 1) or (B,) of a binary model"
# Layers and operations after which a distribution still is one.
_SHAPING = ("Cast", "Dropout", "ExpandDims", "Flatten", "GetItem", "Identity", "Reshape", "Squeeze")


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


def probabilities(outputs: Any, kind: Outputs) -> np.ndarray:
    """Answers distributions ``(B, C)`` of what a model answers; one column ``z`` is the class 1 of two.

    Raises:
        ValueError: As `rows_of`, or they are said to be probabilities and are none.
        TypeError: As `rows_of`.
    """
    return _distributions(rows_of(outputs), kind)


def of_passes(outputs: np.ndarray, kind: Outputs) -> Answer:
    """Answers the mean of what passes or members answered, ``(S, B, C)`` or ``(S, B)``; raises as `probabilities`."""
    outputs = _with_columns(wide(outputs), 1)
    samples = _distributions(outputs, kind)
    return Answer(samples.mean(axis=0), samples=samples, **logits_and_evidence(outputs.mean(axis=0), kind))


def of_members(each: Sequence[Any], kind: Outputs) -> Answer:
    """Answers the mean of what members answered, each ``(B, C)``; raises as `probabilities` and where shapes differ."""
    rows = [rows_of(outputs) for outputs in each]
    for place, outputs in enumerate(rows):
        if outputs.shape != rows[0].shape:
            raise ValueError(
                f"member {place} answers outputs of shape {outputs.shape}, and member 0 {rows[0].shape}: expected"
                " members of the same classes."
            )
    return of_passes(np.stack(rows), kind)


def logits_and_evidence(outputs: Any, kind: Outputs) -> dict[str, np.ndarray | None]:
    """Answers what an `Answer` says of logits ``(B, C)``, or of one column of them; of probabilities nothing."""
    if kind == "probabilities":
        return {}
    outputs = rows_of(outputs)
    return {"logits": two_columns(outputs), "evidence": centred(outputs) if outputs.shape[-1] == 1 else None}


def rows_of(outputs: Any) -> np.ndarray:
    """Answers what a model answered as rows ``(B, C)``; ``(B,)`` is one column.

    Raises:
        ValueError: It is no single array, or has other axes, or holds NaN or Inf.
        TypeError: Its numbers are not floating.
    """
    return _with_columns(wide(outputs), 0)


def wide(numbers: Any) -> np.ndarray:
    """Answers numbers in float32 at least: PyTorch reads no bfloat16 of NumPy's.

    Raises:
        ValueError: They are several arrays, or one is NaN or Inf.
        TypeError: They are not floating.
    """
    if not hasattr(numbers, "dtype"):
        raise ValueError(
            f"the model answers a {type(numbers).__name__} of {_parts_of(numbers)}: expected one array, {_EXPECTED}."
            " Build a model of the output that is meant; of one that answers logits and their covariance, let"
            " hesitant.keras.SNGP answer, or leave the covariance out by return_gp_cov=False."
        )
    if numbers.dtype.kind not in "fV":  # V: bfloat16
        raise TypeError(
            f"the model answers numbers of dtype {numbers.dtype}: expected a floating one, {_EXPECTED}. Let it answer"
            " logits, and no classes."
        )
    numbers = np.asarray(numbers, dtype=np.float64 if numbers.dtype == np.float64 else np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        place = tuple(int(axis) for axis in np.argwhere(~finite)[0])
        raise ValueError(
            f"what the model answers is {numbers[place]} at {list(place)}, in {int((~finite).sum())} of {finite.size}"
            " numbers: expected finite ones. Look for the input or weight that made it."
        )
    return numbers


def _with_columns(outputs: np.ndarray, leading: int) -> np.ndarray:
    """Answers ``(..., B, C)`` of as many axes before B; those of ``(..., B)`` are single logits or probabilities."""
    outputs = outputs[..., None] if outputs.ndim == leading + 1 else outputs
    if outputs.ndim != leading + 2 or outputs.shape[-1] == 0:
        raise ValueError(
            f"the model answers outputs of shape {outputs.shape[leading:]}: expected one row an input, {_EXPECTED}."
            " Build a model of the output that is meant; of answers for each step or pixel, pool or flatten them."
        )
    return outputs


def _parts_of(outputs: Any) -> str:
    named = outputs.items() if isinstance(outputs, dict) else enumerate(outputs) if hasattr(outputs, "__iter__") else ()
    return ", ".join(f"{name!r} {tuple(getattr(part, 'shape', ()))}" for name, part in named) or "nothing"


def _distributions(outputs: np.ndarray, kind: Outputs) -> np.ndarray:
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
    layers = [
        layer
        for layer in getattr(model, "layers", [])
        if layer.weights or hasattr(layer, "activation") or _name_of(layer)
    ]
    ends = layers[-1:] + [_maker_of(output) for output in getattr(model, "outputs", None) or []]
    return any(_answers_probabilities(end) for end in ends)


def _answers_probabilities(operation: Any) -> bool:
    """Answers whether a layer, a nested model or an operation on tensors shows that it makes probabilities."""
    operation = getattr(operation, "layer", operation)  # within a wrapper, as SpectralNormalization
    return _name_of(operation) in ("softmax", "sigmoid") or _ends_in_probabilities(operation)


def _name_of(operation: Any) -> str:
    """Answers the name of an activation, wherever the operation has it; none of a layer that has no such thing."""
    kind = type(operation).__name__
    if kind in ("Softmax", "Sigmoid"):
        return kind.lower()
    function = getattr(operation, "activation", getattr(operation, "function", None))  # the latter of a Lambda
    return str(getattr(function, "__name__", ""))


def _maker_of(output: Any) -> Any:
    """Answers the operation that made the numbers of a functional model's output; None where that is not known."""
    operation = None
    while hasattr(output, "_keras_history"):  # Keras has no public way from a tensor to what made it
        operation, node, _ = output._keras_history
        is_cast = _name_of(operation) == "linear" and not operation.weights  # Activation("linear", dtype="float32")
        if not (is_cast or type(operation).__name__ in _SHAPING):
            break
        output = operation._inbound_nodes[node].input_tensors[0]
    return operation


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
