"""Parts of data: every input in one of them, classes in the same proportions, the same each time."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from hesitant.data import split
from hesitant.inputs.apportionment import shared_out, sizes_of

N = 103
TARGETS = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(0))
PLACES = torch.arange(N)  # inputs that tell where they stood


def places(parts: Any) -> list[list[int]]:
    """Where the inputs of each part stood in tuples (places, targets)."""
    return [part[0].tolist() for part in parts]


def shares(classes: list[int], parts: list[int], seed: int) -> np.ndarray:
    ties = np.random.PCG64(seed).random_raw(len(classes) * len(parts)).reshape(len(classes), len(parts))
    return shared_out(np.array(classes), np.array(parts), ties)


# -------------------------------------------------------------------- every input in one part, in these proportions


@pytest.mark.parametrize("fractions", [[0.25, 0.5, 0.25], [0.9, 0.1], [1.0], [70, 30, 3], [1 / 3] * 3, [0.01] * 100])
def test_every_input_is_in_exactly_one_part_of_the_size_that_was_asked_for(fractions: Any) -> None:
    for stratify in (True, False):
        parts = split((PLACES, TARGETS), fractions, stratify=stratify)
        assert sorted(place for part in places(parts) for place in part) == list(range(N))
        for part, fraction in zip(parts, fractions, strict=True):
            assert len(part[0]) == fraction if isinstance(fraction, int) else abs(len(part[0]) - fraction * N) < 1
            assert torch.equal(part[1], TARGETS[part[0]])
            assert part[0].tolist() == sorted(part[0].tolist())


def test_each_class_is_shared_out_in_the_proportions_of_the_parts() -> None:
    fractions = [0.2, 0.35, 0.45]
    for seed in range(20):
        parts = split((PLACES, TARGETS), fractions, seed=seed)
        for part in parts:
            exact = TARGETS.bincount(minlength=4) * len(part[0]) / N
            assert bool(((part[1].bincount(minlength=4) - exact).abs() < 1).all())


def test_shares_are_rounded_up_or_down_and_meet_every_sum() -> None:
    """Also where the largest remainders alone would not."""
    draw = np.random.default_rng(0)
    for seed in range(400):
        classes = draw.integers(0, 12, draw.integers(1, 9))
        total = int(classes.sum())
        if total == 0:
            continue
        cuts = np.sort(draw.integers(0, total + 1, draw.integers(0, 6)))
        parts = np.diff(np.array([0, *cuts, total]))
        table = shares(list(classes), list(parts), seed)
        assert (table.sum(0) == parts).all()
        assert (table.sum(1) == classes).all()
        assert (np.abs(table - np.outer(classes, parts) / total) < 1).all()
        assert (table >= 0).all()


def test_a_share_that_is_full_is_moved_on() -> None:
    """Rounding up the largest remainders first would leave the last class one that no part takes."""
    stuck = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        classes = list(draw.integers(1, 6, 6))
        parts = list(np.diff(np.array([0, *np.sort(draw.integers(0, sum(classes) + 1, 3)), sum(classes)])))
        exact = np.outer(classes, parts) / sum(classes)
        table = shares(classes, parts, seed)
        greedy = np.floor(exact).astype(int)
        for place in np.argsort(-(exact - greedy), axis=None, kind="stable"):
            c, k = divmod(int(place), len(parts))
            free = exact[c, k] > np.floor(exact[c, k])
            if free and greedy[c].sum() < classes[c] and greedy[:, k].sum() < parts[k]:
                greedy[c, k] += 1
        stuck += int(greedy.sum() < sum(classes))
        assert table.sum() == sum(classes)
    assert stuck > 0


def test_sizes_are_those_of_the_largest_remainders() -> None:
    assert sizes_of([0.29, 0.71], 100) == [29, 71]
    assert sizes_of([0.5, 0.5], 3) == [2, 1]
    assert sizes_of([0.15, 0.15, 0.7], 10) == [2, 1, 7]
    draw = np.random.default_rng(0)
    for _ in range(300):
        fractions, total = draw.dirichlet([1.0] * 4), int(draw.integers(1, 1000))
        sizes = sizes_of(list(fractions), total)
        assert sum(sizes) == total
        assert all(abs(size - fraction * total) < 1 for size, fraction in zip(sizes, fractions, strict=True))


def test_classes_too_small_for_all_parts_go_to_the_larger_ones_first() -> None:
    targets = torch.tensor([0] * 40 + [1] + [2, 2])
    for seed in range(10):
        small, large = split((torch.arange(43), targets), [0.1, 0.9], seed=seed)
        assert {1, 2} <= set(large[1].tolist())
        assert not {1, 2} & set(small[1].tolist())
    singles = torch.arange(12)  # every class once: no part is left without
    parts = split((singles, singles), [0.25, 0.5, 0.25])
    assert [len(part[0]) for part in parts] == [3, 6, 3]


# -------------------------------------------------------------------- the same each time


def test_a_seed_gives_the_same_parts_and_another_seed_others() -> None:
    once = places(split((PLACES, TARGETS), [0.5, 0.3, 0.2], seed=7))
    assert places(split((PLACES, TARGETS), [0.5, 0.3, 0.2], seed=7)) == once
    assert places(split((PLACES, TARGETS), [0.5, 0.3, 0.2], seed=8)) != once
    assert places(split((PLACES, TARGETS), [0.5, 0.3, 0.2], seed=np.int64(7))) == once  # type: ignore[arg-type]


GOLDEN = [[2, 3, 6, 7, 8], [1, 4, 9], [0, 5]]
GOLDEN_UNSTRATIFIED = [[0, 1, 4, 5, 7, 9], [2, 3, 6, 8]]


def test_the_parts_of_a_seed_are_these_for_good() -> None:
    """Written down: who has calibrated on a part must not meet it in a test after an update of NumPy or torch."""
    targets = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    assert places(split((np.arange(10), targets), [0.5, 0.3, 0.2], seed=0)) == GOLDEN
    assert places(split((np.arange(10), targets), [6, 4], seed=3, stratify=False)) == GOLDEN_UNSTRATIFIED


def test_nothing_is_drawn_from_the_global_generators() -> None:
    before, array = torch.get_rng_state(), np.random.get_state()[1].tolist()
    split((PLACES, TARGETS), [0.5, 0.5])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == array


def test_within_a_class_every_input_has_the_same_chance() -> None:
    targets = torch.tensor([0] * 8 + [1] * 4)
    counts = np.zeros(12)
    for seed in range(2000):
        counts[places(split((torch.arange(12), targets), [0.25, 0.75], seed=seed))[0]] += 1
    assert (np.abs(counts / 2000 - 0.25) < 0.05).all()  # five standard deviations


def test_a_permutation_of_the_rows_keeps_the_proportions() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    inputs = torch.zeros(N, 2)  # all alike: nothing but the classes can tell rows apart
    straight = split((inputs, TARGETS), [0.3, 0.7])
    permuted = split((inputs, TARGETS[order]), [0.3, 0.7])
    for one, other in zip(straight, permuted, strict=True):
        assert torch.equal(one[1].bincount(minlength=4), other[1].bincount(minlength=4))


# -------------------------------------------------------------------- what data is


def rows_of_examples(part: Any) -> list[int]:
    return [int(example["x"] if isinstance(example, dict) else example[0]) for example in part]


def test_inputs_are_tensors_arrays_frames_lists_and_dicts_of_them() -> None:
    import pandas as pd

    expected = places(split((PLACES, TARGETS), [0.6, 0.4]))
    array = PLACES.numpy()
    frame = pd.DataFrame({"a": array, "b": -array})
    several = {"a": PLACES, "b": array, "texts": [str(place) for place in range(N)], "flag": True, "none": None}
    for rows, targets in ((array, TARGETS.numpy()), (array, TARGETS.tolist()), (frame["a"], TARGETS)):
        for part, places_of_part in zip(split((rows, targets), [0.6, 0.4]), expected, strict=True):
            assert list(part[0]) == places_of_part
            assert list(part[1]) == TARGETS[places_of_part].tolist()
    for number, (inputs, targets) in enumerate(split((frame, TARGETS), [0.6, 0.4])):
        assert inputs.shape == (len(targets), 2)
        assert inputs["b"].tolist() == [-place for place in expected[number]]
    for number, (inputs, _) in enumerate(split(([PLACES, array], TARGETS), [0.6, 0.4])):
        assert [list(entry) for entry in inputs] == [expected[number]] * 2
    for number, (inputs, _) in enumerate(split((several, TARGETS), [0.6, 0.4])):
        assert inputs["a"].tolist() == inputs["b"].tolist() == [int(text) for text in inputs["texts"]]
        assert inputs["a"].tolist() == expected[number]
        assert inputs["flag"] is True
        assert inputs["none"] is None


def test_a_dict_with_labels_gives_dicts() -> None:
    expected = places(split((PLACES, TARGETS), [0.6, 0.4]))
    for name in ("labels", "label"):
        parts = split({"input_ids": PLACES, name: TARGETS}, [0.6, 0.4])
        assert [part["input_ids"].tolist() for part in parts] == expected
        assert all(torch.equal(part[name], TARGETS[part["input_ids"]]) for part in parts)


def test_inputs_alone_are_split_by_targets_given_or_by_none() -> None:
    expected = places(split((PLACES, TARGETS), [0.6, 0.4]))
    assert [part.tolist() for part in split(PLACES, [0.6, 0.4], targets=TARGETS)] == expected
    assert [part[0].tolist() for part in split([PLACES, PLACES], [0.6, 0.4], targets=TARGETS)] == expected
    assert places(split((PLACES, None), [0.6, 0.4], targets=TARGETS)) == expected
    assert [len(part) for part in split(PLACES, [0.6, 0.4], stratify=False)] == [62, 41]


class Loads(Dataset[Any]):
    """Says when it is asked for an example."""

    def __init__(self, **attributes: Any) -> None:
        self.asked = 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> Any:
        self.asked += 1
        return PLACES[place], int(TARGETS[place])


class HuggingFace:
    """As much of a Hugging Face dataset as is asked for; it is not installed here."""

    def __init__(self, places: Any, name: str = "label") -> None:
        self.places, self.name, self.column_names = np.asarray(places), name, ["x", name]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: Any) -> Any:
        assert isinstance(key, str), "an example was loaded"
        assert key == self.name, "inputs were loaded"
        return TARGETS[self.places].tolist()

    def select(self, rows: Any) -> "HuggingFace":
        return HuggingFace(self.places[rows], self.name)


def test_datasets_and_lists_of_examples_give_subsets() -> None:
    expected = places(split((PLACES, TARGETS), [0.6, 0.4]))
    examples = [(int(place), int(TARGETS[place])) for place in PLACES]
    dicts = [{"x": place, "labels": TARGETS[place]} for place, _ in examples]
    walked = Loads()
    for data in (examples, dicts, TensorDataset(PLACES, TARGETS), walked):
        parts = split(data, [0.6, 0.4])
        assert all(isinstance(part, Subset) for part in parts)
        assert [rows_of_examples(part) for part in parts] == expected
    assert walked.asked == 2 * N  # once by split, once by this test


def test_targets_are_found_without_loading_an_input() -> None:
    expected = places(split((PLACES, TARGETS), [0.6, 0.4]))
    for targets in (TARGETS, TARGETS.numpy(), TARGETS.tolist()):
        data = Loads(targets=targets)
        parts = split(data, [0.6, 0.4])
        assert data.asked == 0
        assert [list(part.indices) for part in parts] == expected
    data = Loads(targets=TARGETS)
    backwards = Subset(Subset(data, range(N - 1, -1, -1)), range(N - 1, -1, -1))  # forwards again
    assert [list(part.indices) for part in split(backwards, [0.6, 0.4])] == expected
    halves = ConcatDataset([Subset(data, range(50)), Subset(data, range(50, N))])
    assert [list(part.indices) for part in split(halves, [0.6, 0.4])] == expected
    train, rest = split(data, [0.6, 0.4])
    for part in split(rest, [0.5, 0.5]):  # parts of parts
        assert not set(np.asarray(rest.indices)[part.indices]) & set(train.indices)
    assert data.asked == 0


def test_targets_of_another_length_are_those_of_something_else() -> None:
    data = Loads(targets=TARGETS[:5])
    split(data, [0.6, 0.4])
    assert data.asked == N


def test_a_hugging_face_dataset_selects_its_own_rows() -> None:
    expected = places(split((PLACES, TARGETS), [0.6, 0.4]))
    for name in ("label", "labels"):
        parts = split(HuggingFace(PLACES, name), [0.6, 0.4])
        assert [part.places.tolist() for part in parts] == expected
    assert [part.places.tolist() for part in split(HuggingFace(PLACES, "y"), [0.6, 0.4], targets=TARGETS)] == expected


@pytest.mark.parametrize(
    "targets",
    [
        TARGETS.int(),
        TARGETS.double(),
        TARGETS.bfloat16(),
        TARGETS.unsqueeze(1),
        torch.nn.functional.one_hot(TARGETS),
        torch.nn.functional.one_hot(TARGETS) * 0.9 + 0.025,
        [int(target) for target in TARGETS],
        list(TARGETS),
        tuple("abcd"[target] for target in TARGETS),
    ],
    ids=["int32", "float64", "bfloat16", "column", "one-hot", "soft", "list", "list of tensors", "names"],
)
def test_targets_are_classes_in_any_form(targets: Any) -> None:
    expected = places(split((PLACES, TARGETS), [0.6, 0.4]))
    assert [part.tolist() for part in split(PLACES, [0.6, 0.4], targets=targets)] == expected
    assert [part[0].tolist() for part in split((PLACES, targets), [0.6, 0.4])] == expected


# -------------------------------------------------------------------- errors by name


@pytest.mark.parametrize(
    ("fractions", "error", "message"),
    [
        ([], ValueError, "fractions is empty"),
        (0.5, TypeError, "fractions is a float"),
        ("0.5", TypeError, "fractions is a str"),
        ([0.5, "0.5"], TypeError, r"fractions\[1\]='0.5' is no number"),
        ([True, 102], TypeError, r"fractions\[0\]=True"),
        ([0.5, 0.4], ValueError, r"sum to 0\.9, expected 1"),
        ([0.5, 0.6], ValueError, r"sum to 1\.1, expected 1"),
        ([1.5, -0.5], ValueError, r"fractions\[1\]=-0\.5"),
        ([1, 0], ValueError, r"fractions\[1\]=0 leaves its part empty"),
        ([float("nan"), 1.0], ValueError, r"fractions\[0\]=nan"),
        ([float("inf"), 1.0], ValueError, r"fractions\[0\]=inf"),
        ([50, 50], ValueError, r"sum to 100, and data holds 103"),
        ([0.999, 0.001], ValueError, r"fractions\[1\]=0\.001 of 103 inputs is none"),
    ],
)
def test_wrong_fractions_are_errors_by_name(fractions: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split((PLACES, TARGETS), fractions)


def test_fractions_of_other_number_types_are_fractions() -> None:
    expected = places(split((PLACES, TARGETS), [0.5, 0.5]))
    assert places(split((PLACES, TARGETS), np.array([0.5, 0.5]))) == expected  # type: ignore[arg-type]
    assert places(split((PLACES, TARGETS), (Fraction(1, 2), Fraction(1, 2)))) == expected
    assert len(split((PLACES, TARGETS), [0.1] * 10)) == 10  # whose sum misses 1 by rounding


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(1, 2)])


def endless() -> Any:
    yield PLACES, TARGETS


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((PLACES, TARGETS, TARGETS), TypeError, "a tuple of 3"),
        ((PLACES,), TypeError, "a tuple of 1"),
        (((PLACES, PLACES), TARGETS), TypeError, "inputs in data are a tuple"),
        (([1, 2], TARGETS), ValueError, "'inputs': 2, 'targets': 103"),
        ((PLACES, TARGETS[:5]), ValueError, "'inputs': 103, 'targets': 5"),
        ({"a": PLACES, "labels": TARGETS[1:]}, ValueError, "'a': 103, 'labels': 102"),
        ({"flag": True}, TypeError, "no tensor and no array"),
        ((torch.tensor(1.0), torch.tensor(1)), ValueError, "inputs has no axis"),
        ((PLACES[:0], TARGETS[:0]), ValueError, "data is empty"),
        ([], ValueError, "data is empty"),
        (PLACES, ValueError, "no targets"),
        ([PLACES, TARGETS], ValueError, "no targets"),
        ({"a": PLACES}, ValueError, "no targets"),
        ([{"a": 1}] * 5, ValueError, "no targets"),
        (TensorDataset(PLACES), ValueError, "no targets"),
        (Stream(), TypeError, "a Stream"),
        (endless(), TypeError, "a generator"),
        ("data", TypeError, "a str"),
        (None, TypeError, "a NoneType"),
        (DataLoader(TensorDataset(PLACES, TARGETS)), TypeError, r"split\(loader\.dataset"),
        ((PLACES, TARGETS + 0.5), ValueError, "hold .*5 at place 0"),
        ((PLACES, torch.full((N,), float("nan"))), ValueError, "hold nan"),
        ((PLACES, TARGETS.unsqueeze(1).expand(-1, 3)), ValueError, r"shape \(103, 3\)"),
        ((PLACES, [[1], [1, 2]] + [[1]] * 101), ValueError, "common shape"),
        ((PLACES, ["a", 1, None] + [1] * 100), ValueError, "several types"),
    ],
)
def test_wrong_data_are_errors_by_name(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split(data, [0.5, 0.5])


@pytest.mark.parametrize("seed", [-1, 0.5, True, None, "1"])
def test_wrong_seeds_are_errors_by_name(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed="):
        split((PLACES, TARGETS), [0.5, 0.5], seed=seed)


def test_wrong_targets_are_errors_by_name() -> None:
    with pytest.raises(ValueError, match=r"targets have the shape \(5,\), and data holds 103"):
        split(PLACES, [0.5, 0.5], targets=TARGETS[:5])
    with pytest.raises(ValueError, match="stratify=False"):
        split(PLACES, [0.5, 0.5], targets=TARGETS, stratify=False)


def test_parts_of_tensors_are_memory_of_their_own() -> None:
    inputs: Tensor = torch.zeros(10)
    (part,) = split((inputs, torch.zeros(10)), [1.0])
    part[0].fill_(1)
    assert float(inputs.sum()) == 0
