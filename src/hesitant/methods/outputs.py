"""What a model answers: where its logits are, whether they are logits at all, and one row for each input."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from hesitant.prediction import exact_log, two_class_logits

Outputs = Literal["logits", "probabilities"]

_ENOUGH_ROWS = 16  # that all lie near a distribution by chance never do
_NEAR = 1e-2
_FAR = 0.1  # from 1: a clamp of many classes, or a rounding, moves a sum, and less so than other outputs do
_aten = torch.ops.aten
_ACTIVATIONS = {
    _aten._softmax.default: "softmax",
    _aten.softmax.int: "softmax",
    _aten.sigmoid.default: "sigmoid",
    _aten.sigmoid_.default: "sigmoid",
}
# What a model may do to probabilities without making logits of them again.
_ROUNDING = {"clamp", "clamp_min", "clamp_max", "round", "nan_to_num", "_to_copy", "clone", "copy_"}
_AVERAGING = {"add", "stack", "cat", "mean", "div"}
_EPSILON = 1e-2  # the most that is added to probabilities to keep them off 0


def require_outputs_argument(outputs: Any) -> None:
    """Raises ValueError for what is none of the two kinds of outputs."""
    if outputs not in ("logits", "probabilities"):
        raise ValueError(
            f"outputs={outputs!r} is not known: expected 'logits', or 'probabilities' for a model that ends in a"
            " softmax or sigmoid."
        )


def logits_of(output: Any) -> Tensor:
    """Answers the logits in what a model answered: a tensor, an object or dict with ``logits``, or a tuple's first.

    Raises:
        TypeError: There are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return logits_of(output["logits"])
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(
        f"the model answered a {type(output).__name__}: expected a tensor of logits (B, C), or something that carries"
        " them as .logits."
    )


def with_logits(output: Any, log_probs: Tensor, targets: Tensor | None) -> Any:
    """Answers a copy of what a model answered with ``log_probs`` ``(B, C)`` for its logits.

    The logits of a binary model with a single one become the one whose sigmoid is the probability of class 1. A loss
    becomes the mean cross-entropy with ``targets``, or None where there are none.
    """
    before = logits_of(output)
    if before.ndim == 1 or before.shape[-1] == 1:
        log_probs = (log_probs[:, 1] - log_probs[:, 0]).reshape(before.shape)
    if isinstance(output, Tensor):
        return log_probs
    if isinstance(output, tuple) and hasattr(output, "_replace"):
        named: Any = output
        return named._replace(**{"logits" if hasattr(output, "logits") else named._fields[0]: log_probs})
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        return type(output)((log_probs, *output[1:]))
    output = copy.copy(output)
    if hasattr(output, "logits"):
        output.logits = log_probs
    else:
        output["logits"] = log_probs
    if getattr(output, "loss", None) is not None:
        output.loss = None if targets is None else F.nll_loss(F.log_softmax(two_class_logits(log_probs), -1), targets)
    return output


def require_rows(logits: Tensor, num_inputs: int | None, model: Any) -> Tensor:
    """Answers a model's logits, if they are one row ``(B, C)``, or one number ``(B,)``, for each of its inputs.

    Raises:
        ValueError: They are not.
    """
    # len() would fix their number where a graph is traced.
    if logits.ndim in (1, 2) and logits.shape[-1] > 0 and (num_inputs is None or num_inputs == logits.shape[0]):
        return logits
    advice = "expected one row for each input, (B, C), or (B, 1) or (B,) for a binary model"
    if num_inputs == 1 and logits.ndim < 2:
        advice += ". A model that squeezes its output loses the axis of a single input: let it keep that"
    elif logits.ndim == 2 and logits.shape[-1] == num_inputs:
        advice += ". The inputs stand along the last axis: transpose the output"
    elif logits.ndim == 3:
        advice += ". One answer for each token is not what is asked for here"
    raise ValueError(
        f"{type(model).__name__} answers logits of shape {tuple(logits.shape)}"
        f"{'' if num_inputs is None else f' for {num_inputs} inputs'}: {advice}."
    )


def log_probs_of(output: Tensor, outputs: Outputs) -> Tensor:
    """Answers the log-probabilities ``(B, C)`` of a model's output: logits, a single one, or probabilities.

    Probabilities are divided by their sum, which a clamp, an epsilon or half precision moves away from 1.
    """
    output = output.float() if output.dtype.itemsize < 4 else output
    if outputs == "logits":
        return torch.log_softmax(two_class_logits(output), -1)
    if output.ndim == 1 or output.shape[-1] == 1:
        single = output.reshape(-1)
        output = torch.stack([1 - single, single], -1)  # (B, 2)
    positive = output.clamp(min=0)
    return exact_log(positive / positive.sum(-1, keepdim=True))


