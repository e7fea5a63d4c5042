"""Parts of data that share no input: one to train on, one to calibrate, one to test, alike in their classes."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from hesitant.inputs.apportionment import shared_out, sizes_of

__all__ = ["split"]

_TARGET_KEYS = ("labels", "label")


def split(
    data: Any,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    targets: Any = None,
    stratify: bool = True,
) -> tuple[Any, ...]:
    """Answers parts of data: each input is in exactly one of them, and each class is shared out in these proportions.

    The parts are as large as asked for (fractions of N inputs are rounded by the largest remainders, so that the sizes
    sum to N). Of a class with n inputs, a part gets its share of n, rounded up or down; which way, the sizes of the
    parts and the largest remainders decide. A class with fewer inputs than there are parts is therefore missing in
    some: its inputs go to larger parts first. Within a class the seed draws who goes where. The same seed and the same
    targets give the same parts, on every machine and with every version of NumPy and torch. A part keeps the order of
    the data.

    Example:
        >>> import torch
        >>> from hesitant.data import split
        >>> data = torch.randn(1000, 2), torch.arange(1000) % 4
        >>> train, calibration, test = split(data, [0.8, 0.1, 0.1])
        >>> [len(targets) for inputs, targets in (train, calibration, test)]
        [800, 100, 100]
        >>> test[1].bincount()
        tensor([25, 25, 25, 25])

    Args:
        data: A tuple `(inputs, targets)`, where the inputs are a tensor, an array, a frame, or a list or dict of them:
            the parts are such tuples. A dict of them, its targets under `labels`: dicts. Inputs alone, with `targets`
            or `stratify=False`: the like. A Dataset or a list of examples `(inputs, target)` or dicts: `Subset`s,
            nothing of which is loaded. A Hugging Face dataset: its own `select`.
        fractions: One positive number for each part, which sum to 1; or whole numbers, the inputs in each part, which
            sum to N.
        seed: Not negative.
        targets: The class of each input `(N,)`, numbers or names; or distributions over the classes `(N, C)`, whose
            largest entry counts. None looks for them in the data, without loading inputs where it can be told from a
            `TensorDataset`, a `targets` of the Dataset's, a column of a Hugging Face dataset, or parts of these; else
            by going through all examples once.
        stratify: Whether classes are shared out; False draws from all inputs alike and needs no targets.

    Raises:
        TypeError: `data` or an argument is of an unknown type.
        ValueError: A part would be empty, the fractions do not sum to 1 (whole numbers: to N), lengths differ, or there
            are no targets that name one class for each input.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed={seed!r} is no integer of at least 0.")
    if targets is not None and not stratify:
        raise ValueError("targets are given and stratify=False: they would have no part in it. Leave one of them out.")
    number = _length(data)
    sizes = _sizes(fractions, number)
    codes = _classes(_targets_of(data) if targets is None else targets, number) if stratify else np.zeros(number, int)
    # The bits of a generator stay the same from version to version of NumPy; what is drawn by its methods may not.
    bits = np.random.PCG64(int(seed))
    order = np.argsort(bits.random_raw(number), kind="stable")
    by_class = order[np.argsort(codes[order], kind="stable")]
    counts = np.bincount(codes)
    ties = bits.random_raw(len(counts) * len(sizes)).reshape(len(counts), len(sizes))
    table = shared_out(counts, np.asarray(sizes), ties)  # (C, K)
    part = np.empty(number, np.int64)
    part[by_class] = np.repeat(np.tile(np.arange(len(sizes)), len(counts)), table.ravel())
    return tuple(_taken(data, np.flatnonzero(part == k)) for k in range(len(sizes)))


# -------------------------------------------------------------------- how large the parts are


