"""The methods as a service asks them: of every kind, in every way, from several threads, interrupted anywhere."""

import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.left_behind import Snapshot, thread_state
from torch import Tensor, nn

import hesitant
from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout

Answer = dict[str, np.ndarray]
Ask = Callable[[Any, Any, int], Answer]  # of the model, the inputs and a seed
MakeNet = Callable[[int], nn.Module]

THREADS = 4
# Other numbers of rows, so that answers that were swapped differ in shape, and the same one, so that they do not.
INPUTS = [
    scale * torch.randn(rows, 2, generator=torch.Generator().manual_seed(rows + int(10 * scale)))
    for rows, scale in ((1, 1.0), (5, 0.5), (5, 3.0), (8, 1.5))
]
TRAINING = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))


def net(seed: int) -> nn.Module:
    """A small network with dropout; the same seed makes the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


class Attends(nn.Module):
    """Attention with dropout, which in eval mode takes torch's fused path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x.unsqueeze(-1))).mean(1))


def attention(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Attends()


class Fuse(nn.Module):
    """Hands on what it is given, and is interrupted at the call that `left` counts down to, of all its kind."""

    left = 0

    def forward(self, x: Tensor) -> Tensor:
        Fuse.left -= 1
        if Fuse.left == 0:
            raise KeyboardInterrupt
        return x


def fused(seed: int) -> nn.Module:
    first, *others = net(seed).children()
    return nn.Sequential(first, Fuse(), *others)


def sngp(model: nn.Module, temperature: float = 1.0) -> SNGP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = SNGP(model, num_inducing=16, kernel_scale=1.0, temperature=temperature)
    with torch.no_grad():
        method.gp.beta.mul_(5)
    method.fit_covariance(TRAINING)
    return method


def mc_dropout(model: nn.Module, temperature: float = 1.0) -> MCDropout:
    return MCDropout(model, num_samples=4, temperature=temperature)


KINDS: dict[str, Callable[[MakeNet], nn.Module]] = {
    "Deterministic": lambda make: Deterministic(make(0), temperature=2.0),
    "SNGP": lambda make: sngp(make(0), 2.0),
    "MCDropout": lambda make: mc_dropout(make(0), 0.5),
    "ensemble of plain models": lambda make: DeepEnsemble(
        [make(0), Deterministic(make(1), temperature=0.5), make(2)], temperature=2.0
    ),
    "ensemble of SNGPs": lambda make: DeepEnsemble([sngp(make(0), 0.5), sngp(make(1), 3.0)], temperature=2.0),
    "ensemble of MCDropouts": lambda make: DeepEnsemble(
        [mc_dropout(make(0), 0.5), mc_dropout(make(1), 3.0)], temperature=2.0
    ),
    "ensemble of all kinds": lambda make: DeepEnsemble(
        [
            DeepEnsemble([make(0), mc_dropout(make(1))], temperature=3.0),
            DeepEnsemble([make(2), make(3)], temperature=0.5),
            sngp(make(4), 3.0),
        ],
        temperature=2.0,
    ),
}


def predict(model: Any, inputs: Any, seed: int) -> Answer:
    return model.predict(inputs, seed=seed).numpy()


def predict_monte_carlo(model: Any, inputs: Any, seed: int) -> Answer:
    return model.predict(inputs, seed=seed, posterior="monte_carlo", num_samples=4).numpy()


def predict_samples(model: Any, inputs: Any, seed: int) -> Answer:
    return {"samples": model.predict_samples(inputs, seed=seed).numpy()}


def forward(model: Any, inputs: Any, seed: int) -> Answer:
    with torch.no_grad():
        return {"logits": model(inputs).numpy()}


def asks_of(kind: str) -> list[Ask]:
    samples = [predict_samples] if hasattr(built(kind), "predict_samples") else []
    sngps = [predict_monte_carlo] if any(isinstance(module, SNGP) for module in built(kind).modules()) else []
    return [predict, forward, *samples, *sngps]


def built(kind: str, make: MakeNet = net) -> nn.Module:
    return KINDS[kind](make).eval()


each_kind = pytest.mark.parametrize("kind", KINDS)


def alone(model: Any, ask: Ask) -> list[Answer]:
    """What the model answers to each of the inputs, with nobody beside."""
    return [ask(model, inputs, seed) for seed, inputs in enumerate(INPUTS)]


def same(answer: Answer, expected: Answer) -> bool:
    """Whether two answers are the same to the bit."""
    return answer.keys() == expected.keys() and all(np.array_equal(answer[name], expected[name]) for name in expected)


def same_answers(answers: list[Answer], expected: list[Answer]) -> bool:
    return len(answers) == len(expected) and all(same(a, b) for a, b in zip(answers, expected, strict=True))


def close(answer: Answer, expected: Answer) -> bool:
    """Whether two answers are the same where their batches differ."""
    alike = (np.allclose(answer[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    return answer.keys() == expected.keys() and all(alike)


# -------------------------------------------------------------------- several threads


@contextmanager
def switching_often() -> Iterator[None]:
    """Makes threads take turns every 10 microseconds, within any few lines of code."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(*tasks: Callable[[], None]) -> None:
    """Runs tasks side by side and raises what the first of them raised that failed.

    Each thread is, at its end, as threads are made: nothing stays on.
    """
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], None]) -> None:
        before = thread_state()
        try:
            barrier.wait()
            task()
            assert thread_state() == before
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def wrong_answers(callers: list[tuple[Any, Ask, int]], calls: int) -> int:
    """Answers how many of so many calls of each caller, all of them side by side, were answered wrongly or not at all.

    A caller is a model, a way to ask it, and which of the inputs it asks about.
    """
    expected = [ask(model, INPUTS[place], place) for model, ask, place in callers]
    wrong = [0] * len(callers)
    errors: list[Exception] = []

    def task(number: int) -> Callable[[], None]:
        model, ask, place = callers[number]

        def run() -> None:
            for _ in range(calls):
                try:
                    wrong[number] += not same(ask(model, INPUTS[place], place), expected[number])
                except Exception as error:
                    wrong[number] += 1
                    errors.append(error)

        return run

    in_threads(*(task(number) for number in range(len(callers))))
    if errors:
        raise errors[0]
    return sum(wrong)


class Looks(nn.Module):
    """Hands on what it is given, and has another thread look at the models just then, while they are being asked."""

    look: Callable[[], Any] = bool

    def forward(self, x: Tensor) -> Tensor:
        Looks.look()
        return x


def looking(seed: int) -> nn.Module:
    first, *others = net(seed).children()
    return nn.Sequential(first, Looks(), *others)


@contextmanager
def watched(before: Snapshot) -> Iterator[list[str]]:
    """Gives the names of what another thread sees to be not as it was, during each pass of a model that looks."""
    seen: list[str] = []
    with ThreadPoolExecutor(1) as other:
        Looks.look = lambda: seen.extend(other.submit(before.differences).result())
        try:
            yield seen
        finally:
            Looks.look = bool


# -------------------------------------------------------------------- interrupts


class LineByLine:
    """Follows a call through hesitant's lines, and interrupts it at one of them.

    A line that begins a ``with`` is left out: Python comes to it again when it leaves the block, and an exception that
    a tracing function raises there, unlike an interrupt, keeps the block from being left.

    Args:
        at: How many lines are run before, those that are run again counted again; None interrupts nothing.

    Attributes:
        first_times: Of each line of code, how many were run before it was for the first time.
    """

    def __init__(self, at: int | None = None) -> None:
        self.first_times: dict[tuple[str, int], int] = {}
        self._lines, self._at = 0, at
        self._package = str(Path(hesitant.__file__).parent)

    def __enter__(self) -> "LineByLine":
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *reason: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        line = (frame.f_code.co_filename, frame.f_lineno)
        if not line[0].startswith(self._package):
            return None
        if event == "line" and not linecache.getline(*line).strip().startswith("with "):
            if self._lines == self._at:
                raise KeyboardInterrupt
            self.first_times.setdefault(line, self._lines)
            self._lines += 1
        return self._trace
