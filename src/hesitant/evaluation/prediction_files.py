"""Predictions as files, so that models of any framework can be compared: NumPy's `.npz`, without pickle."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hesitant.evaluation.comparison_columns import Cost
from hesitant.prediction import Prediction, UnavailableError

__all__ = ["PredictionFile", "load_predictions", "save_predictions"]

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
    `(S, N, C)`, the probabilities of S members or passes; `targets` `(N,)`, integers from 0 on; for each out-of-domain
    set one of `ood.NAME.probs`, `ood.NAME.logits` and `ood.NAME.samples`; and, where they are known, the single numbers
    `milliseconds` (an input), `parameters` and `training_seconds`.

    Raises:
        OSError: the file cannot be read.
        TypeError: an array has the wrong kind of numbers.
        ValueError: it is no `.npz`, an array is missing or unknown, or does not fit; the error names file and array.
    """
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with opened as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no .npz of plain arrays ({error}): write one with numpy.savez(path, probs=...)"
        ) from (error)
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
        tensors.pop("targets", None)  # out-of-domain inputs may be of classes that no model knows
        served = tensors.pop("served", None)
        return _of_kind(tensors, targets).with_served(served)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {prefix}{error}") from error


def _of_kind(tensors: dict[str, Tensor], targets: Tensor | None) -> Prediction:
    if "probs" in tensors:
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
