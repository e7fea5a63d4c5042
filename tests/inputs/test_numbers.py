from typing import Any

import numpy as np
import pytest
import torch

from hesitant.inputs import as_class_targets, as_targets
from hesitant.inputs.numbers import as_tensor


@pytest.mark.parametrize("dtype", [">f8", "<f4", ">i4", "u2", "?", "f2", "u1"])
def test_arrays_of_any_layout_become_tensors_of_the_same_numbers(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)[:, ::-1]
    array.flags.writeable = False
    tensor = as_tensor("x", array)
    assert tensor.double().tolist() == array.astype(float).tolist()
    assert tensor.dtype != torch.float64


def test_soft_targets_stay_soft_and_one_hot_ones_are_classes() -> None:
    soft = torch.tensor([[0.9, 0.1], [0.25, 0.75]])
    found = as_targets(soft)
    assert found is not None
    assert torch.equal(found, soft)
    hard = as_targets(torch.tensor([[0, 1], [1, 0]]))
    assert hard is not None
    assert hard.tolist() == [1, 0]
    with pytest.raises(ValueError, match="argmax"):
        as_class_targets(soft)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[1, 1], [0, 1]], "multi-hot"),
        ([[1.5, -0.5], [0.5, 0.5]], "below 0"),
        ([[0.3, 0.3]], r"targets\[0\] sums to 0.6"),
        ([0.5, 1.0], "hold 0.5"),
        ([float("nan")], "hold nan"),
        ([[[1]]], r"shape \(1, 1, 1\)"),
    ],
)
def test_targets_that_are_no_classes_are_refused_in_words(targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_targets(torch.tensor(targets))
