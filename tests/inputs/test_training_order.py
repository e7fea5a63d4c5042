from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hesitant.inputs import Order, as_batch, member_loader, training_loader

X = torch.arange(10.0).unsqueeze(1)
Y = torch.arange(10)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(X, Y, strict=True)


class EachTime:
    """Batches that begin anew each time."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(X, Y)])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def epoch(loader: Any) -> list[int]:
    parts = [as_batch(item) for item in loader]
    assert all(part.args[0].flatten().tolist() == part.targets.tolist() for part in parts)  # type: ignore[union-attr]
    return torch.cat([part.targets for part in parts]).tolist()  # type: ignore[misc]


@pytest.mark.parametrize("data", [(X, Y), TensorDataset(X, Y), list(zip(X, Y, strict=True))])
def test_training_shuffles_anew_each_epoch_and_tensors_and_datasets_alike(data: Any) -> None:
    loader = training_loader(data, 4, generator())
    first, second = epoch(loader), epoch(loader)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first == epoch(training_loader((X, Y), 4, generator()))


@pytest.mark.parametrize("data", [Stream(), EachTime(), DataLoader(TensorDataset(X, Y), batch_size=4)])
def test_what_has_an_order_of_its_own_keeps_it(data: Any) -> None:
    loader = training_loader(data, 4, generator())
    assert epoch(loader) == epoch(loader) == list(range(10))


def test_a_generator_cannot_be_trained_on() -> None:
    with pytest.raises(TypeError, match="gone through once"):
        training_loader(((X, Y) for _ in range(2)), 4, generator())


def test_members_have_an_order_of_their_own_also_of_a_shuffled_loader() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    orders = [epoch(member_loader(loader, 4, torch.Generator().manual_seed(seed))) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert Order(10, generator()).draw().tolist() == epoch(training_loader((X, Y), 4, generator()))
