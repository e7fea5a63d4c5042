"""A program as an ONNX file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from hesitant.inputs import Batch, tensors_of
from hesitant.integrations.export.capture import quiet, recurrent_layers_kept

_LARGEST = 2_000_000_000  # bytes of weights: a file of ONNX ends at 2 GiB
_RANDOM = ("RandomUniformLike", "RandomUniform", "Bernoulli")


def write_onnx(
    program: ExportedProgram,
    path: Path,
    weights: Path,
    names: list[str],
    axes: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Writes a program.

    Args:
        program: What is written.
        path: Of the file.
        weights: Of the weights, in the same folder, where they are too large to be within.
        names: Of the outputs.
        axes: What an axis of any length is called, by the symbol that the program has for it.
        metadata: Texts that the file carries (``metadata_props``).

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: torch.onnx cannot convert it.
    """
    try:
        import onnx_ir as ir
        import onnxscript
    except ImportError as error:
        raise ImportError("an ONNX file is written by onnx and onnxscript: pip install 'hesitant[onnx]'.") from error
    with quiet(), torch.no_grad(), recurrent_layers_kept():
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                optimize=True,
                verbose=False,
                input_names=list(program.graph_signature.user_inputs),
                output_names=names,
            )
        except Exception as error:  # of torch, onnx_ir, onnxscript: each version has its own
            raise ValueError(
                f"torch.onnx of torch {torch.__version__} with onnxscript {onnxscript.__version__} cannot convert the"
                f" model, which is captured ({_cause(error)}): upgrade torch, with it onnxscript, or write a .pt2."
            ) from error
    assert written is not None
    model = written.model
    # One of its own for each node: two that share a seed would draw the same masks.
    for seed, node in enumerate((node for node in model.graph if node.op_type in _RANDOM), start=1):
        node.attributes["seed"] = ir.AttrFloat32("seed", float(seed))
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, axes, ir) for size in value.shape])
    model.metadata_props.update(metadata)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=weights.name if size > _LARGEST else None)


class OnnxAnswers:
    """Asks a file by ONNX Runtime.

    Args:
        path: Of the file.

    Raises:
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "an ONNX file is asked the example by onnxruntime before it is kept: pip install 'hesitant[onnx]'."
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Answers the outputs by name."""
        tensors = tensors_of(Batch(args, kwargs))
        names = [each.name for each in self._session.get_inputs()]
        given = {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
        outputs = [each.name for each in self._session.get_outputs()]
        answers = self._session.run(outputs, given)
        return {name: torch.from_numpy(answer) for name, answer in zip(outputs, answers, strict=True)}


def _cause(error: BaseException) -> str:
    """Answers what an error that has causes comes from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _values(model: Any) -> list[Any]:
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]


def _renamed(size: Any, axes: Mapping[str, str], ir: Any) -> Any:
    """Answers a size by the names that its symbols are given."""
    if isinstance(size, int) or size.value is None:
        return size
    return ir.SymbolicDim(re.sub(r"\b\w+\b", lambda found: axes.get(found[0], found[0]), size.value))
