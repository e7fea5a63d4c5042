"""JSON from elsewhere, read as it is written: what has two readings, or is no number, is refused."""

import json
import math
from typing import Any, NoReturn

__all__ = ["parse_json"]


def parse_json(text: str) -> Any:
    """What the text says, if it is JSON that every reader reads alike.

    Python's own reader takes NaN and Infinity, reads 1e400 as infinite, lets the last of two equal keys win, and gives
    up on deep nesting with an error of its own.

    Raises:
        ValueError: It is not; the error says what is wrong.
    """
    try:
        return json.loads(text, object_pairs_hook=_unambiguous, parse_float=_finite, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return content


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it holds {digits}, a number that is too large")
    return number


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number of JSON")