def require_kind(output: Tensor, outputs: Outputs, model: Any) -> None:
    """Raises where the numbers of many inputs contradict what a model's outputs are said to be.

    Raises:
        ValueError: Logits that are all near a distribution, or probabilities that are none.
    """
    rows = output.shape[0]
    if rows == 0:
        return
    single = output.ndim == 1 or output.shape[-1] == 1
    if outputs == "logits":
        if single or rows < _ENOUGH_ROWS or bool(output.amin() < -_NEAR):
            return
        if bool(((output.double().sum(-1) - 1).abs() <= _NEAR).all()):
            raise ValueError(
                f"all {rows} rows that {type(model).__name__} answers are near a distribution over the classes:"
                " they are probabilities, and not the logits that they are taken for. Say so: outputs='probabilities'."
            )
        return
    low, high = output.amin(), output.amax()
    sums = output.double() if single else output.double().sum(-1)
    wrong = (sums < -_NEAR) | (sums > 1 + _NEAR) if single else (sums - 1).abs() > _FAR
    if bool(wrong.any()) or bool(low < -_NEAR) or bool(high > 1 + _FAR):
        raise ValueError(
            f"{type(model).__name__} answers numbers from {low.item():.4g} to {high.item():.4g}, in rows that sum to"
            f" {sums.amin().item():.4g} to {sums.amax().item():.4g}: these are no probabilities of the classes, as"
            " outputs='probabilities' says. Logits are outputs='logits'; a class of several at a time is not one"
            " distribution."
        )


class Ending:
    """What is known of how a model's code ends, once it has been looked at: the same whoever looks, and how often."""

    def __init__(self, seen: bool = False) -> None:
        self.seen = seen


class OutputProbe(TorchDispatchMode):
    """Sees by which operation a model ends, while it runs: a softmax or a sigmoid makes probabilities.

    What only clamps, rounds, rescales or averages probabilities leaves them what they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._activated: dict[int, tuple[str, Any]] = {}  # by memory, which is kept from being given away

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, for seconds, only to keep it away from here

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation, and notes whether it makes probabilities, or keeps them."""
        answer = func(*args, **(kwargs or {}))
        if isinstance(answer, Tensor) and answer.layout == torch.strided and not func.is_view:
            name = _ACTIVATIONS.get(func) or self._kept(func.overloadpacket.__name__.rstrip("_"), args)
            memory = _memory(answer)
            self._activated.pop(memory, None)
            if name is not None:
                self._activated[memory] = name, answer
        return answer

    def _kept(self, func: str, args: Sequence[Any]) -> str | None:
        """Answers what has made probabilities of the tensors that an operation is given, if it leaves them that."""
        if func not in _ROUNDING and func not in _AVERAGING:
            return None
        entries = [entry for arg in args for entry in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        given = [entry for entry in entries if isinstance(entry, Tensor)]
        found = [self._activated.get(_memory(entry)) for entry in given]
        if not found or found[0] is None:
            return None
        if func in _ROUNDING:
            return found[0][0]
        others = [entry for entry in entries[1:] if isinstance(entry, (int, float))]
        if func == "add" and len(given) == 1:
            return found[0][0] if all(abs(number) <= _EPSILON for number in others) else None
        if func == "div" and len(given) == 2:  # by their sums
            return found[0][0] if given[1].numel() < given[0].numel() else None
        return found[0][0] if all(entry is not None for entry in found) else None

    def require(self, logits: Tensor, outputs: Outputs, model: Any) -> None:
        """Raises where the code contradicts what the outputs are said to be.

        Raises:
            ValueError: It does.
        """
        found = self._activated.get(_memory(logits)) if logits.layout == torch.strided else None
        if found is None or outputs == "probabilities":
            return
        advice = "Say so, outputs='probabilities', or leave the last operation out."
        if found[0] == "sigmoid" and logits.ndim == 2 and logits.shape[-1] > 1:
            advice += " Sigmoids of several classes by themselves are no distribution over them."
        raise ValueError(
            f"{type(model).__name__} ends in a {found[0]}: its outputs are probabilities, and not the logits that they"
            f" are taken for. {advice}"
        )


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)
