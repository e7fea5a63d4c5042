from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from hesitant.methods.batches import Batch, as_batch, batches, logits_of, shared_batches


class Rows(Dataset[Any]):
    """Ten inputs that count up, as whatever ``item`` makes of each."""

    def __init__(self, item: Any, length: int = 10) -> None:
        self.item, self.length = item, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if index >= self.length:
            raise IndexError(index)
        return self.item(torch.tensor([float(index)]))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.arange(10.0).unsqueeze(1))


def seen(parts: Any) -> list[float]:
    return torch.cat([part.args[0] for part in parts]).flatten().tolist()


X = torch.arange(10.0).unsqueeze(1)
IN_ORDER = X.flatten().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
@pytest.mark.parametrize(
    "inputs",
    [X, (X, X), [X, X], Rows(lambda x: x), TensorDataset(X, X), DataLoader(TensorDataset(X), batch_size=4), Stream()],
    ids=["tensor", "tuple", "list", "Dataset", "pairs", "DataLoader", "IterableDataset"],
)
def test_all_inputs_come_once_and_in_order(inputs: Any, batch_size: int) -> None:
    parts = list(batches(inputs, batch_size))
    assert seen(parts) == IN_ORDER
    if not isinstance(inputs, DataLoader):
        assert max(len(part.args[0]) for part in parts) <= batch_size


def test_a_tensor_is_sliced_and_not_copied() -> None:
    assert next(batches(X, 4)).args[0].data_ptr() == X.data_ptr()


def test_several_tensors_are_several_arguments_and_carry_no_targets() -> None:
    batch = next(batches((X, -X), 4))
    assert len(batch.args) == 2
    assert batch.targets is None
    torch.testing.assert_close(batch.args[1], -X[:4])


@pytest.mark.parametrize("key", ["labels", "label"])
def test_labels_of_a_mapping_are_targets_wherever_it_comes_from(key: str) -> None:
    whole = {"input_ids": X, key: torch.arange(10)}
    rows = Rows(lambda x: {"input_ids": x, key: int(x)})
    for inputs in (whole, rows, DataLoader(rows, batch_size=3)):
        parts = list(batches(inputs, 3))
        assert all(set(part.kwargs) == {"input_ids"} for part in parts)
        assert torch.cat([part.targets for part in parts]).tolist() == list(range(10))  # type: ignore[misc]


def test_what_is_no_tensor_in_a_mapping_goes_to_every_batch() -> None:
    parts = list(batches({"x": X, "return_dict": True, "mask": None}, 4))
    assert [part.kwargs["return_dict"] for part in parts] == [True] * 3
    assert parts[0].kwargs["mask"] is None


def test_the_last_of_a_tuple_is_the_target() -> None:
    assert as_batch((X, X, torch.arange(10))).args == (X, X)
    dictionary = as_batch(({"x": X}, torch.arange(10)))
    assert dictionary.kwargs["x"] is X
    assert dictionary.targets is not None
    assert as_batch((X,)).targets is None
    assert as_batch(X).args == (X,)
    batch = Batch((X,))
    assert as_batch(batch) is batch


def test_batch_moves_nested_tensors() -> None:
    moved = Batch(((X, {"a": [X]}),), {"b": X, "flag": 3}, X).to(torch.device("meta"))
    inner = moved.args[0]
    assert {inner[0].device.type, inner[1]["a"][0].device.type, moved.kwargs["b"].device.type} == {"meta"}
    assert moved.kwargs["flag"] == 3
    assert moved.targets is not None
    assert moved.targets.device.type == "meta"


@pytest.mark.parametrize("empty", [X[:0], (X[:0], X[:0]), {"x": X[:0]}, [], TensorDataset(X[:0])])
def test_empty_inputs_raise(empty: Any) -> None:
    with pytest.raises(ValueError, match="at least one input"):
        list(batches(empty, 4))


def test_wrong_inputs_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        list(batches(X, 0))
    with pytest.raises(ValueError, match=r"lengths \{0: 10, 1: 3\}"):
        list(batches((X, X[:3]), 4))
    with pytest.raises(ValueError, match="without axes"):
        list(batches(torch.tensor(1.0), 4))
    with pytest.raises(TypeError, match="from_numpy"):
        list(batches(X.numpy(), 4))
    for nothing in (3, None, "text"):
        with pytest.raises(TypeError, match=f"inputs are a {type(nothing).__name__}"):
            list(batches(nothing, 4))
    with pytest.raises(TypeError, match="a batch is a str"):
        list(batches(["text"], 4))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(X), batch_size=4, drop_last=True),
        DataLoader(TensorDataset(X), batch_size=4, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(X), batch_size=4, shuffle=True),
        DataLoader(TensorDataset(X), batch_size=None),
        DataLoader(TensorDataset(X), batch_sampler=BatchSampler(SequentialSampler(X), 4, drop_last=True)),
    ],
    ids=["drop_last", "shuffle, drop_last", "shuffle", "unbatched", "batch_sampler"],
)
def test_shared_batches_count_every_input_of_a_loader_once(loader: Any) -> None:
    assert sorted(seen(shared_batches(loader, 3))) == IN_ORDER


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(X), batch_size=2, sampler=SubsetRandomSampler([1, 4, 6])),
        DataLoader(TensorDataset(X), batch_sampler=BatchSampler(SubsetRandomSampler([1, 4, 6]), 2, drop_last=False)),
        DataLoader(TensorDataset(X), batch_sampler=[[1, 4], [6]]),
    ],
    ids=["sampler", "batch_sampler", "list of batches"],
)
def test_shared_batches_keep_to_the_subset_that_a_sampler_chooses(loader: Any) -> None:
    assert sorted(seen(shared_batches(loader, 3))) == [1.0, 4.0, 6.0]


def test_own_loaders_do_not_draw_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    list(batches(TensorDataset(X), 4))
    list(shared_batches(TensorDataset(X), 4))
    list(shared_batches(DataLoader(TensorDataset(X), batch_size=4, shuffle=True), 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_are_found_in_what_models_answer() -> None:
    class Output:
        logits = X

    nested: Any = {"logits": Output()}
    for output in (X, {"logits": X}, Output(), (X, None), [X, X], nested):
        found: Tensor = logits_of(output)
        assert found is X
    for nothing in ({"scores": X}, None, 3, (), ("text", X)):
        with pytest.raises(TypeError, match="expected a tensor of logits"):
            logits_of(nothing)
