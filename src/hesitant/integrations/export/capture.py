"""A module captured by ``torch.export``: any number of inputs, sequences of any length."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from hesitant.inputs import Batch, tensors_of
from hesitant.methods.dropout import layer_by_layer

SequenceAxis = int | Literal["tokens"] | None

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def shapes_of(batch: Batch, rows: int, sequence_axis: SequenceAxis) -> dict[int, dict[int, Any]]:
    """Answers which axes of each tensor of a batch have any length, by the tensor's identity.

    Args:
        batch: The inputs.
        rows: B, how many there are: the length of the first axis of what has an entry an input.
        sequence_axis: What else has any length; ``"tokens"``: the second axis of integer inputs of two.

    Raises:
        ValueError: No input has such an axis, or a sequence of the example is of length 1.
    """
    found: dict[int, dict[int, Any]] = {}
    several = False
    for tensor in tensors_of(batch):
        axes: dict[int, Any] = {0: Dim.DYNAMIC} if tensor.ndim and len(tensor) == rows else {}
        if axes and _has_sequence(tensor, sequence_axis):
            axis = 1 if sequence_axis == "tokens" else sequence_axis
            assert isinstance(axis, int)
            if tensor.shape[axis] < 2:
                raise ValueError(
                    f"example holds sequences of length {tensor.shape[axis]}: give one of at least 2 entries, which can"
                    " stand for any length, or sequence_axis=None for that length alone."
                )
            axes[axis], several = Dim.DYNAMIC, True
        found[id(tensor)] = axes
    if isinstance(sequence_axis, int) and not several:
        shapes = [tuple(tensor.shape) for tensor in tensors_of(batch)]
        raise ValueError(f"sequence_axis={sequence_axis}: no input of the example has that axis, of shapes {shapes}.")
    return found


def _has_sequence(tensor: Tensor, sequence_axis: SequenceAxis) -> bool:
    if sequence_axis == "tokens":
        return tensor.ndim == 2 and not tensor.is_floating_point() and tensor.dtype != torch.uint8
    return sequence_axis is not None and tensor.ndim > sequence_axis


def capture(
    module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], dynamic_shapes: dict[str, Any]
) -> ExportedProgram:
    """Answers the program of a module, without gradients.

    Recurrent layers stay one operation a layer where torch can keep them (ONNX has them), so that sequences may have
    any length.

    Raises:
        ValueError: It cannot be captured.
    """
    with quiet(), torch.no_grad(), recurrent_layers_kept():
        try:
            return torch.export.export(module, tuple(args), kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as error:  # of the user's code or of torch's exporter: of any kind
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ValueError(
                "torch.export cannot capture the model. len(x) in its code fixes how many inputs there are, x.shape[0]"
                " does not; where a length of the example is all that it takes, say sequence_axis=None; else its code"
                f" asks its data what to do next: {' '.join(lines[:4])[:600]}"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps to itself what torch's exporters say of their own inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def recurrent_layers_kept() -> Iterator[None]:
    """Has recurrent layers stay one operation where torch can keep them, and not a loop of so many steps."""
    try:
        from torch.export._patches import register_gru_while_loop_decomposition as gru
        from torch.export._patches import register_lstm_while_loop_decomposition as lstm
    except ImportError:  # of a torch that writes the loop out
        yield
        return
    try:
        _forget_dispatch()
        with lstm(), gru():
            yield
    finally:
        _forget_dispatch()


def _forget_dispatch() -> None:
    """Has torch look again what recurrent layers are made of: it keeps what it found before."""
    for operation in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        operation._dispatch_cache.clear()


class LayerByLayer(TorchFunctionMode):
    """Has recurrent networks run layer after layer, the dropout between them in the open.

    AOTInductor of torch 2.14 answers wrongly for two layers in one operation.
    """

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Runs one function."""
        name = getattr(func, "__name__", "")
        if name in _RECURRENT and func is getattr(torch._C._VariableFunctions, name, None):
            packed = not isinstance(args[2], (list, tuple))
            at = 2 if packed else 1
            hidden, weights, has_biases, num_layers, drop_rate, training, *rest = args[at:]
            if num_layers > 1:
                overload = getattr(torch.ops.aten, name)
                rate = drop_rate if training else 0.0
                return layer_by_layer(
                    overload.data if packed else overload.input,
                    (*args[:at], hidden, weights, has_biases, num_layers, rate, training, *rest),
                )
        return func(*args, **(kwargs or {}))
