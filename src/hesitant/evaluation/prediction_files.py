"""Predictions as files, so that models of any framework can be compared: NumPy's `.npz`, without pickle."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesitant.evaluation.comparison_columns import Cost
from hesitant.prediction import Prediction, UnavailableError

__all__ = ["PredictionFile", "load_predictions", "require_same_sets", "save_predictions"]

_KINDS: Final = ("probs", "logits", "samples")
# What else a Prediction may hold, so that what save_predictions writes comes back whole.
_PARTS: Final = ("log_probs", "logits", "logit_variance", "expected_entropy", "class_std")
_COSTS: Final = ("milliseconds", "parameters", "training_seconds")
_OOD: Final = "ood."


@dataclass(frozen=True, eq=False)
class PredictionFile:
    """What a file of predictions holds.

    Attributes:
        prediction: on the data, with targets where they are known.
        ood: on each out-of-domain set, by its name.
        cost: what is known of it.
    """

    prediction: Prediction
    ood: Mapping[str, Prediction] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


def save_predictions(
    path: str | Path,
    prediction: Prediction,
    *,
    ood: Mapping[str, Prediction] | None = None,
    cost: Cost | None = None,
) -> Path:
    """Writes a method's predictions as a `.npz`, all of it, and answers with the path; `load_predictions` reads it.

    Args:
        path: the file; what is there is written over.
        prediction: on the data.
        ood: on each out-of-domain set, by its name.
        cost: what is known of it.

    Raises:
        ValueError: `path` does not end in `.npz`.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"path is {str(path)!r}, expected a name that ends in .npz")
    arrays = _arrays(prediction)
    for name, other in ({} if ood is None else ood).items():
        arrays |= {f"{_OOD}{name}.{part}": array for part, array in _arrays(other).items()}
    arrays |= {name: np.asarray(value) for name, value in vars(cost or Cost()).items() if value is not None}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return Path(path)


def load_predictions(path: str | Path) -> PredictionFile:
    """Reads a method's predictions from a `.npz`, as `numpy.savez` writes it. No pickle is loaded.

    The arrays in it: `probs` `(N, C)`, or in its place `logits` `(N, C)`, `(N,)` for a binary model, or `samples`
    `(S, N, C)`, the probabilities of S members or passes; `targets` `(N,)`, integers from 0 on, or booleans; for each
    out-of-domain set one of `ood.NAME.probs`, `ood.NAME.logits` and `ood.NAME.samples`; and, where they are known, the
    single numbers `milliseconds` (an input), `parameters` and `training_seconds`.

    Raises:
        OSError: the file cannot be read.
        TypeError: an array has the wrong kind of numbers.
        ValueError: it is no `.npz`, an array is missing or unknown, or does not fit; the error names file and array.
    """
    arrays = _read(path)
    groups: dict[str, dict[str, Any]] = {"": {}}
    costs: dict[str, Any] = {}
    for key, array in arrays.items():
        of, part = key.rsplit(".", 1) if key.startswith(_OOD) and key.count(".") > 1 else ("", key)
        if part in _COSTS and not of:
            costs[part] = _number(path, key, array)
        elif part in (*_KINDS, *_PARTS, "targets", "served"):
            groups.setdefault(of, {})[part] = array
        else:
            raise ValueError(
                f"{path} holds an array {key!r}, which is none of {', '.join((*_KINDS, *_PARTS, 'targets', *_COSTS))}: "
                "name it as one of these, arrays of an out-of-domain set as ood.NAME.probs"
            )
    return PredictionFile(
        _prediction(path, "", groups.pop("")),
        {of.removeprefix(_OOD): _prediction(path, f"{of}.", group) for of, group in groups.items()},
        Cost(**costs),
    )


