"""Passes of a small model that run as one answer what each answers alone, wherever the model's code goes."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.dropout.kinds import KINDS, inputs_of, model_of
from tests.methods.dropout.oracle import assert_same_distribution, generator, plain_passes
from torch import Tensor, nn
from torch.nn import functional as F

from hesitant import MCDropout
from hesitant.methods.dropout import whole_passes
from hesitant.methods.dropout.interception import intercepted
from hesitant.methods.dropout.vectorized_passes import VectorizedPasses

X = torch.randn(6, 4, generator=generator(1))


class Runs:
    """What ran as one: how many passes, and how many of these counted; None for a run that could not."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int] | None] = []
        call = VectorizedPasses.call

        def counted(passes: VectorizedPasses, *args: Any) -> Tensor:
            self.seen.append(None)
            logits = call(passes, *args)
            self.seen[-1] = len(logits), len(passes.same)
            return logits

        patch.setattr(VectorizedPasses, "call", counted)


def alone(model: nn.Module, inputs: Any, num_samples: int) -> Tensor:
    """Samples of passes that run one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_passes, "FEW_AS_ONE", num_samples)
        return MCDropout(model, num_samples=num_samples).predict_samples(inputs, seed=0)


def assert_as_alone(model: nn.Module, inputs: Any, num_samples: int = 12) -> None:
    samples = MCDropout(model, num_samples=num_samples).predict_samples(inputs, seed=0)
    torch.testing.assert_close(samples, alone(model, inputs, num_samples), rtol=1e-4, atol=1e-6)
    assert bool((samples.std(0) > 1e-6).any())


ONE_BY_ONE = {
    "Dropout in place": "writes to what is one in all passes",
    "F.dropout in place": "",
    "torch.dropout_": "",
    "scripted Dropout": "its compiler may put operations together",
    "scripted F.dropout": "",
    "by hand, bernoulli_": "draws into what is one in all passes",
    "by hand, the same for all tokens": "",
    "by hand, autograd.Function": "knows no transform",
    "vmap": "transforms by itself",
    "LSTM": "drops between its layers",
    "GRU": "",
    "RNN, bidirectional": "",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_way_of_dropping_answers_as_one_what_it_answers_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    assert_as_alone(model_of(kind, 0.3), inputs_of(kind))
    assert any(run is None for run in runs.seen) == (kind in ONE_BY_ONE and not kind.startswith("scripted"))
    assert any(run == (12, 12) for run in runs.seen) == (kind not in ONE_BY_ONE)


# ---------------------------------------------------------------- code that looks at numbers


class Written(nn.Module):
    """A net whose middle is written as ``middle(self, hidden)``."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)
        self.middle = middle
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.drop(self.first(x).relu())))


def written(middle: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Written(middle).eval()


def _branches(net: Any, hidden: Tensor) -> Tensor:
    if hidden.sum() > 35:
        hidden = -hidden
    return 2 * hidden if bool(hidden.amax() > 2.85) else hidden


def _number(net: Any, hidden: Tensor) -> Tensor:
    return hidden * float(hidden.mean())


def _rounded(net: Any, hidden: Tensor) -> Tensor:
    return hidden * (1 + int(hidden.sum()) % 2)


def _not_a_number(net: Any, hidden: Tensor) -> Tensor:
    return hidden * (2.0 if (hidden.sum() * float("nan")).item() > 0 else 1.0)


def _draws_more(net: Any, hidden: Tensor) -> Tensor:
    if hidden.sum() > 35:
        hidden = F.dropout(hidden, 0.2)
    return net.drop(hidden)


def _tells_all(net: Any, hidden: Tensor) -> Tensor:
    return hidden * torch.tensor(hidden.mean(0).tolist()).cos()


def _normalised(net: Any, hidden: Tensor) -> Tensor:
    hidden = F.batch_norm(hidden, torch.zeros(16), torch.ones(16))
    return F.layer_norm(F.dropout(hidden, 0.5, training=False), (16,)) if len(hidden) > 2 else hidden


def _attends(net: Any, hidden: Tensor) -> Tensor:
    heads = hidden.view(-1, 1, 4, 4)
    return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).flatten(1)


def _selects(net: Any, hidden: Tensor) -> Tensor:
    return hidden * hidden[hidden > 0.5].mean()


@pytest.mark.parametrize(
    "middle", [_branches, _number, _rounded, _not_a_number, _draws_more, _tells_all, _selects], ids=lambda f: f.__name__
)
def test_code_that_looks_at_numbers_sees_those_of_each_pass(middle: Any) -> None:
    assert_as_alone(written(middle), X)
    net = written(middle)
    samples = MCDropout(net, num_samples=400).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(net, X, 400))


def test_passes_that_go_the_same_way_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    MCDropout(written(_branches), num_samples=40).predict(X)
    done = [run for run in runs.seen if run is not None]
    assert done[0][0] == 40
    assert 1 < len(done) <= 4  # two questions, each answered by yes or no
    assert sum(same for _, same in done) >= 40 - whole_passes.FEW_AS_ONE


