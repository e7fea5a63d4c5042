import math
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hesitant import Deterministic, MCDropout
from hesitant.evaluation.calibration import sample as sampling
from hesitant.evaluation.calibration.calibrate import Calibration, CalibrationWarning, calibrate
from hesitant.evaluation.calibration.components import Components
from hesitant.evaluation.calibration.likelihood import fitted
from hesitant.evaluation.calibration.sample import NUMBERS_ASKED, Held
from hesitant.inputs import Batch

pytest.importorskip("scipy")


def components_of(logits: Tensor, targets: Tensor | None = None, *, variance: bool = False) -> Components:
    """Components ``(S, B, C)`` of equal weight; the first class where no target is given."""
    each = torch.ones(len(logits), dtype=torch.float64)
    targets = torch.zeros(logits.shape[1], dtype=torch.long) if targets is None else targets
    return Components(logits, torch.ones_like(logits) if variance else None, 0 * each, each / len(each), targets)


def numbered(start: int, size: int, samples: int = 2, classes: int = 3) -> Components:
    """Components that say which input they are of."""
    number = torch.arange(start, start + size, dtype=torch.float32)
    return components_of(number.view(1, -1, 1).expand(samples, -1, classes).contiguous())


def limit(inputs: int, numbers: int) -> int:
    """The bytes that so many inputs of so many float32 numbers take."""
    return inputs * (4 * numbers + 17)


def chosen(held: Held) -> list[int]:
    return sorted(int(number) for part in held for number in part.logits[0, :, 0])


def streamed(size: int, batch_size: int, *, inputs: int, seed: int = 0) -> Held:
    held = Held(seed, limit(inputs, 6))
    for start in range(0, size, batch_size):
        held.append(numbered(start, min(batch_size, size - start)))
    return held


# ---------------------------------------------------------------- the sample


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_the_inputs_chosen_follow_from_the_seed_whatever_the_batches(batch_size: int) -> None:
    held = streamed(200, batch_size, inputs=30)
    assert (held.num_inputs, held.num_available) == (30, 200)
    assert chosen(held) == chosen(streamed(200, 200, inputs=30))
    assert len(set(chosen(held))) == 30  # without replacement
    assert chosen(held) != chosen(streamed(200, batch_size, inputs=30, seed=1))


def test_what_fits_is_held_whole_and_in_order() -> None:
    held = streamed(200, 64, inputs=200)
    assert (held.num_inputs, held.num_available) == (200, 200)
    assert torch.equal(torch.cat([part.logits[1, :, 2] for part in held]), torch.arange(200.0))


def test_every_input_has_the_same_chance_wherever_it_stands() -> None:
    draws, size, inputs = 200, 40, 10
    counts = Counter(number for seed in range(draws) for number in chosen(streamed(size, 9, inputs=inputs, seed=seed)))
    share = inputs / size
    spread = sum((counts[number] - draws * share) ** 2 for number in range(size)) / (draws * share * (1 - share))
    assert 15 < spread < 75  # near chi-squared of 39 degrees of freedom, whose standard deviation is 9
    halves = [sum(counts[number] for number in part) for part in (range(20), range(20, 40))]
    assert abs(halves[0] - halves[1]) < 4 * math.sqrt(draws * inputs)


def test_targets_and_variances_stay_with_their_logits() -> None:
    held = Held(0, limit(20, 12))
    for start in range(0, 300, 25):
        leaves = numbered(start, 25)
        targets = torch.arange(start, start + 25) % 3
        held.append(leaves._replace(targets=targets, variance=leaves.logits + 1))
    assert held.num_inputs == 20
    for part in held:
        assert torch.equal(part.targets, part.logits[0, :, 0].long() % 3)
        assert torch.equal(part.variance, part.logits + 1)


def test_fewer_are_a_part_of_those_held() -> None:
    held = streamed(200, 16, inputs=50)
    fewer = sorted(int(number) for part in held.fewer(20) for number in part.logits[0, :, 0])
    assert len(set(fewer)) == 20
    assert set(fewer) < set(chosen(held))
    assert sorted(int(n) for part in held.fewer(1000) for n in part.logits[0, :, 0]) == chosen(held)


