"""A uniform sample of data: its size, its chances, and what no sample can be taken of."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from hesitant.inputs import batches, data_sample

X, Y = torch.arange(50.0).unsqueeze(1), torch.arange(50) % 3
DATASET = TensorDataset(X, Y)
FORMS: dict[str, Any] = {
    "tensor": X,
    "pair": (X, Y),
    "dict": {"x": X, "labels": Y},
    "Dataset": DATASET,
    "examples": [{"x": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)],
    "DataLoader": DataLoader(DATASET, batch_size=4),
    "shuffled": DataLoader(DATASET, batch_size=4, shuffle=True),
    "drop_last": DataLoader(DATASET, batch_size=4, drop_last=True),
}


def rows(data: Any) -> torch.Tensor:
    parts = [batch.args[0] if batch.args else batch.kwargs["x"] for batch in batches(data, 7)]
    return torch.cat(parts).squeeze(1)


@pytest.mark.parametrize("name", FORMS)
def test_it_has_so_many_inputs_which_are_those_of_the_seed(name: str) -> None:
    chosen, weight = data_sample(FORMS[name], 20, seed=1)
    found = rows(chosen)
    assert len(found) == len(found.unique()) == 20
    assert weight == 2.5
    assert bool((found.diff() > 0).all())  # in the data's order
    assert torch.equal(found, rows(data_sample(FORMS["tensor"], 20, seed=1)[0]))
    assert not torch.equal(found, rows(data_sample(FORMS[name], 20, seed=2)[0]))


@pytest.mark.parametrize("name", FORMS)
def test_of_no_more_inputs_it_is_all_of_them(name: str) -> None:
    chosen, weight = data_sample(FORMS[name], 50, seed=0)
    assert weight == 1
    if name not in ("shuffled", "drop_last"):
        assert torch.equal(rows(chosen), X.squeeze(1))


def test_every_input_has_the_same_chance() -> None:
    counts = torch.zeros(50)
    for seed in range(2000):
        counts[rows(data_sample(X, 10, seed)[0]).long()] += 1
    assert float((counts - 400).abs().max()) < 5 * (2000 * 0.2 * 0.8) ** 0.5


def test_targets_go_with_their_inputs() -> None:
    for name in ("pair", "dict", "Dataset", "examples", "DataLoader"):
        for batch in batches(data_sample(FORMS[name], 20, seed=1)[0], 7):
            values = batch.args[0] if batch.args else batch.kwargs["x"]
            assert batch.targets is not None
            assert torch.equal(batch.targets, values.squeeze(1).long() % 3)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(DATASET)


class Batched(Dataset[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return X[index : index + 10], Y[index : index + 10]


@pytest.mark.parametrize(
    "data", [Stream(), DataLoader(Stream(), batch_size=4), (x for x in [X]), DataLoader(Batched(), batch_size=None)]
)
def test_what_has_no_length_has_no_sample(data: Any) -> None:
    with pytest.raises(ValueError, match=r"num_inputs=20: of a \w+ no sample can be chosen"):
        data_sample(data, 20, seed=0)


def test_a_sample_has_an_input() -> None:
    with pytest.raises(ValueError, match="num_inputs=0 must be at least 1"):
        data_sample(X, 0, seed=0)