@pytest.mark.parametrize("middle", [_normalised, _attends], ids=lambda f: f.__name__)
def test_what_drops_in_training_alone_is_no_hindrance(middle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    assert_as_alone(written(middle), X)
    assert runs.seen[0] == (12, 12)


def test_where_each_pass_sees_another_number_no_time_is_lost_on_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    MCDropout(written(_number), num_samples=40).predict(X)
    assert runs.seen == [(40, 1), (39, 1)]


# ---------------------------------------------------------------- what must not be written to, and what is left


def _counts_some(net: Any, hidden: Tensor) -> Tensor:
    if hidden.sum() > 35:
        net.count.add_(1)
        net.last.bias.data.copy_(net.last.bias + net.count)
    return hidden


def test_what_some_passes_alone_write_to_the_model_stays_theirs() -> None:
    net = written(_counts_some)
    before = {name: (tensor.clone(), tensor._version) for name, tensor in net.state_dict(keep_vars=True).items()}
    assert_as_alone(net, X)
    for name, tensor in net.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name][0])
        assert tensor._version == before[name][1]


def test_operations_that_are_defined_later_are_known_by_what_they_write() -> None:
    MCDropout(written(lambda net, hidden: hidden), num_samples=5).predict(X)

    @torch.library.custom_op("hesitant_tests::fill_with_ones", mutates_args=("x",))
    def fill_with_ones(x: Tensor) -> None:
        x.fill_(1.0)

    def middle(net: Any, hidden: Tensor) -> Tensor:
        fill_with_ones(net.count)
        return hidden * net.count

    net = written(middle)
    assert_as_alone(net, X)
    assert float(net.count) == 0


@pytest.mark.parametrize("middle", [_branches, _number, _selects, _counts_some], ids=lambda f: f.__name__)
def test_nothing_is_left_of_a_run_whichever_way_it_ended(middle: Any) -> None:
    MCDropout(written(middle), num_samples=12).predict(X)
    assert torch._C._functorch.get_interpreter_stack() is None
    state = torch.get_rng_state()
    assert torch.rand(2).shape == (2,)  # within a transform this is an error
    torch.set_rng_state(state)


def test_a_generator_of_the_models_own_is_drawn_from_pass_by_pass() -> None:
    def middle(net: Any, hidden: Tensor) -> Tensor:
        return hidden + torch.rand(hidden.shape, generator=net.own)

    nets = [written(middle) for _ in range(2)]
    for net in nets:
        net.own = generator(5)
    samples = [MCDropout(nets[0], num_samples=12).predict_samples(X, seed=0), alone(nets[1], X, 12)]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-6)
    assert torch.equal(nets[0].own.get_state(), nets[1].own.get_state())


# ---------------------------------------------------------------- draws that are not torch's

NOISE = np.random.default_rng(0)


class Noisy(nn.Module):
    """Adds noise that NumPy draws, beside a dropout that hardly drops."""

    def __init__(self, noise: Callable[..., Any]) -> None:
        super().__init__()
        self.head, self.noise = nn.Linear(4, 3), noise

    def forward(self, x: Tensor) -> Tensor:
        noise = self.noise((len(x), 3)) if self.noise is not None else NOISE.standard_normal((len(x), 3))
        return self.head(F.dropout(x, 1e-4)) + 2 * torch.from_numpy(noise).float()


def test_each_pass_has_its_own_noise_of_numpy() -> None:
    state = np.random.get_state()
    try:
        of_the_process = Noisy(lambda shape: np.random.standard_normal(shape))
        at_hand = Noisy(None)
        for net in (of_the_process, at_hand):
            method = MCDropout(net, num_samples=16)
            assert float(method.predict(X).class_std.mean()) > 0.1
            assert float(method.predict(X).class_std.mean()) > 0.1
            assert method.other_draws.found
    finally:
        np.random.set_state(state)


def test_a_model_that_draws_nowhere_else_is_not_suspected_for_what_others_draw() -> None:
    method = MCDropout(written(lambda net, hidden: hidden), num_samples=8)
    state = np.random.get_state()
    handle = method.model.first.register_forward_hook(lambda *_: np.random.seed(3))  # as another thread might
    method.predict(X)
    handle.remove()
    np.random.set_state(state)
    assert method.other_draws.known
    assert not method.other_draws.found


# ---------------------------------------------------------------- interception


def test_only_what_draws_writes_or_looks_is_met_and_only_in_this_thread() -> None:
    met: list[str] = []

    def meet(operation: Any, args: Any, kwargs: Any) -> Any:
        met.append(operation.func._schema.name)
        return operation.run(*args, **kwargs)

    def elsewhere() -> None:
        torch.ones(3).add_(1).bernoulli_(0.5, generator=generator())

    def run(x: Tensor) -> bool:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return bool((F.dropout(x.sin() + 1, 0.5).mul_(2) * 3).cos().sum() > -10)

    with torch.random.fork_rng():
        assert intercepted(meet, run, (torch.ones(3),), {}) is True
    assert [name for name in met if name not in ("aten::copy_", "aten::fill_")] == [
        "aten::dropout",
        "aten::mul_",
        "aten::is_nonzero",
    ]
    elsewhere()
    assert len(met) <= 7
