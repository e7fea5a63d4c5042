"""Which arrays a file of predictions may hold, of which shapes: known from their headers, before one is unpacked."""

from collections.abc import Mapping
from typing import Final

from hesitant.files import ArrayHeader

__all__ = ["COSTS", "KINDS", "OOD", "PARTS", "place_of", "require_fitting"]

KINDS: Final = ("probs", "samples", "logits")  # the first that is there says what the others belong to
# What else a Prediction may hold, so that what save_predictions writes comes back whole.
PARTS: Final = (
    "log_probs",
    "logits",
    "evidence",
    "ood_score",
    "logit_variance",
    "expected_entropy",
    "class_std",
)
_PER_INPUT: Final = ("ood_score", "expected_entropy")
COSTS: Final = ("milliseconds", "parameters", "training_seconds")
OOD: Final = "ood."

_OF_ANY_SET: Final = ("targets", "calibration")
_ALLOWED: Final = {kind: (kind, *_OF_ANY_SET, *(PARTS if kind == "probs" else ())) for kind in KINDS}


def place_of(name: str) -> tuple[str, str]:
    """The out-of-domain set that an array belongs to, "" for the data, and what it is of it.

    Raises:
        ValueError: no array has such a name.
    """
    of, part = "", name
    if name.startswith(OOD):
        of, _, part = name.removeprefix(OOD).rpartition(".")
    known = (*KINDS, *PARTS, *_OF_ANY_SET, *(() if of else COSTS))
    if part not in known or (name.startswith(OOD) and not of):
        raise ValueError(
            f"it holds an array {name!r}, which is none of {', '.join(dict.fromkeys((*KINDS, *PARTS, 'targets')))}, "
            f"{', '.join(COSTS)}: name it as one of these, arrays of an out-of-domain set as ood.NAME.probs"
        )
    return of, part


def require_fitting(headers: Mapping[str, ArrayHeader]) -> None:
    """Checks that all arrays are known, of the right kind of numbers, and fit together.

    Raises:
        ValueError: one is not; the error names it.
    """
    groups: dict[str, dict[str, ArrayHeader]] = {"": {}}
    for name, header in headers.items():
        of, part = place_of(name)
        groups.setdefault(of, {})[part] = header
    data = groups.pop("")
    for part in COSTS:
        if part in data:
            _require(part, data.pop(part), shapes=((), (1,)), kinds="iuf", expected="a single number")
    if "targets" not in data:
        raise ValueError("targets is missing, expected (N,) integers, the true classes")
    num_classes = _classes_of("", data)
    for of, arrays in groups.items():
        found = _classes_of(f"{OOD}{of}.", arrays)
        if found != num_classes:
            raise ValueError(f"{OOD}{of} has {found} classes, the data {num_classes}: predict both with the same model")


def _classes_of(prefix: str, arrays: Mapping[str, ArrayHeader]) -> int:
    """The number of classes of the data or of a set, whose arrays fit together."""
    kind = next((kind for kind in KINDS if kind in arrays), None)
    if kind is None:
        raise ValueError(f"{prefix or 'there '}is none of probs, logits and samples, expected one of them")
    others = [part for part in arrays if part not in _ALLOWED[kind]]
    if others:
        raise ValueError(
            f"{prefix}{others[0]} stands beside {kind}, which it does not belong to: leave one of them out"
        )
    shape = arrays[kind].shape
    num_inputs, num_classes = _size(f"{prefix}{kind}", kind, shape)
    _require(f"{prefix}{kind}", arrays[kind], shapes=(shape,), kinds="f", expected="floating numbers")
    for part in PARTS if kind == "probs" else ():
        if part in arrays:
            expected = (num_inputs,) if part in _PER_INPUT else shape
            _require(f"{prefix}{part}", arrays[part], shapes=(expected,), kinds="f", expected=f"{expected}, as {kind}")
    if "targets" in arrays:
        expected_targets = f"({num_inputs},) integers, one for each input of {kind}"
        _require(f"{prefix}targets", arrays["targets"], shapes=((num_inputs,),), kinds="iub", expected=expected_targets)
    if "calibration" in arrays:
        _require(f"{prefix}calibration", arrays["calibration"], shapes=((),), kinds="u", expected="one unsigned number")
    return num_classes


def _size(name: str, kind: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of inputs and of classes."""
    if kind == "logits" and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        return shape[0], 2
    if kind == "samples":
        if len(shape) == 3 and shape[0] > 0 and shape[2] > 1:
            return shape[1], shape[2]
        raise ValueError(f"{name} has shape {shape}, expected (S, N, C): the probabilities of each member or pass")
    if len(shape) == 2 and shape[1] > 1:
        return shape[0], shape[1]
    raise ValueError(
        f"{name} has shape {shape}, expected (N, C): give every class a column, for a binary model "
        "numpy.stack([1 - p, p], axis=1)"
    )


def _require(name: str, header: ArrayHeader, *, shapes: tuple[tuple[int, ...], ...], kinds: str, expected: str) -> None:
    if header.shape not in shapes:
        raise ValueError(f"{name} has shape {header.shape}, expected {expected}")
    if header.dtype.kind not in kinds:
        raise ValueError(f"{name} has dtype {header.dtype}, expected {expected}")