def _sizes(fractions: Any, number: int) -> list[int]:
    if not isinstance(fractions, (list, tuple, np.ndarray)):
        raise TypeError(f"fractions is a {type(fractions).__name__}: expected a list, such as [0.8, 0.1, 0.1].")
    if len(fractions) == 0:
        raise ValueError("fractions is empty: expected one number for each part.")
    for place, fraction in enumerate(fractions):
        if isinstance(fraction, bool) or not isinstance(fraction, Real):
            raise TypeError(f"fractions[{place}]={fraction!r} is no number.")
        if not 0 < float(fraction) < math.inf:
            raise ValueError(f"fractions[{place}]={fraction!r} leaves its part empty: expected a positive number.")
    total = sum(fractions)
    if all(isinstance(fraction, Integral) for fraction in fractions):
        if total != number:
            raise ValueError(
                f"fractions={list(fractions)} are numbers of inputs that sum to {total}, and data holds {number}: every"
                " input belongs to one part. Fractions of it sum to 1, such as [0.8, 0.2]."
            )
        return [int(size) for size in fractions]
    if abs(total - 1) > 1e-6:
        raise ValueError(
            f"fractions={list(fractions)} sum to {float(total):g}, expected 1: every input belongs to one part. Add a"
            " part for the rest."
        )
    sizes = sizes_of([float(fraction) for fraction in fractions], number)
    if 0 in sizes:
        place = sizes.index(0)
        raise ValueError(f"fractions[{place}]={fractions[place]!r} of {number} inputs is none: every part needs one.")
    return sizes


# -------------------------------------------------------------------- what the data is


def _length(data: Any) -> int:
    """Answers N.

    Raises:
        TypeError: The data is of an unknown type.
        ValueError: It is empty, or its lengths differ.
    """
    if isinstance(data, DataLoader):
        raise TypeError("data is a DataLoader, whose order is its own: split its dataset, split(loader.dataset, ...).")
    columns = _columns(data)
    if columns is not None:
        for name, column in columns.items():
            if getattr(column, "ndim", 1) == 0:
                raise ValueError(f"{name} has no axis: expected one row for each input.")
        lengths = {name: len(column) for name, column in columns.items()}
        if not lengths:
            raise TypeError("data holds no tensor and no array: expected one row for each input.")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"data has the lengths {lengths}: expected one row for each input in all of them.")
        number = next(iter(lengths.values()))
    elif isinstance(data, (str, IterableDataset)) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(
            f"data is a {type(data).__name__}, which has no inputs by their place: expected a tuple (inputs, targets),"
            " a dict with labels, a Dataset with a length, or a list of examples."
        )
    else:
        number = len(data)
    if number == 0:
        raise ValueError("data is empty: expected at least one input for each part.")
    return number


def _columns(data: Any) -> dict[str, Any] | None:
    """Answers what of data holds one row for each input, by name; None for a Dataset or a list of examples."""
    if isinstance(data, tuple):
        if len(data) != 2:
            raise TypeError(
                f"data is a tuple of {len(data)}: expected (inputs, targets). Several inputs of a model are a list of"
                " them, ([first, second], targets)."
            )
        inputs = {"inputs": data[0]} if _is_column(data[0]) else _columns(data[0])
        if inputs is None or isinstance(data[0], tuple):
            raise TypeError(
                f"the inputs in data are a {type(data[0]).__name__}: expected a tensor, an array, or a list or dict of"
                " them."
            )
        return inputs if data[1] is None else {**inputs, "targets": data[1]}
    if isinstance(data, Mapping):
        return {str(key): value for key, value in data.items() if _is_column(value)}
    if _is_several(data):
        return {f"inputs[{place}]": value for place, value in enumerate(data)}
    return {"inputs": data} if _is_array(data) else None


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "iloc")  # a frame, or a column of one


def _is_several(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_array(entry) for entry in value)


def _is_column(value: Any) -> bool:
    return _is_array(value) or (isinstance(value, list) and not _is_several(value))


def _is_hugging_face(data: Any) -> bool:
    return hasattr(data, "column_names") and hasattr(data, "select")


def _taken(data: Any, rows: NDArray[np.int64]) -> Any:
    """Answers the part of data that these rows are."""
    if isinstance(data, tuple):
        inputs = _rows_of(data[0], rows) if _is_column(data[0]) else _taken(data[0], rows)
        return inputs, None if data[1] is None else _rows_of(data[1], rows)
    if isinstance(data, Mapping):
        return {key: _rows_of(value, rows) if _is_column(value) else value for key, value in data.items()}
    if _is_several(data):
        return [_rows_of(value, rows) for value in data]
    if _is_array(data):
        return _rows_of(data, rows)
    return data.select(rows) if _is_hugging_face(data) else Subset(data, rows.tolist())


