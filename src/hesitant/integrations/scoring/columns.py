"""A batch's columns as a model's inputs: which columns they are, and which of their rows are no input."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Shape = tuple[int, ...]
Inputs = Tensor | dict[str, Tensor]

_SHOWN: Final = 3  # bad rows in an error


class BadInputs(ValueError):
    """A batch that the model cannot be asked about, for what its columns are."""


class BadRows(BadInputs):
    """Rows of a batch that the model cannot be asked about.

    Attributes:
        reasons: by the row's place in the batch, what is wrong with it.
        of: the rows of the batch.
    """

    def __init__(self, reasons: Mapping[int, str], of: int) -> None:
        self.of, self.reasons = of, dict(sorted(reasons.items()))
        shown = "; ".join(self.reasons[row] for row in list(self.reasons)[:_SHOWN])
        more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        super().__init__(
            f"{len(reasons)} of {of} rows cannot be scored: {shown}{more}. Mend or drop them, or mark them and score"
            ' the others: Scorer(..., bad_rows="mark").'
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """By its arguments, not by its text: it comes out of other processes, too."""
        return BadRows, (self.reasons, self.of)


def as_columns(batch: Any) -> dict[str, Array]:
    """The columns of a batch as arrays of one length: of arrays, tensors, series or lists, by name.

    Raises:
        TypeError: it has no columns by name, or one of them is no array.
        BadInputs: it has none at all, or they are of several lengths.
    """
    if not isinstance(batch, Mapping) and not (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        raise TypeError(f"batch is a {type(batch).__name__}: expected columns by name, such as {{'pixels': array}}.")
    columns = {str(name): _as_array(str(name), batch[name]) for name in batch.keys()}  # noqa: SIM118  # a frame's, too
    if not columns:
        raise BadInputs("batch has no columns: expected those of the model's inputs, by name.")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise BadInputs(f"batch has columns of the lengths {lengths}: expected an entry for each row in all of them.")
    return columns


@dataclass(frozen=True)
class InputColumns:
    """Which columns of a batch are the inputs, and what a row of each is.

    Attributes:
        names: the columns; None takes what the model's arguments are called, or the only column that there is.
        shapes: of one row of a column, where it is said.
    """

    names: tuple[str, ...] | None
    shapes: Mapping[str, Shape]

    @classmethod
    def of(cls, inputs: Any) -> "InputColumns":
        """What a scorer's `inputs` mean: a column, several, or a mapping of them to the shape of a row.

        Raises:
            TypeError: they are something else.
            ValueError: they name none.
        """
        if inputs is None:
            return cls(None, {})
        if isinstance(inputs, str):
            return cls((inputs,), {})
        shapes = {}
        if isinstance(inputs, Mapping):
            shapes = {name: tuple(int(axis) for axis in shape) for name, shape in inputs.items() if shape is not None}
        elif not isinstance(inputs, Sequence):
            raise TypeError(f"inputs={inputs!r}: expected a column's name, several, or a mapping of them to shapes.")
        names = tuple(inputs)
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"inputs={inputs!r}: expected the name of at least one column.")
        return cls(names, shapes)

    def chosen(self, columns: Iterable[str], arguments: tuple[str, ...]) -> tuple[str, ...]:
        """Which of a batch's columns are the inputs of a model whose arguments are called so.

        Raises:
            BadInputs: one is missing, or nothing says which.
        """
        present = tuple(columns)
        if self.names is not None:
            missing = [name for name in self.names if name not in present]
            if missing:
                raise BadInputs(f"batch has the columns {list(present)}: expected {missing[0]!r} among them.")
            return self.names
        named = tuple(name for name in present if name in arguments)
        if named:
            return named
        if len(present) == 1:
            return present
        raise BadInputs(
            f"batch has the columns {list(present)}, none of which is an argument of the model, {list(arguments)}: say"
            f" which of them it takes, Scorer(..., inputs={present[0]!r})."
        )

    def tensor(
        self, name: str, column: Array, dtype: torch.dtype, *, whole_stay: bool
    ) -> tuple[Tensor, dict[int, str]]:
        """A column of numbers as a tensor `(B, ...)`, and what is wrong with those of its rows that are no input.

        Such rows are zeros in it. Floating numbers become `dtype`, and so do whole ones, which JSON writes 1.0 as,
        unless they are to stay for a model that looks things up by them.
        """
        shape = self.shapes.get(name)
        reasons: dict[int, str] = {}
        if column.dtype == object:
            column, reasons = _stacked(name, column, shape)
        if column.dtype.kind not in "biuf":
            return torch.zeros(len(column)), {row: _no_number(name, row, column[row]) for row in range(len(column))}
        if shape is not None and column.shape[1:] != shape:
            if column[:1].size != int(np.prod(shape)) * len(column[:1]):
                return torch.zeros(len(column), *shape), {
                    row: _misshapen(name, row, column.shape[1:], shape) for row in range(len(column))
                }
            column = column.reshape(len(column), *shape)
        if column.dtype.kind == "u" and column.dtype.itemsize > 1:
            column = column.astype(np.int64)  # the wider unsigned integers do little in torch
        native = np.require(column, dtype=column.dtype.newbyteorder("="), requirements=["C", "W"])
        tensor = torch.from_numpy(native)
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
            reasons = {**_infinite(name, tensor, native), **reasons}
        return tensor if whole_stay else tensor.to(dtype), reasons


def texts(name: str, column: Array) -> tuple[list[str], dict[int, str]]:
    """A column of texts, and what is wrong with those of its rows that are none, which are empty in it."""
    rows = column.tolist() if column.ndim == 1 else list(column)
    reasons = {
        row: f"row {row} of column {name!r} is {_kind(value)}, expected a text"
        for row, value in enumerate(rows)
        if not isinstance(value, str)
    }
    return ["" if row in reasons else str(value) for row, value in enumerate(rows)], reasons


def taken(inputs: Inputs, rows: Tensor) -> Inputs:
    """Some rows of a model's inputs, in their order."""
    if isinstance(inputs, Tensor):
        return inputs if len(rows) == len(inputs) else inputs[rows]
    return {name: tensor if len(rows) == len(tensor) else tensor[rows] for name, tensor in inputs.items()}


