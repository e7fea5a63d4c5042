"""Predictions as files, so that models of any framework can be compared: NumPy's `.npz`, without pickle."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hesitant.evaluation.comparison.columns import Cost
from hesitant.evaluation.comparison.prediction_arrays import COSTS, OOD, PARTS, place_of, require_fitting
from hesitant.files import read_npz, write_npz
from hesitant.prediction import Prediction

__all__ = ["PredictionFile", "load_predictions", "require_same_sets", "save_predictions"]

_T = TypeVar("_T")


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
        OSError: it cannot be written; what was there is as it was.
        ValueError: `path` does not end in `.npz`, or an out-of-domain set has no name.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"path is {str(path)!r}, expected a name that ends in .npz")
    arrays = _arrays(prediction)
    for name, other in ({} if ood is None else ood).items():
        if not name or "\0" in name:
            raise ValueError(f"ood holds the name {name!r}, expected a text without NUL: name the set")
        arrays |= {f"{OOD}{name}.{part}": array for part, array in _arrays(other).items()}
    arrays |= {name: np.asarray(value) for name, value in vars(cost or Cost()).items() if value is not None}
    return write_npz(path, arrays)


def load_predictions(path: str | Path) -> PredictionFile:
    """Reads a method's predictions from a `.npz`, as `numpy.savez` writes it. No pickle is loaded.

    The arrays in it: `probs` `(N, C)`, or in its place `logits` `(N, C)`, `(N,)` for a binary model, or `samples`
    `(S, N, C)`, the probabilities of S members or passes; `targets` `(N,)`, integers from 0 on, or booleans; for each
    out-of-domain set one of `ood.NAME.probs`, `ood.NAME.logits` and `ood.NAME.samples`; and, where they are known, the
    single numbers `milliseconds` (an input), `parameters` and `training_seconds`.

    Names, kinds of numbers and shapes are checked before any array is unpacked.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no `.npz`, or damaged, or an array is missing or unknown, or does not fit; the error names the
            file and the array.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, array in read_npz(path, lambda headers: _naming(path, lambda: require_fitting(headers))).items():
        of, part = place_of(name)
        groups.setdefault(of, {})[part] = array
    data = groups.pop("")
    costs: dict[str, Any] = {
        part: _naming(path, partial(_number, part, data.pop(part))) for part in COSTS if part in data
    }
    return PredictionFile(
        _naming(path, partial(_prediction, data)),
        {of: _naming(path, partial(_prediction, arrays, of)) for of, arrays in groups.items()},
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
            arrays = ", ".join(f"{OOD}{name}.probs" for name in lacking)
            raise ValueError(
                f"{path} lacks {arrays}, which {first_with[lacking[0]]} has: let all methods predict the same "
                "out-of-domain inputs, or leave the set out of all files"
            )


def _naming(path: str | Path, answer: Callable[[], _T]) -> _T:
    """What the function answers; its errors name the file."""
    try:
        return answer()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _arrays(prediction: Prediction) -> dict[str, Any]:
    tensors = {"probs": prediction.probs, "log_probs": prediction.log_probs}
    if prediction.targets is not None:
        tensors["targets"] = prediction.targets
    tensors |= {part: getattr(prediction, part) for part in PARTS[1:] if part in prediction.available}
    if "logits" in tensors and tensors["evidence"] is tensors["logits"]:
        del tensors["evidence"]  # they stand for it, too
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    digest = prediction.calibration
    return arrays if digest is None else {**arrays, "calibration": np.array(int(digest, 16), dtype=np.uint64)}


def _prediction(arrays: Mapping[str, Any], of: str = "") -> Prediction:
    """The prediction of these arrays, those of an out-of-domain set where `of` names one."""
    tensors = {name: _tensor(array) for name, array in arrays.items() if name not in ("targets", "calibration")}
    # Out-of-domain inputs may be of classes that no model knows.
    targets = None if of else _tensor(arrays["targets"]).long()
    try:
        if "probs" in tensors:
            prediction = Prediction(tensors.pop("probs"), targets=targets, **dict[str, Any](tensors))
        elif "samples" in tensors:
            prediction = Prediction.from_samples(tensors["samples"], targets=targets)
        else:
            prediction = Prediction.from_logits(tensors["logits"], targets=targets)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{OOD}{of}.{error}" if of else str(error)) from error
    if "calibration" in arrays:
        return prediction.with_calibration(f"{arrays['calibration'].item():016x}")
    return prediction


def _tensor(array: Any) -> Tensor:
    # torch has no unsigned integers beyond 8 bits that compute.
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" else array)


def _number(name: str, array: Any) -> float | int:
    value: float | int = array.item()
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}, expected a single finite number of at least 0")
    return int(value) if name == "parameters" else float(value)
