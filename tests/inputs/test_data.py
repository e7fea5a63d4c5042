"""What data is: every way of writing the same inputs and targets gives the same batches, to every verb."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from hesitant.inputs import Batch, as_class_targets, batches

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10) % 3


class Rows(Dataset[Any]):
    """Ten inputs, as whatever ``item`` makes of each."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        if index >= 10:
            raise IndexError(index)
        return self.item(X[index], int(Y[index]))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(X, Y, strict=True)


class HuggingFace:
    """What a ``datasets.Dataset`` is to us: columns of Python's own lists and numbers."""

    column_names = ("x", "label", "text")

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": X[index].tolist(), "label": int(Y[index]), "text": f"text {index}"}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def pairs() -> Iterator[Any]:
    return ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 10, 4))


def list_of_own_collate(examples: list[Any]) -> Any:
    return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])


WITH_TARGETS: dict[str, Any] = {
    "tuple": lambda: (X, Y),
    "tuple of arrays": lambda: (X.numpy(), Y.numpy()),
    "float64 arrays, int32 targets": lambda: (X.numpy().astype(np.float64), Y.numpy().astype(np.int32)),
    "frame and series": lambda: (pd.DataFrame(X.numpy()), pd.Series(Y.numpy())),
    "list of targets": lambda: (X, Y.tolist()),
    "column of targets": lambda: (X, Y.unsqueeze(1)),
    "float targets": lambda: (X, Y.float()),
    "one-hot targets": lambda: (X, torch.nn.functional.one_hot(Y, 3)),
    "list of one input": lambda: ([X], Y),
    "dict": lambda: {"x": X, "labels": Y},
    "dict of arrays": lambda: {"x": X.numpy(), "label": Y.numpy()},
    "dict and targets": lambda: ({"x": X}, Y),
    "Dataset of tuples": lambda: TensorDataset(X, Y),
    "Dataset of dicts": lambda: Rows(lambda x, y: {"x": x, "labels": y}),
    "Dataset of dicts and targets": lambda: Rows(lambda x, y: ({"x": x}, y)),
    "Dataset of arrays": lambda: Rows(lambda x, y: (x.numpy().astype(np.float64), y)),
    "Hugging Face dataset": HuggingFace,
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "DataLoader of dicts": lambda: DataLoader(Rows(lambda x, y: {"x": x, "labels": y}), batch_size=4),
    "unbatched DataLoader": lambda: DataLoader([(X[:5], Y[:5]), (X[5:], Y[5:])], batch_size=None),  # type: ignore[arg-type]
    "DataLoader with a collate_fn": lambda: DataLoader(Rows(lambda x, y: (x, y)), 4, collate_fn=list_of_own_collate),
    "IterableDataset": Stream,
    "DataLoader of an IterableDataset": lambda: DataLoader(Stream(), batch_size=4),
    "list of tuples": lambda: list(zip(X, Y, strict=True)),
    "list of dicts": lambda: [{"x": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)],
    "generator of batches": pairs,
}


def inputs_of(batch: Batch) -> Tensor:
    (value,) = (*batch.args, *batch.kwargs.values())
    assert isinstance(value, Tensor)
    return value


@pytest.mark.parametrize("kind", WITH_TARGETS)
def test_all_ways_of_writing_inputs_and_targets_mean_the_same(kind: str) -> None:
    for batch_size in (None, 3):
        parts = list(batches(WITH_TARGETS[kind](), batch_size))
        assert torch.equal(torch.cat([inputs_of(part) for part in parts]), X)
        targets = [as_class_targets(part.targets) for part in parts]
        assert all(target is not None and target.dtype == torch.int64 for target in targets)
        assert torch.equal(torch.cat([target for target in targets if target is not None]), Y)
        assert [part.num_inputs for part in parts] == [len(inputs_of(part)) for part in parts]
        assert all(inputs_of(part).dtype == torch.float32 for part in parts)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_batches_have_the_size_that_is_asked_for(batch_size: int) -> None:
    for data in ((X, Y), TensorDataset(X, Y), Stream(), list(zip(X, Y, strict=True))):
        assert [part.num_inputs for part in batches(data, batch_size)] == [len(part) for part in X.split(batch_size)]


