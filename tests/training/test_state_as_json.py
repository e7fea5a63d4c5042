import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from hesitant.training.state_as_json import from_json, to_json


def returned(state):
    tensors = {}
    text = json.dumps(to_json(state, "state", tensors), allow_nan=False)
    return from_json(json.loads(text), tensors)


def assert_same(first, second):
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second or (first != first and second != second)


STATES = {
    "plain": [None, True, 1, 10**30, 0.1, -0.0, "text", ""],
    "not finite": [math.inf, -math.inf, math.nan],
    "keys": {0: "zero", "0": "text", None: 1, True: 2, 1.5: 3, (1, "a"): 4},
    "tuples": ((1, 2), [3, (4,)], ()),
    "milestones": {"milestones": Counter({3: 2, 1: 1})},
    "tensors": {"state": {0: {"step": torch.tensor(3.0), "old": [torch.ones(2), torch.zeros(1)]}}},
    "tensors of like keys": {0: torch.zeros(1), "0": torch.ones(1), "0'": torch.full((1,), 2.0)},
    "what looks like a tensor": {"tensor": "state.a", "a": torch.ones(1)},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_state_comes_back_as_it_was(state):
    assert_same(returned(state), state)


def test_numbers_of_numpy_come_back_as_those_of_python():
    assert_same(returned([np.float32(0.5), np.int64(3), np.bool_(True)]), [0.5, 3, True])


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", 1j, lambda: 0, torch.float32], ids=lambda value: type(value).__name__
)
def test_what_needs_pickle_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"state\.groups\.1 is a \w+, expected"):
        to_json({"groups": [0, value]}, "state", {})


@pytest.mark.parametrize(
    "content",
    [{}, {"a": 1}, {"float": 1}, {"tensor": 1}, {"tensor": "b"}, {"tuple": 1}, {"dict": 1}, {"dict": [1]},
     {"dict": [[1]]}, {"counter": [[[], 1]]}, {"dict": [], "tuple": []}, [[{"x": 0}]]],
    ids=str,
)  # fmt: skip
def test_what_it_did_not_make_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        from_json(content, {"a": torch.ones(1)})
