"""One model, many callers: threads, tasks, calls within calls, interrupts. Each gets what it would get alone.

`python -m pytest tests/methods/test_serving.py` asks each method some dozens of times in each way; `-m slow` makes
10,000 calls.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterator, Set
from typing import Any

import pytest
import torch
from tests.methods.left_behind import Snapshot
from tests.methods.serving import (
    INPUTS,
    KINDS,
    THREADS,
    Answer,
    Ask,
    Fuse,
    LineByLine,
    MakeNet,
    alone,
    asks_of,
    attention,
    built,
    close,
    each_kind,
    forward,
    fused,
    looking,
    mc_dropout,
    net,
    predict,
    predict_monte_carlo,
    same,
    same_answers,
    sngp,
    switching_often,
    watched,
    wrong_answers,
)
from torch import Tensor, nn

from hesitant import DeepEnsemble, Deterministic

# -------------------------------------------------------------------- several threads


@each_kind
def test_threads_that_ask_one_model_get_what_each_gets_alone(kind: str) -> None:
    model, asks = built(kind), asks_of(kind)
    expected = [alone(model, ask) for ask in asks]
    before = Snapshot(model)
    wrong = {ask.__name__: wrong_answers([(model, ask, place) for place in range(THREADS)], calls=4) for ask in asks}
    assert wrong == dict.fromkeys(wrong, 0)
    assert (
        wrong_answers([(model, ask, place) for place, ask in enumerate(asks)], calls=4) == 0
    )  # its ways, side by side
    assert before.differences() == []
    assert all(same_answers(alone(model, ask), answers) for ask, answers in zip(asks, expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, mode) for kind in KINDS for mode in ("eval", "training")), ("ensemble of all kinds", "mixed")],
)
def test_nobody_sees_a_model_change_while_it_is_asked(kind: str, mode: str) -> None:
    """In training mode, too, a prediction is that of eval mode; only ``forward`` is then the model's own."""
    model = built(kind, looking)
    asks = [ask for ask in asks_of(kind) if mode == "eval" or ask is not forward]
    expected = [alone(model, ask) for ask in asks]
    for number, module in enumerate(model.modules()):
        module.training = mode == "training" or (mode == "mixed" and number % 2 == 0)
    before = Snapshot(model)
    with watched(before) as seen:
        answers = [alone(model, ask) for ask in asks]
    assert sorted(set(seen)) == []
    assert all(same_answers(one, other) for one, other in zip(answers, expected, strict=True))
    assert before.differences() == []


@each_kind
def test_threads_that_ask_a_model_in_training_mode_get_what_each_gets_alone(kind: str) -> None:
    model = built(kind)
    expected = alone(model, predict)
    model.train()
    assert wrong_answers([(model, predict, place) for place in range(THREADS)], calls=4) == 0
    assert same_answers(alone(model, predict), expected)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("make", [net, attention])
def test_a_plain_model_answers_as_ever_beside_methods_around_it(make: MakeNet) -> None:
    plain = make(0).eval()
    methods: list[Any] = [mc_dropout(plain), mc_dropout(plain, 3.0), Deterministic(plain, temperature=2.0)]
    methods.append(DeepEnsemble([plain, make(1)], temperature=2.0).eval())
    before = Snapshot(plain, *methods)
    callers = [(method, predict, place) for place, method in enumerate(methods)]
    assert wrong_answers([*callers, (plain, forward, 3), (plain, forward, 1)], calls=6) == 0
    assert before.differences() == []


def test_methods_that_share_an_sngp_do_not_meet() -> None:
    shared = sngp(net(0), 3.0).eval()
    ensembles = [DeepEnsemble([shared, sngp(net(number))], temperature=number + 1.0).eval() for number in (1, 2)]
    before = Snapshot(shared, *ensembles)
    callers = [(ensemble, predict, place) for place, ensemble in enumerate(ensembles)]
    callers += [(shared, predict, 2), (shared, predict_monte_carlo, 3), (shared, forward, 1)]
    assert wrong_answers(callers, calls=6) == 0
    assert before.differences() == []


@each_kind
def test_tasks_of_asyncio_get_what_each_gets_alone(kind: str) -> None:
    model = built(kind)
    expected = alone(model, predict)
    before = Snapshot(model)

    async def serve() -> list[Answer]:
        waiting = [asyncio.to_thread(predict, model, inputs, seed) for seed, inputs in enumerate(INPUTS)]
        return list(await asyncio.gather(*waiting, *(asyncio.to_thread(predict, model, INPUTS[2], 2) for _ in "1234")))

    with switching_often():
        answers = asyncio.run(serve())
    assert same_answers(answers, expected + expected[2:3] * 4)
    assert before.differences() == []


