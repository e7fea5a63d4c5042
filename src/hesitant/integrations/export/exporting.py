"""The verb: a method is captured, written, asked the example, and only then takes the file's place."""

import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hesitant.evaluation import DeferralPolicy
from hesitant.files import replacing
from hesitant.inputs import Batch, batches
from hesitant.integrations.export.agreement import require_agreement
from hesitant.integrations.export.capture import SequenceAxis, capture
from hesitant.integrations.export.example import Example
from hesitant.integrations.export.metadata import metadata_of
from hesitant.integrations.export.named_answers import NamedAnswers, graph_of, model_of, require_method
from hesitant.integrations.export.onnx_file import OnnxAnswers, write_onnx
from hesitant.integrations.export.pt2_file import ProgramAnswers, write_compiled, write_program
from hesitant.methods import device_of

_SUFFIXES = (".onnx", ".pt2")


def export(
    model: nn.Module,
    path: str | Path,
    example: Any,
    *,
    policy: DeferralPolicy | None = None,
    masks: Literal["drawn", "input"] = "drawn",
    sequence_axis: SequenceAxis = "tokens",
    compiled: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
) -> Path:
    """Writes a method to a file that answers as its ``predict`` does, and answers the file's path.

    The file answers by name, for any number of inputs: ``probs`` ``(B, C)``; ``uncertainty`` ``(B,)``, the prediction's
    ``ood_score``; ``logit_variance`` ``(B, C)`` where the method has one; ``accept`` ``(B,)`` where a policy is given,
    which decides as ``policy.accept`` does. Before it takes its place it is asked the example, and must agree with
    ``model.predict(example)``: after any error the file that was there is as it was.

    Example:
        >>> import torch
        >>> import hesitant
        >>> model = hesitant.Deterministic(torch.nn.Linear(2, 3))
        >>> path = hesitant.export(model, "model.pt2", torch.randn(4, 2))
        >>> sorted(torch.export.load(path).module()(torch.randn(7, 2)))
        ['probs', 'uncertainty']

    Args:
        model: A Deterministic, SNGP (by its mean-field approximation), MCDropout or DeepEnsemble, trained; of an SNGP
            the covariance must be fitted. It is not changed.
        path: Of the file; the suffix says what it is: ``.onnx``, or ``.pt2`` of ``torch.export``. Weights of more than
            2 GB go to a file beside an ``.onnx``, of another name each time, which moves with it.
        example: Some inputs, as for ``predict``, of the shapes that the file is to take, but for how many they are.
        policy: Calibrated on this model's predictions.
        masks: Where MC dropout's masks come from: ``"drawn"`` within the graph, anew with each call (by ONNX's random
            operations, whose seeds are fixed: each session begins with the same; in torch by its own generator), or
            given to it, ``"input"``: booleans ``(S, ...)``, one input ``dropout_masks_0``, ... for each dropout, True
            where it keeps. The file says their shapes, and in its metadata their rates.
        sequence_axis: What else than the number of inputs may differ from the example: ``"tokens"`` the length of
            integer inputs of two axes; a number that axis of every input that has it; None nothing.
        compiled: Whether a ``.pt2`` is compiled by AOTInductor for this machine, which takes a C++ compiler and a
            minute; ``torch._inductor.aoti_load_package`` loads it, and its inputs must be contiguous.
        preprocessing: What is done to an input before the model sees it, as JSON: kept in the file's metadata.
        label_names: Of the classes, kept likewise.

    Returns:
        The path.

    Raises:
        CovarianceError: The covariance of an SNGP is not fitted, or stale.
        TypeError: The model is no method that has a graph, or the example is of an unknown kind.
        ValueError: An argument is out of its range; the policy was calibrated on another method's predictions; the
            model cannot be captured, or what was written does not answer the example as ``predict`` does.
        FileNotFoundError: The folder is not there.
        ImportError: A package is missing; the message names the extra.
    """
    path = Path(path)
    _require_place(path, compiled)
    if masks not in ("drawn", "input"):
        raise ValueError(f"masks={masks!r} is not known: expected 'drawn' or 'input'.")
    method = require_method(model)
    batch = next(iter(batches(example)))
    batch = Batch(batch.args, batch.kwargs).to(device_of(method))
    prediction = method.predict([batch])
    if policy is not None:
        policy.accept(prediction)  # refuses what another method, or another calibration, has made
    asked = Example.of(batch, model_of(method), sequence_axis)
    graph = graph_of(method, asked.with_fixed(), asked.dynamic)
    module = NamedAnswers(method, graph, policy, fixed=asked.fixed, takes_masks=masks == "input")
    given, rates = module.example_masks(asked.few) if masks == "input" else ([], [])
    if masks == "input" and not given:
        raise ValueError(f"masks='input': {type(method).__name__} has no dropout, and takes no masks.")
    metadata = metadata_of(prediction, method, policy, preprocessing, label_names, rates)
    kwargs, dynamic = asked.call(module.signature, given)
    program = capture(module, asked.few.args, kwargs, dynamic)
    with tempfile.TemporaryDirectory(prefix=".hesitant-", dir=path.parent) as folder:
        unfinished = Path(folder) / f"model{path.suffix}"
        weights = Path(folder) / f"{path.name}.{secrets.token_hex(4)}.data"
        if path.suffix == ".onnx":
            write_onnx(program, unfinished, weights, module.names, asked.axis_names(program), metadata)
            answers: Any = OnnxAnswers(unfinished)
        else:
            (write_compiled if compiled else write_program)(program, unfinished, metadata)
            answers = ProgramAnswers(unfinished, compiled=compiled)
        require_agreement(answers, module, asked, given, method)
        if weights.exists():
            os.replace(weights, path.parent / weights.name)
        with replacing(path) as place:
            os.replace(unfinished, place)
    return path


def _require_place(path: Path, compiled: bool) -> None:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path={str(path)!r} ends in {path.suffix!r}: expected one of {', '.join(_SUFFIXES)}.")
    if compiled and path.suffix != ".pt2":
        raise ValueError(f"compiled=True writes a .pt2 of AOTInductor, and path={str(path)!r} is none.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}. Make it first.")
    if path.exists() and not path.is_file():
        raise ValueError(f"path={str(path)!r} is no regular file: name another.")