def require_same_sets(files: Mapping[str, PredictionFile]) -> None:
    """Checks that every file has all out-of-domain sets that another one has.

    Args:
        files: what each file holds, by its path.

    Raises:
        ValueError: a file lacks arrays; the error says which, and which file has them.
    """
    first_with = {name: path for path, file in reversed(list(files.items())) for name in file.ood}
    for path, file in files.items():
        lacking = [name for name in first_with if name not in file.ood]
        if lacking:
            arrays = ", ".join(f"{_OOD}{name}.probs" for name in lacking)
            raise ValueError(
                f"{path} lacks {arrays}, which {first_with[lacking[0]]} has: let all methods predict the same "
                "out-of-domain inputs, or leave the set out of all files"
            )


def _read(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file. What NumPy says of a bad one is left out: it advises to allow pickle."""
    write = "write it with numpy.savez(path, probs=..., targets=...)"
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is no .npz of plain arrays, expected a zip of them: {write}")
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = _numbers(path, name, archive)
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, expected an .npz of plain arrays: {write}") from error
    return arrays


def _numbers(path: str | Path, name: str, archive: Any) -> NDArray[Any]:
    try:
        array = archive[name]
    except ValueError:
        array = None
    if not isinstance(array, np.ndarray):
        raise ValueError(
            f"{path}: {name} is no array of plain numbers, but of Python objects, or damaged: give it a dtype of "
            "numbers before numpy.savez"
        ) from None
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{path}: {name} has dtype {array.dtype}, expected numbers: number classes from 0 on")
    return array


def _arrays(prediction: Prediction) -> dict[str, Any]:
    arrays = {"probs": prediction.probs, "log_probs": prediction.log_probs}
    if prediction.targets is not None:
        arrays["targets"] = prediction.targets
    if prediction.served is not None:
        arrays["served"] = prediction.served
    for part in _PARTS[1:]:
        try:
            arrays[part] = getattr(prediction, part)
        except UnavailableError:
            continue
    return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def _prediction(path: str | Path, prefix: str, group: dict[str, Any]) -> Prediction:
    """The prediction of these arrays. Errors name the file, and the arrays by their own names."""
    try:
        tensors = {name: _tensor(array) for name, array in group.items()}
        if not prefix and "targets" not in tensors:
            raise ValueError("targets is missing, expected (N,) integers, the true classes")
        targets = None if prefix else tensors.pop("targets")
        if targets is not None and targets.dtype == torch.bool:
            targets = targets.long()
        tensors.pop("targets", None)  # out-of-domain inputs may be of classes that no model knows
        served = tensors.pop("served", None)
        return _of_kind(tensors, targets).with_served(served)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {prefix}{error}") from error


def _of_kind(tensors: dict[str, Tensor], targets: Tensor | None) -> Prediction:
    if "probs" in tensors:
        shape = tuple(tensors["probs"].shape)
        if len(shape) != 2:
            raise ValueError(
                f"probs has shape {shape}, expected (N, C): give every class a column, for a binary model "
                "numpy.stack([1 - p, p], axis=1)"
            )
        _require_only(tensors, ("probs", *_PARTS))
        return Prediction(tensors.pop("probs"), targets=targets, **dict[str, Any](tensors))
    if "samples" in tensors:
        _require_only(tensors, ("samples",))
        return Prediction.from_samples(tensors["samples"], targets=targets)
    if "logits" in tensors:
        _require_only(tensors, ("logits",))
        return Prediction.from_logits(tensors["logits"], targets=targets)
    raise ValueError("there is none of probs, logits and samples, expected one of them")


def _require_only(tensors: Mapping[str, Tensor], allowed: tuple[str, ...]) -> None:
    others = [name for name in tensors if name not in allowed]
    if others:
        raise ValueError(f"{others[0]} stands beside {allowed[0]}, which it does not belong to: leave one of them out")


def _tensor(array: Any) -> Tensor:
    # torch has no unsigned integers beyond 8 bits that compute, and takes no array of another byte order.
    native = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(native.astype(np.int64) if native.dtype.kind == "u" else native)


def _number(path: str | Path, name: str, array: Any) -> float | int:
    if array.size != 1 or array.dtype.kind not in "iuf" or not array.item() >= 0:
        raise ValueError(f"{path}: {name} is {array!r}, expected a single number of at least 0")
    value: float | int = array.item()
    return int(value) if name == "parameters" else float(value)