def blank(inputs: Inputs) -> Inputs:
    """A row of zeros in place of a model's inputs."""
    if isinstance(inputs, Tensor):
        return inputs.new_zeros(1, *inputs.shape[1:])
    return {name: tensor.new_zeros(1, *tensor.shape[1:]) for name, tensor in inputs.items()}


def arguments_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    """What the arguments of a model are called."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, parameter in inspect.signature(forward).parameters.items() if parameter.kind in kinds)


def _as_array(name: str, values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if not isinstance(values, np.ndarray):
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TypeError(f"column {name!r} is a {type(values).__name__}: expected an array with a row an entry.")
        values = _of_list(values)
    if values.ndim == 0:
        raise TypeError(f"column {name!r} is one {values.dtype}: expected an array with a row an entry.")
    return values


def _of_list(values: Sequence[Any]) -> Array:
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # rows of several shapes, which are looked at one by one
        array = np.empty(0, dtype=object)
    if array.dtype.kind in "biuf":
        return array
    rows = np.empty(len(values), dtype=object)  # as they were: a list of 1 and "1" is no list of texts
    for place, value in enumerate(values):
        rows[place] = value
    return rows


def _stacked(name: str, column: Array, shape: Shape | None) -> tuple[Array, dict[int, str]]:
    """Rows that are objects, as one array of numbers."""
    rows: list[Array | None] = []
    reasons: dict[int, str] = {}
    for place, value in enumerate(column):
        row = _row(value)
        if row is None:
            reasons[place] = _no_number(name, place, value)
        elif shape is not None and row.shape != shape:
            if row.size == int(np.prod(shape)):
                row = row.reshape(shape)
            else:
                reasons[place], row = _misshapen(name, place, row.shape, shape), None
        rows.append(row)
    good = [row for row in rows if row is not None]
    expected = shape if shape is not None else good[0].shape if good else ()
    for place, row in enumerate(rows):
        if row is not None and row.shape != expected:
            raise BadInputs(
                f"row {place} of column {name!r} has shape {row.shape}, and an earlier one {expected}: bring all to one"
                f" shape, and say which, so that a row that differs is known: Scorer(..., inputs={{{name!r}: shape}})."
            )
    dtype = np.result_type(*good) if good else np.dtype(np.float32)
    stacked = np.zeros((len(rows), *expected), dtype)
    for place, row in enumerate(rows):
        if row is not None:
            stacked[place] = row
    return stacked, reasons


def _row(value: Any) -> Array | None:
    """One row as numbers, or None where it is none."""
    if _missing(value) and not isinstance(value, float):
        return None
    try:
        row = np.asarray(value)
        if row.dtype == object:  # lists of lists that were arrays of arrays, as Arrow and Spark give them
            row = np.asarray([np.asarray(part) for part in value])
            if row.dtype == object:
                row = np.asarray([[np.asarray(entry) for entry in part] for part in value])
    except (TypeError, ValueError, OverflowError):
        return None
    return row if row.dtype.kind in "biuf" else None


def _infinite(name: str, tensor: Tensor, given: Array) -> dict[int, str]:
    # A sum of finite numbers may be infinite, one with an infinite number among them is not finite.
    if bool(torch.isfinite(tensor.sum())):
        return {}
    wrong = (~torch.isfinite(tensor)).flatten(1).any(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
    reasons = {}
    for row in wrong.nonzero().flatten().tolist():
        place = int((~torch.isfinite(tensor[row])).flatten().nonzero()[0]) if tensor.ndim > 1 else 0
        value = given[row].reshape(-1)[place]
        reasons[row] = f"row {row} of column {name!r} holds {value:g}, expected finite numbers of {tensor.dtype}"
    return reasons


def _no_number(name: str, row: int, value: Any) -> str:
    hint = ", and the folder has no tokenizer" if isinstance(value, str) else ""
    return f"row {row} of column {name!r} is {_kind(value)}, expected numbers{hint}"


def _misshapen(name: str, row: int, shape: Shape, expected: Shape) -> str:
    return f"row {row} of column {name!r} has shape {tuple(shape)}, expected {expected}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType"


def _kind(value: Any) -> str:
    if _missing(value):
        return "missing"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, (list, tuple, np.ndarray)):
        return f"a {type(value).__name__} that holds something else, or has parts of several lengths"
    return f"a {type(value).__name__}"
