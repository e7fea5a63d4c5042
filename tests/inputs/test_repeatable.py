import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from hesitant.inputs import Batch, RepeatableData

INPUTS = torch.arange(22.0).reshape(11, 2)
TARGETS = torch.arange(11) % 3
PAIRS = TensorDataset(INPUTS, TARGETS)


class Texts(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, row):
        return {"input_ids": torch.tensor([row, row]), "text": f"text {row}", "labels": row % 2}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


def read(data):
    batches = list(data)
    inputs = torch.cat([batch.args[0] if batch.args else batch.kwargs["x"] for batch in batches])
    targets = None if batches[0].targets is None else torch.cat([batch.targets for batch in batches])
    return inputs, targets


IN_ORDER = {
    "tuple": lambda: (INPUTS, TARGETS),
    "dict": lambda: {"x": INPUTS, "labels": TARGETS},
    "dataset": lambda: PAIRS,
    "loader": lambda: DataLoader(PAIRS, batch_size=4),
    "loader that drops its last batch": lambda: DataLoader(PAIRS, batch_size=4, drop_last=True),
    "shuffled loader": lambda: DataLoader(PAIRS, batch_size=4, shuffle=True),
    "stream": Stream,
    "list of examples": lambda: list(zip(INPUTS, TARGETS, strict=True)),
    "generator": lambda: ((INPUTS[i : i + 1], TARGETS[i : i + 1]) for i in range(11)),
}


@pytest.mark.parametrize("kind", IN_ORDER)
def test_all_kinds_of_data_are_read_in_their_order_as_often_as_one_likes(kind):
    data = RepeatableData(IN_ORDER[kind](), batch_size=3, targets=True)
    for _ in range(2):
        inputs, targets = read(data)
        assert torch.equal(inputs, INPUTS)
        assert torch.equal(targets, TARGETS)


@pytest.mark.parametrize("kind", IN_ORDER)
def test_an_input_is_found_by_its_place_without_its_target(kind):
    data = RepeatableData(IN_ORDER[kind](), batch_size=3, targets=True)
    list(data)
    for row in (0, 4, 5, 10):
        found = data[row]
        assert torch.equal(found["x"] if isinstance(found, dict) else found, INPUTS[row])


def test_a_loader_with_a_sampler_of_its_own_gives_the_same_inputs_each_time():
    sampler = WeightedRandomSampler(torch.ones(11), 20, generator=torch.Generator().manual_seed(0))
    data = RepeatableData(DataLoader(PAIRS, batch_size=6, sampler=sampler), batch_size=3, targets=True)
    first, again = read(data), read(data)
    assert len(first[0]) == 20
    assert torch.equal(first[0], again[0])
    assert torch.equal(data[7], first[0][7])


def test_out_of_domain_data_lose_their_targets_and_a_tensor_needs_none():
    assert read(RepeatableData(PAIRS, batch_size=4, targets=False))[1] is None
    assert torch.equal(read(RepeatableData(INPUTS, batch_size=4, targets=False))[0], INPUTS)


def test_a_dataset_is_shown_as_it_holds_its_inputs():
    data = RepeatableData(Texts(), batch_size=3, targets=True)
    assert data[2]["text"] == "text 2"
    assert "labels" not in data[2]
    assert all(isinstance(batch, Batch) for batch in data)


def test_reading_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    list(RepeatableData(DataLoader(PAIRS, batch_size=4, shuffle=True), batch_size=3, targets=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("data", "batch_size", "error", "message"),
    [
        (PAIRS, 0, ValueError, "batch_size=0"),
        ([], 3, ValueError, "at least one"),
        (7, 3, TypeError, "int"),
    ],
)
def test_what_is_no_data_is_refused(data, batch_size, error, message):
    with pytest.raises(error, match=message):
        RepeatableData(data, batch_size=batch_size, targets=True)