def test_a_list_or_a_dict_of_tensors_is_several_inputs_of_the_model() -> None:
    loader = DataLoader(Rows(lambda x, y: [x, -x]), batch_size=4)
    for data in ([X, -X], [X.numpy(), -X], ([X, -X], None), Rows(lambda x, y: [x, -x]), loader):
        parts = list(batches(data, 4))
        assert [len(part.args) for part in parts] == [2, 2, 2]
        assert parts[0].targets is None
        torch.testing.assert_close(parts[0].args[1], -X[:4])
    with_targets = next(batches(([X, -X], Y), 4))
    assert len(with_targets.args) == 2
    assert with_targets.targets is not None
    named = next(batches({"first": X, "second": -X, "labels": Y}, 4))
    assert set(named.kwargs) == {"first", "second"}


def test_targets_never_become_an_input() -> None:
    """A loader's batches of tuples are lists in torch: with an optional second argument, targets became a mask."""
    for data in ((X, Y), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), 4, shuffle=True), zip([X], [Y])):  # noqa: B905
        assert all(len(part.args) == 1 and part.targets is not None for part in batches(data, 4))


def test_a_single_tensor_carries_no_targets_and_is_not_copied() -> None:
    part = next(batches(X, 4))
    assert part.targets is None
    assert part.args[0].data_ptr() == X.data_ptr()
    array = X.numpy()
    assert next(batches(array, 4)).args[0].data_ptr() == array.__array_interface__["data"][0]
    assert next(batches(TensorDataset(X), 4)).targets is None


def test_what_is_no_tensor_in_a_dict_goes_to_every_batch() -> None:
    parts = list(batches({"x": X, "return_dict": True, "mask": None}, 4))
    assert [part.kwargs["return_dict"] for part in parts] == [True] * 3
    assert parts[0].kwargs["mask"] is None


def test_reading_does_not_draw_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    for data in (TensorDataset(X, Y), Stream(), list(zip(X, Y, strict=True)), HuggingFace()):
        list(batches(data, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X, X, Y), ValueError, r"a tuple of 3 .* is \(inputs, targets\)\. Several inputs of the model are a list"),
        (TensorDataset(X, X, Y), ValueError, "a tuple of 3"),
        ((X, Y[:3]), ValueError, r"lengths \{'inputs\[0\]': 10, 'targets': 3\}"),
        ([X, X[:3]], ValueError, r"lengths .*'inputs\[1\]': 3"),
        (({"x": X, "labels": Y}, Y), ValueError, "targets of its own"),
        (torch.tensor(1.0), ValueError, "without axes"),
        (X[:0], ValueError, "at least one input"),
        ((X[:0], Y[:0]), ValueError, "at least one input"),
        ({"x": X[:0]}, ValueError, "at least one input"),
        ([], ValueError, "at least one input"),
        (iter([]), ValueError, "at least one input"),
        (TensorDataset(X[:0]), ValueError, "at least one input"),
        ((TensorDataset(X), Y), TypeError, "a tuple that holds a TensorDataset"),
        (3, TypeError, "data is a int"),
        (None, TypeError, "data is a NoneType"),
        ("text", TypeError, "data is a str"),
        (["text"], TypeError, "list of str"),
        ([1.0, 2.0], TypeError, "list of float"),
        (iter(["text"]), TypeError, "inputs of a batch are a str"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), TypeError, "dtype object: expected numbers"),
        ((X, ["a"] * 10), TypeError, "expected numbers"),
        ((X, [[0], [1, 2]]), ValueError, "several lengths"),
        ({"a": 1, "b": 2}, TypeError, "without a tensor"),
        (Rows(lambda x, y: (x[: 1 + y % 2], y)), ValueError, "several shapes"),
        (Rows(lambda x, y: (object(), y)), TypeError, "the examples are a object"),
        (Rows(lambda x, y: (x, y) if y else x), TypeError, "several kinds"),
    ],
)
def test_what_is_no_data_is_refused_in_words(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(batches(data))


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0])
def test_a_batch_size_is_a_positive_integer(batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size="):
        list(batches(X, batch_size))