def _rows_of(column: Any, rows: NDArray[np.int64]) -> Any:
    if isinstance(column, Tensor):
        return column[torch.from_numpy(rows).to(column.device)]
    if isinstance(column, (list, tuple)):
        return [column[row] for row in rows]
    return column.iloc[rows] if hasattr(column, "iloc") else column[rows]


# -------------------------------------------------------------------- its classes


def _targets_of(data: Any) -> Any:
    """Answers the targets in data, or None."""
    if isinstance(data, tuple):
        return data[1]
    if isinstance(data, Mapping):
        return _labels(data)
    if _columns(data) is not None:
        return None
    known = _kept_apart(data)
    if known is not None:
        return known
    found = [_target(data[place]) for place in range(len(data))]
    return None if any(target is None for target in found) else found


def _kept_apart(data: Any) -> Any:
    """Answers the targets that can be told without loading an input, or None."""
    if isinstance(data, Subset):
        whole = _kept_apart(data.dataset)
        return None if whole is None else _as_array(whole)[np.asarray(data.indices, np.int64)]
    if isinstance(data, ConcatDataset):
        parts = [_kept_apart(part) for part in data.datasets]
        return None if any(part is None for part in parts) else np.concatenate([_as_array(part) for part in parts])
    if isinstance(data, TensorDataset):
        return data.tensors[1] if len(data.tensors) == 2 else None
    if _is_hugging_face(data):
        name = next((key for key in _TARGET_KEYS if key in data.column_names), None)
        return None if name is None else data[name][:]
    targets = getattr(data, "targets", None) if isinstance(data, Dataset) else None
    alike = isinstance(targets, (Tensor, np.ndarray, list, tuple)) and len(targets) == len(data)
    return targets if alike else None


def _target(example: Any) -> Any:
    if isinstance(example, Mapping):
        return _labels(example)
    return example[1] if isinstance(example, (tuple, list)) and len(example) == 2 else None


def _labels(mapping: Mapping[Any, Any]) -> Any:
    return next((mapping[key] for key in _TARGET_KEYS if key in mapping), None)


def _as_array(targets: Any) -> NDArray[Any]:
    if isinstance(targets, (list, tuple)) and targets and all(isinstance(target, Tensor) for target in targets):
        targets = torch.stack(list(targets))
    if isinstance(targets, Tensor):
        targets = targets.detach().cpu()
        return (targets.double() if targets.is_floating_point() else targets).numpy()  # NumPy knows no bfloat16
    return np.asarray(targets)


def _classes(targets: Any, number: int) -> NDArray[np.int64]:
    """Answers the class of each input `(N,)`, counted from 0.

    Raises:
        ValueError: There are no targets, or they name no class for each input.
    """
    if targets is None:
        raise ValueError(
            "data has no targets to share classes out by: pass targets=, one class for each input, or stratify=False."
        )
    try:
        found = _as_array(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(_no_classes(f"are of no common shape ({error})")) from error
    if found.ndim < 1 or len(found) != number:
        raise ValueError(
            f"targets have the shape {found.shape}, and data holds {number} inputs: expected one for each."
        )
    numbers = found.dtype.kind in "fiub"
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    elif found.ndim == 2 and numbers and bool((found >= 0).all()) and np.allclose(found.sum(1), 1, atol=1e-3):
        found = found.argmax(1)
    if found.ndim != 1:
        raise ValueError(_no_classes(f"have the shape {found.shape} and are no distributions over classes"))
    if found.dtype.kind == "f" and not bool((found == np.round(found)).all()):
        wrong = int(np.flatnonzero(found != np.round(found))[0])
        raise ValueError(_no_classes(f"hold {found[wrong]:g} at place {wrong}"))
    try:
        return np.unique(found, return_inverse=True)[1].reshape(-1)
    except TypeError as error:
        raise ValueError(_no_classes(f"are of several types ({error})")) from error


def _no_classes(reason: str) -> str:
    return (
        f"targets {reason}: expected a class for each input, (N,). Pass targets= with what classes shall be shared out"
        " by, or stratify=False."
    )