@pytest.mark.slow
def test_ten_thousand_calls_are_all_answered_rightly() -> None:
    models = {kind: built(kind) for kind in KINDS}
    cells = [(models[kind], ask) for kind in KINDS for ask in asks_of(kind)]
    before = Snapshot(*models.values())
    # An ensemble takes as long as its members: it is called once where these are called six times.
    shares = [1 if isinstance(model, DeepEnsemble) else 6 for model, _ in cells]
    calls = -(-10_000 // (sum(shares) * THREADS))
    wrong = made = 0
    for (model, ask), share in zip(cells, shares, strict=True):
        wrong += wrong_answers([(model, ask, place) for place in range(THREADS)], calls * share)
        made += calls * share * THREADS
    assert made >= 10_000
    assert wrong == 0
    assert before.differences() == []


# -------------------------------------------------------------------- calls within calls


@each_kind
def test_data_may_ask_the_model_that_is_reading_them(kind: str) -> None:
    model = built(kind)
    for ask in asks_of(kind):
        if ask is forward:
            continue
        expected, by_itself = alone(model, ask), ask(model, iter(INPUTS), 7)
        before = Snapshot(model)
        within: list[Answer] = []
        assert same(ask(model, asking(model, ask, within), 7), by_itself), ask.__name__
        assert same_answers(within, expected), ask.__name__
        assert before.differences() == []


def asking(model: Any, ask: Ask, answers: list[Answer]) -> Iterator[Tensor]:
    """Gives the inputs one after another, and asks the model about each before."""
    for place, inputs in enumerate(INPUTS):
        answers.append(ask(model, inputs, place))
        yield inputs


@each_kind
def test_a_model_may_ask_another_from_a_hook(kind: str) -> None:
    asked = built("ensemble of all kinds")
    expected, expected_logits = predict(asked, INPUTS[1], 1), forward(asked, INPUTS[1], 1)
    within: list[bool] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        within.append(same(predict(asked, INPUTS[1], 1), expected))
        within.append(same(forward(asked, INPUTS[1], 1), expected_logits))

    def hooked(seed: int) -> nn.Module:
        model = net(seed)
        model.get_submodule("0").register_forward_hook(hook)
        return model

    outer = built(kind, hooked)
    before = Snapshot(asked)
    within.clear()  # the covariance was fitted
    assert close(predict(outer, INPUTS[3], 3), predict(built(kind), INPUTS[3], 3))
    assert close(forward(outer, INPUTS[3], 3), forward(built(kind), INPUTS[3], 3))
    assert within
    assert all(within)
    assert before.differences() == []


# -------------------------------------------------------------------- interrupts and errors


@each_kind
def test_an_interrupted_forward_leaves_nothing_behind(kind: str) -> None:
    model = built(kind, fused)
    for ask in asks_of(kind):
        expected = ask(model, INPUTS[1], 1)
        before = Snapshot(model)
        for at in (1, 2, 5):
            Fuse.left = at
            try:
                ask(model, INPUTS[1], 1)
            except KeyboardInterrupt:
                pass
            else:
                assert at > 1  # so many forwards are none in one call
            Fuse.left = 0
            assert before.differences() == []
            assert same(ask(model, INPUTS[1], 1), expected)


Line = tuple[str, int]


def interrupted(kind: str, most: int, known: Set[Line] = frozenset()) -> set[Line]:
    """Interrupts each way to ask a model at so many lines of the code that answers, and answers all its lines.

    Args:
        kind: Of model.
        most: Lines, chosen at random.
        known: Lines that are left out.
    """
    model = built(kind)
    met: set[Line] = set()
    for ask in asks_of(kind):
        expected = ask(model, INPUTS[1], 1)
        before = Snapshot(model)
        with LineByLine() as whole:
            ask(model, INPUTS[1], 1)
        lines = [(line, at) for line, at in whole.first_times.items() if line not in known]
        for line, at in random.Random(0).sample(lines, min(len(lines), most)):
            with contextlib.suppress(KeyboardInterrupt), LineByLine(at):
                ask(model, INPUTS[1], 1)
            assert before.differences() == [], (ask.__name__, line)
        assert same(ask(model, INPUTS[1], 1), expected)
        met |= set(whole.first_times)
    return met


@each_kind
def test_an_interrupt_at_some_lines_leaves_nothing_behind(kind: str) -> None:
    assert interrupted(kind, most=25)


@pytest.mark.slow
def test_an_interrupt_at_any_line_leaves_nothing_behind() -> None:
    met: set[Line] = set()
    for kind in KINDS:
        met |= interrupted(kind, most=10_000, known=met)
    assert len(met) > 300


@each_kind
def test_data_that_break_off_leave_nothing_behind(kind: str) -> None:
    model = built(kind)
    for ask in asks_of(kind):
        expected = ask(model, INPUTS[1], 1)
        before = Snapshot(model)
        if ask is not forward:
            with pytest.raises(ConnectionError, match="broke off"):
                ask(model, breaking_off(), 1)
            assert before.differences() == []
        with pytest.raises(RuntimeError, match="shape"):
            ask(model, torch.zeros(3, 5), 1)
        assert before.differences() == []
        assert same(ask(model, INPUTS[1], 1), expected)


def breaking_off() -> Iterator[Tensor]:
    yield INPUTS[0]
    raise ConnectionError("the data broke off")
