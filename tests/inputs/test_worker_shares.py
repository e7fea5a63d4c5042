from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, SubsetRandomSampler, TensorDataset

from hesitant.inputs import shared_batches

X = torch.arange(10.0).unsqueeze(1)
IN_ORDER = X.flatten().tolist()


def seen(parts: Any) -> list[float]:
    return torch.cat([part.args[0] for part in parts]).flatten().tolist()


@pytest.mark.parametrize(
    "data",
    [
        X,
        TensorDataset(X),
        DataLoader(TensorDataset(X), batch_size=4, drop_last=True),
        DataLoader(TensorDataset(X), batch_size=4, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(X), batch_size=None),
        DataLoader(TensorDataset(X), batch_sampler=BatchSampler(SequentialSampler(X), 4, drop_last=True)),
    ],
    ids=["tensor", "Dataset", "drop_last", "shuffle, drop_last", "unbatched", "batch_sampler"],
)
def test_every_input_counts_once_and_nothing_global_is_drawn(data: Any) -> None:
    before = torch.get_rng_state()
    assert seen(shared_batches(data, 3)) == IN_ORDER
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(X), batch_size=2, sampler=SubsetRandomSampler([1, 4, 6])),
        DataLoader(TensorDataset(X), batch_sampler=BatchSampler(SubsetRandomSampler([1, 4, 6]), 2, drop_last=False)),
        DataLoader(TensorDataset(X), batch_sampler=[[1, 4], [6]]),
    ],
    ids=["sampler", "batch_sampler", "list of batches"],
)
def test_the_subset_that_a_sampler_chooses_is_kept_to(loader: Any) -> None:
    assert sorted(seen(shared_batches(loader, 3))) == [1.0, 4.0, 6.0]
