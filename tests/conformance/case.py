"""One recorded case: a file that must be understood and compared to its last key."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .tolerances import FLOAT32, FLOAT64, Tolerances

if TYPE_CHECKING:
    import torch

# PyTorch is imported where a tensor is asked for: the layers of Keras run in processes without it.
_DTYPES = ("float32", "float64")
_MISSING = object()


class CaseError(AssertionError):
    """A case that cannot be read, or that is not met."""


def find_cases(folder: Path) -> list[Path]:
    """Answers every file of the folder and those below it that is not documentation or hidden."""
    if folder.is_file():
        return [folder]
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path
        for path in files
        if path.suffix.lower() not in (".md", ".txt")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


class Case:
    """The arrays and settings of a file, with a record of what was read: an unread key fails the case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays: dict[str, np.ndarray] = {key: file[key] for key in file.files}
        except Exception as error:
            raise CaseError(f"{path} cannot be read as an .npz file: {error}") from error
        if "meta_json" not in self._arrays:
            raise CaseError(f"{path} has no key meta_json: its configuration is unknown.")
        try:
            self._meta = json.loads(str(self._arrays["meta_json"]))
        except json.JSONDecodeError as error:
            raise CaseError(f"{path}: meta_json is not JSON: {error}") from error
        if not isinstance(self._meta, dict):
            raise CaseError(f"{path}: meta_json is {type(self._meta).__name__}, expected an object.")
        self.computed_in_float32 = False  # whatever the dtype of the case
        self._read = {"meta_json"}
        self._read_meta = {"reference"}  # where it was recorded
        self.failures: list[str] = []
        self.errors: dict[str, float] = {}  # key: largest error in units of its tolerance
        self.dtype_name = self.meta("dtype")
        if self.dtype_name not in _DTYPES:
            raise CaseError(f"{path}: dtype={self.dtype_name!r} is not known: expected one of {sorted(_DTYPES)}.")

    # ---------------------------------------------------------------- reading

    @property
    def keys(self) -> list[str]:
        """Answers the names of all arrays."""
        return [key for key in self._arrays if key != "meta_json"]

    @property
    def tolerances(self) -> Tolerances:
        """Answers what this case's precision allows."""
        return FLOAT32 if self.dtype_name == "float32" or self.computed_in_float32 else FLOAT64

    @property
    def dtype(self) -> "torch.dtype":
        """Answers the dtype for PyTorch."""
        import torch

        return getattr(torch, self.dtype_name)

    @property
    def unpatched(self) -> bool:
        """Answers whether a float64 layer was recorded without the repair of its scale constants."""
        return self.dtype_name == "float64" and not self.meta("float64_sqrt_patch", True)

    def has(self, *keys: str) -> bool:
        """Answers whether all these arrays are there."""
        return all(key in self._arrays for key in keys)

    def meta(self, key: str, default: Any = _MISSING) -> Any:
        """Answers a setting."""
        self._read_meta.add(key)
        if key in self._meta:
            return self._meta[key]
        if default is _MISSING:
            raise CaseError(f"{self.path}: meta_json has no {key!r}; it has {sorted(self._meta)}.")
        return default

    def array(self, key: str) -> np.ndarray:
        """Answers an array, and notes that it was read."""
        if key not in self._arrays:
            raise CaseError(f"{self.path}: the key {key!r} is missing; there are {sorted(self.keys)}.")
        self._read.add(key)
        return self._arrays[key]

    def numbers(self, key: str) -> np.ndarray:
        """Answers an array of the case's own dtype."""
        array = self.array(key)
        if array.dtype != np.dtype(self.dtype_name):
            raise CaseError(f"{self.path}: {key} is {array.dtype} in a case of dtype {self.dtype_name}.")
        if not np.isfinite(array).all():
            raise CaseError(f"{self.path}: {key} holds NaN or Inf.")
        return array

    def tensor(self, key: str) -> "torch.Tensor":
        """Answers an array of the case's own dtype for PyTorch."""
        import torch

        return torch.from_numpy(self.numbers(key).copy())

    def ignore(self, key: str, reason: str) -> None:
        """Notes that an array, if it is there, is left out on purpose."""
        if not reason:
            raise ValueError("a reason is needed to leave a key out.")
        self._read.add(key)

    def indices_of(self, prefix: str, suffix: str = "") -> Iterator[int]:
        """Answers 0, 1, ... for as long as the keys ``{prefix}{index}{suffix}`` are there."""
        index = 0
        while f"{prefix}{index}{suffix}" in self._arrays:
            yield index
            index += 1

    # ---------------------------------------------------------------- comparing

    def compare(
        self,
        key: str,
        actual: "torch.Tensor | np.ndarray | float",
        tolerance: "float | np.ndarray",
        *,
        relative_to: "float | np.ndarray | None" = None,
        infinite: bool = False,
        note: str = "",
    ) -> None:
        """Compares with a recorded array; the tolerance multiplies ``relative_to``, or the largest entry if None."""
        self.compare_values(key + note, actual, self.array(key), tolerance, relative_to=relative_to, infinite=infinite)

    def compare_values(
        self,
        name: str,
        actual: "torch.Tensor | np.ndarray | float",
        expected: "np.ndarray | float",
        tolerance: "float | np.ndarray",
        *,
        relative_to: "float | np.ndarray | None" = None,
        infinite: bool = False,
    ) -> None:
        """Notes a failure where two arrays differ by more than the tolerance, or in shape."""
        if not isinstance(actual, (np.ndarray, float, int)) and hasattr(actual, "detach"):
            actual = actual.detach().cpu().numpy()
        ours = np.asarray(actual, dtype=np.float64)
        theirs = np.asarray(expected, dtype=np.float64)
        if ours.shape != theirs.shape:
            self.fail(name, f"shape {ours.shape}, expected {theirs.shape}")
            return
        if theirs.size == 0:
            self.fail(name, "the recorded array is empty")
            return
        if np.isnan(theirs).any() or (np.isinf(theirs).any() and not infinite):
            self.fail(name, "the recorded array holds NaN or Inf")
            return
        if relative_to is None:
            largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
            relative_to = largest if largest > 0 else 1.0
        allowed = np.broadcast_to(np.asarray(tolerance * relative_to, dtype=np.float64), theirs.shape)
        with np.errstate(invalid="ignore"):
            difference = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
        difference = np.where(np.isfinite(difference), difference, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(difference == 0, 0.0, difference / allowed)
        worst = np.unravel_index(int(ratio.argmax()), ratio.shape)
        self.errors[name] = max(self.errors.get(name, 0.0), float(ratio[worst]))
        if ratio[worst] > 1:
            place = tuple(int(i) for i in worst)
            self.fail(
                name,
                f"differs by {difference[worst]:.3g} at {place} (ours {ours[worst]:.17g}, reference"
                f" {theirs[worst]:.17g}), allowed {allowed[worst]:.3g}",
            )

    def expect(self, key: str, truth: bool, message: str) -> None:
        """Compares a recorded truth value with ours."""
        recorded = bool(self.array(key))
        if recorded != truth:
            self.fail(key, f"{message}: ours {truth}, reference {recorded}")

    def fail(self, name: str, message: str) -> None:
        """Notes a failure; all of a case are reported together."""
        self.failures.append(f"{name}: {message}")

    def finish(self) -> None:
        """Raises what was noted, and names every key that nobody read."""
        unread = sorted(set(self._arrays) - self._read)
        if unread:
            self.failures.append(f"keys that the runner does not know: {unread}")
        # Words and truth values describe; a number, a list or a table that nobody reads may be a setting.
        unknown = sorted(
            key
            for key, value in self._meta.items()
            if key not in self._read_meta and value is not None and not isinstance(value, (str, bool))
        )
        if unknown:
            self.failures.append(f"settings that the runner does not know: {unknown}")
        if self.failures:
            raise CaseError(f"{self.path.name}:\n  " + "\n  ".join(self.failures))


class Kind(Protocol):
    """What runs one kind of case: a module."""

    @staticmethod
    def recognises(case: Case) -> bool:
        """Answers whether a case is of this kind."""
        ...

    @staticmethod
    def run(case: Case) -> None:
        """Compares all of a case."""
        ...


def run_by(kinds: Sequence[Kind], path: Path, *, in_float32: "Callable[[Case], bool] | None" = None) -> Case:
    """Runs one file by the kind that it is of, told by its contents and never by its name; answers its record.

    ``in_float32`` tells of a case whether it is computed in float32 whatever its dtype.

    Raises:
        CaseError: The file cannot be read, is of no known kind, is not met, or holds what the runner does not know.
    """
    case = Case(path)
    case.computed_in_float32 = in_float32 is not None and in_float32(case)
    fitting = [kind for kind in kinds if kind.recognises(case)]
    if len(fitting) != 1:
        raise CaseError(
            f"{path} is of {'no' if not fitting else 'more than one'} kind that the runner knows: {sorted(case.keys)}."
        )
    fitting[0].run(case)
    case.finish()
    return case
