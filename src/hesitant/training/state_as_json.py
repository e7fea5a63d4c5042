"""The state of an optimizer or a schedule as JSON and tensors: what is nested in what comes back as it was, no pickle.

JSON itself would lose it: tuples become lists, the numbers that are keys become texts, and infinities are none of it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["from_json", "to_json"]


def to_json(state: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """The state as what JSON can hold; its tensors are put into `tensors` under names that begin with `prefix`.

    Args:
        state: None, booleans, numbers, texts and tensors, in lists, tuples, dicts and Counters.
        prefix: Of no other state.
        tensors: Where the tensors go.

    Raises:
        TypeError: It holds something else; the error says what, and where.
    """
    if isinstance(state, np.generic):
        state = state.item()
    if isinstance(state, float) and not math.isfinite(state):
        return {"float": str(float(state))}
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    if isinstance(state, Tensor):
        name = prefix
        while name in tensors:  # of the keys 0 and "0"
            name += "'"
        tensors[name] = state
        return {"tensor": name}
    if isinstance(state, (list, tuple)):
        parts = [to_json(part, f"{prefix}.{place}", tensors) for place, part in enumerate(state)]
        return parts if isinstance(state, list) else {"tuple": parts}
    if isinstance(state, Mapping):
        pairs = [
            [to_json(key, prefix, tensors), to_json(part, f"{prefix}.{key}", tensors)] for key, part in state.items()
        ]
        return {"counter" if isinstance(state, Counter) else "dict": pairs}
    raise TypeError(
        f"{prefix} is a {type(state).__name__}, expected numbers, texts and tensors, in lists, tuples and dicts: a "
        "checkpoint holds no other objects, for these need pickle. Train without a checkpoint, or without that object"
    )


def from_json(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `to_json` made this content of.

    Raises:
        ValueError: The content is not of its making; the error says what is wrong.
    """
    if isinstance(content, list):
        return [from_json(part, tensors) for part in content]
    if not isinstance(content, dict):
        return content
    kind, value = next(iter(content.items())) if len(content) == 1 else ("", None)
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind == "tensor" and isinstance(value, str):
        if value not in tensors:
            raise ValueError(f"it lacks the tensor {value!r}")
        return tensors[value]
    if kind == "tuple" and isinstance(value, list):
        return tuple(from_json(value, tensors))
    if kind in ("dict", "counter") and isinstance(value, list):
        try:
            state = {from_json(key, tensors): from_json(part, tensors) for key, part in value}
        except TypeError as error:
            raise ValueError(f"a {kind} of its state is none ({error})") from error
        return Counter(state) if kind == "counter" else state
    raise ValueError(f"its state holds {str(content)[:80]}, which is no part of one")