def test_the_order_of_the_data_does_not_bias_the_temperature() -> None:
    """Every second input is hard: a stride of two, which half of the memory needs, saw one kind alone."""
    size, draws = 4000, 8
    logits = 3 * torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
    guesses = torch.randint(0, 3, (size,), generator=torch.Generator().manual_seed(1))
    hard = torch.arange(size) % 2 == 1
    wrong = torch.rand(size, generator=torch.Generator().manual_seed(2)) < torch.where(hard, 0.6, 0.05)
    targets = torch.where(wrong, guesses, logits.argmax(1))
    orders = {
        "alternating": torch.arange(size),
        "by difficulty": hard.long().argsort(stable=True),
        "by class": targets.argsort(stable=True),
    }

    def temperature(order: Tensor, seed: int, inputs: int) -> float:
        held = Held(seed, limit(inputs, 3))
        for rows in order.split(256):
            held.append(components_of(logits[None, rows], targets[rows]))
        return fitted(held, None, 1.0).likelihood.temperature

    whole = temperature(orders["alternating"], 0, size)
    for name, order in orders.items():
        errors = [math.log(temperature(order, seed, size // 2) / whole) for seed in range(draws)]
        assert abs(sum(errors) / draws) < 0.05, name
        assert max(map(abs, errors)) < 0.2, name


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [1, 10, 500])
def test_what_is_held_never_exceeds_the_limit(variance: bool, dtype: torch.dtype, batch_size: int) -> None:
    bound = 100_000
    held = Held(0, bound)
    logits = torch.randn(4, batch_size, 25, dtype=dtype)
    for _ in range(0, 500, batch_size):
        held.append(components_of(logits, variance=variance))
        assert held.num_bytes <= bound
    each = 100 * (2 if variance else 1) * dtype.itemsize + 17
    assert held.num_inputs == bound // each  # no less than there is room for
    assert held.num_bytes == held.num_inputs * each


def test_one_input_is_held_where_not_even_one_fits() -> None:
    held = Held(0, 10)
    for start in range(5):
        held.append(numbered(start, 1))
    assert (held.num_inputs, held.num_available) == (1, 5)


class Asked:
    """A method of S passes over C classes whose logits are numbers of the inputs; notes what it is asked."""

    def __init__(self, samples: int, classes: int) -> None:
        self.samples, self.classes = samples, classes
        self.sizes: list[int] = []
        self.positions: list[int] = []

    def __call__(self, batch: Batch, position: int) -> Components:
        (x,) = batch.args
        self.sizes.append(len(x))
        self.positions.append(position)
        logits = x[:, 0].view(1, -1, 1).expand(self.samples, -1, self.classes).contiguous()
        return components_of(logits, batch.targets)


def stream(size: int, batch_size: int) -> Iterator[Batch]:
    for start in range(0, size, batch_size):
        number = torch.arange(start, min(size, start + batch_size))
        yield Batch((number.float().unsqueeze(1),), {}, number % 2)


def test_no_more_numbers_are_asked_for_at_once_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "NUMBERS_ASKED", 1000)
    held, asked = Held(), Asked(10, 5)
    held.gather(stream(300, 128), asked)
    assert max(asked.sizes) == 20
    assert chosen(held) == list(range(300))
    assert asked.positions[1:] == list(range(len(asked.sizes) - 1))  # no two have the same masks
    assert NUMBERS_ASKED > 1000


def test_a_batch_that_is_no_more_than_the_bound_is_asked_as_it_is() -> None:
    asked = Asked(2, 3)
    Held().gather(stream(300, 128), asked)
    assert asked.sizes == [2, 128, 128, 44]  # two show how many numbers an input has


def test_what_has_no_place_is_not_asked_of_the_model() -> None:
    size, inputs = 20_000, 100
    held, asked = Held(0, limit(inputs, 6)), Asked(2, 3)
    held.gather(stream(size, 64), asked)
    assert (held.num_inputs, held.num_available) == (inputs, size)
    expected = inputs * (1 + math.log(size / inputs))
    assert sum(asked.sizes) < 1.3 * expected
    streamed_whole = Held(0, limit(inputs, 6))
    for start in range(0, size, 64):
        streamed_whole.append(numbered(start, min(64, size - start)))
    assert chosen(held) == chosen(streamed_whole)


@pytest.mark.parametrize("beside", [torch.zeros(3), ["a", "b"], torch.nn.Identity()])
def test_a_batch_that_cannot_be_parted_is_asked_whole(beside: Any) -> None:
    held, sizes = Held(0, limit(5, 6)), []

    def ask(batch: Batch, position: int) -> Components:
        assert batch.kwargs["beside"] is beside
        sizes.append(len(batch.args[0]))
        return numbered(0, len(batch.args[0]))._replace(targets=batch.targets)

    held.gather([Batch((torch.zeros(8, 1),), {"beside": beside}, torch.arange(8) % 2)], ask)
    assert set(sizes) == {8}
    assert held.num_inputs == 5


def test_inputs_in_lists_and_dicts_are_parted_with_their_targets() -> None:
    number = torch.arange(50)
    inner = {"values": [number.float(), number.view(-1, 1)], "flag": True, "scale": torch.tensor(2.0)}
    held = Held(0, limit(5, 6))

    def ask(batch: Batch, position: int) -> Components:
        first, second = batch.kwargs["values"]
        assert torch.equal(first.long(), second[:, 0])
        assert batch.kwargs["scale"] == 2
        assert torch.equal(batch.targets, first.long() % 3)
        return components_of(first.view(1, -1, 1).expand(2, -1, 3).contiguous(), batch.targets)

    held.gather([Batch((), inner, number % 3)], ask)
    assert all(torch.equal(part.targets, part.logits[0, :, 0].long() % 3) for part in held)


# ---------------------------------------------------------------- calibrate


def data(size: int = 2000, classes: int = 3) -> tuple[Tensor, Tensor]:
    logits = 4 * torch.randn(size, classes, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.7
    return logits, torch.where(kept, logits.argmax(1), torch.arange(size) % classes)


class Counting(nn.Module):
    """Answers its inputs, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return x


def with_room_for(monkeypatch: pytest.MonkeyPatch, inputs: int, numbers: int) -> None:
    init = Held.__init__
    monkeypatch.setattr(Held, "__init__", lambda self, seed=0: init(self, seed, limit(inputs, numbers)))


def test_calibrate_says_how_many_inputs_it_used(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate(Deterministic(nn.Identity()), data())
    assert (whole.num_inputs, whole.num_available) == (2000, 2000)
    assert repr(whole).endswith("on 2,000 inputs)")
    with_room_for(monkeypatch, 400, 3)
    model = Deterministic(Counting())
    answers = [calibrate(model, form) for form in (data(), DataLoader(TensorDataset(*data()), batch_size=50))]
    assert (answers[0].num_inputs, answers[0].num_available) == (400, 2000)
    assert repr(answers[0]).endswith("on 400 of 2,000 inputs)")
    assert answers[0].temperature == pytest.approx(answers[1].temperature, rel=1e-8)  # whatever the batches
    assert answers[0].temperature == pytest.approx(whole.temperature, rel=0.2)
    assert calibrate(model, data(), seed=1).temperature != answers[0].temperature


def test_both_likelihoods_are_of_the_inputs_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with_room_for(monkeypatch, 400, 3)
    logits, targets = data()
    used: list[Tensor] = []
    gather = Held.gather

    def noting(self: Held, *args: Any) -> None:
        gather(self, *args)
        used.append(torch.cat([part.logits[0] for part in self]))

    monkeypatch.setattr(Held, "gather", noting)
    answer = calibrate(Deterministic(nn.Identity()), (logits, targets))
    log_probs = torch.log_softmax(logits, -1)
    rows = torch.cdist(used[0], log_probs).argmin(1)
    for temperature, expected in ((1.0, answer.nll_before), (answer.temperature, answer.nll_after)):
        losses = -torch.log_softmax(log_probs[rows].double() / temperature, -1).gather(1, targets[rows, None])
        assert float(losses.mean()) == pytest.approx(expected, rel=1e-6)


def test_a_sample_leaves_the_global_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    with_room_for(monkeypatch, 100, 3)
    before = torch.get_rng_state()
    calibrate(Deterministic(nn.Identity()), data())
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_passes_of_a_sample_are_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    with_room_for(monkeypatch, 150, 3 * 5)
    model = nn.Dropout(0.3)
    answers: list[Calibration] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        for seed in (0, 0, 1):
            answers.append(calibrate(MCDropout(model, 5), data(600), seed=seed, batch_size=64))
    assert answers[0] == answers[1]
    assert answers[0].temperature != answers[2].temperature
    assert answers[0].num_inputs == 150


def test_data_of_one_class_are_told_from_a_sample_of_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    with_room_for(monkeypatch, 5, 3)
    logits, targets = data(2000)
    rare = torch.zeros_like(targets)
    rare[-1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        assert calibrate(Deterministic(nn.Identity()), (logits, rare)).num_inputs == 5
    with pytest.raises(ValueError, match="one class alone, 0"):
        calibrate(Deterministic(nn.Identity()), (logits, torch.zeros_like(targets)))


def test_a_target_that_is_no_class_is_refused_though_it_is_not_in_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    with_room_for(monkeypatch, 5, 3)
    logits, targets = data(2000)
    targets[-1] = 3
    with pytest.raises(ValueError, match="expected 0 to 2"):
        calibrate(Deterministic(nn.Identity()), (logits, targets))
