"""Predicting changes nothing: no mode, no buffer, no input, no random state, not even after an exception."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.dropout.oracle import assert_same_distribution, generator, plain_passes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from hesitant import MCDropout

X = torch.randn(6, 4, 6, generator=generator(1))


def made(build: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def normalised(norm: nn.Module) -> Any:
    """A model with statistics that are not those of X, its modules in mixed modes."""

    def build() -> nn.Module:
        model = nn.Sequential(nn.Conv1d(4, 4, 1), norm, nn.Dropout(0.4), nn.Flatten(), nn.LazyLinear(3))
        model(2 * X + 1)
        return model

    return made(build)


class OwnStatistics(nn.Module):
    """A normalisation written by hand, which counts and averages in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, 1))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean((0, 2)).unsqueeze(1))
            self.count = self.count + 1
            self.last = x.detach()
        return x - self.mean


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "keys": list(model.state_dict()),
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identities": {name: id(buffer) for name, buffer in model.named_buffers()},
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in model.modules()],
        "forwards": ["forward" in vars(m) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    tensors = after.pop("tensors")
    for name, tensor in before.pop("tensors").items():
        assert torch.equal(tensors[name], tensor)
    assert after == before


MODELS: dict[str, Callable[[], Any]] = {
    "BatchNorm": lambda: normalised(nn.BatchNorm1d(4)),
    "BatchNorm without momentum": lambda: normalised(nn.BatchNorm1d(4, momentum=None)),
    "SyncBatchNorm": lambda: normalised(nn.BatchNorm1d(4)),
    "InstanceNorm": lambda: normalised(nn.InstanceNorm1d(4, track_running_stats=True)),
    "spectral norm": lambda: normalised(parametrizations.spectral_norm(nn.Conv1d(4, 4, 1))),
    "weight norm": lambda: normalised(parametrizations.weight_norm(nn.Conv1d(4, 4, 1))),
    "statistics by hand": lambda: normalised(OwnStatistics()),
}


@pytest.mark.parametrize(
    ("name", "masks", "mode"),
    [
        *((name, "per_input", True) for name in MODELS),
        *((name, "per_input", False) for name in ("BatchNorm", "statistics by hand")),
        *((name, "shared", True) for name in ("BatchNorm", "InstanceNorm", "spectral norm")),
        ("weight norm", "shared", False),
    ],
)
def test_a_prediction_leaves_the_model_as_it_was(name: str, masks: Any, mode: bool) -> None:
    model = MODELS[name]()
    if name == "SyncBatchNorm":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert isinstance(model[1], nn.SyncBatchNorm)
    model.train(mode)
    model[2].train(not mode)
    method = MCDropout(model, num_samples=7, masks=masks)
    before = snapshot(method)
    for inputs in (X, X[:1], X.flip(0)):
        method.predict(inputs, batch_size=4)
        method.predict_samples(inputs, seed=0)
    assert_unchanged(method, before)


def test_a_batch_of_one_answers_as_within_a_batch() -> None:
    for name in ("BatchNorm", "InstanceNorm", "spectral norm"):
        model = MODELS[name]()
        alone = MCDropout(model, num_samples=600).predict_samples(X[:1], seed=0)
        assert_same_distribution(alone, plain_passes(model, X, 600)[:, :1])


def test_normalisation_uses_its_statistics_as_in_eval_mode() -> None:
    for name in ("BatchNorm", "BatchNorm without momentum", "InstanceNorm"):
        model = MODELS[name]()
        samples = MCDropout(model, num_samples=600).predict_samples(X, seed=0)
        assert_same_distribution(samples, plain_passes(model, X, 600))


def test_a_spectral_norm_is_that_of_eval_mode() -> None:
    model = MODELS["spectral norm"]().eval()
    with torch.no_grad():
        weight = model[1].weight.clone()
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda module, args, out: seen.append(module.weight.detach().clone()))
    MCDropout(model, num_samples=5).predict(X, seed=0)
    torch.testing.assert_close(seen[0], weight, rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(model[1].weight, weight)


class FailsLater(nn.Module):
    """Raises at its third call, counted in Python, or for inputs that hold a large number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.norm, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(0.4, inplace=True), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        hidden = self.drop(self.norm(x)).flatten(1)
        if float(x.max()) > 99:
            raise KeyError("too large")
        return self.head(hidden)


@pytest.mark.parametrize(
    ("at", "masks", "chunk_size"), [(0, "per_input", None), (2, "shared", None), (5, "per_input", 1), (5, "shared", 1)]
)
def test_an_exception_leaves_the_model_as_it_was(at: int, masks: Any, chunk_size: int | None) -> None:
    model = made(FailsLater)
    model.drop.eval()
    method = MCDropout(model, num_samples=6, masks=masks, chunk_size=chunk_size)
    inputs = X.clone()
    inputs[at] = 100.0
    before, given = snapshot(method), inputs.clone()
    with pytest.raises(KeyError, match="too large"):
        method.predict(inputs, batch_size=1, seed=0)
    assert_unchanged(method, before)
    assert torch.equal(inputs, given)
    assert method.predict(X, seed=0).probs.shape == (6, 3)


def test_an_exception_at_the_third_pass_leaves_the_model_as_it_was() -> None:
    class ThirdCall(FailsLater):
        count = 0

        def forward(self, x: Tensor) -> Tensor:
            ThirdCall.count += 1
            if ThirdCall.count >= 3:
                raise KeyError("third")
            return super().forward(x)

    method = MCDropout(made(ThirdCall), num_samples=6, chunk_size=1)
    before = snapshot(method)
    with pytest.raises(KeyError, match="third"):
        method.predict(X, seed=0)
    assert_unchanged(method, before)


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    class Interrupted(FailsLater):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyboardInterrupt

    method = MCDropout(made(Interrupted), num_samples=6)
    before = snapshot(method)
    with pytest.raises(KeyboardInterrupt):
        method.predict(X)
    assert_unchanged(method, before)


def test_inputs_are_not_changed_by_a_first_layer_in_place() -> None:
    for first in (nn.Dropout, nn.ReLU):
        tail = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 3)))
        model = nn.Sequential(first(inplace=True), nn.Dropout(0.5, inplace=True), tail)
        inputs = X.clone()
        samples = MCDropout(model, num_samples=400).predict_samples(inputs, seed=0)
        assert torch.equal(inputs, X)
        assert_same_distribution(samples, plain_passes(nn.Sequential(first(), nn.Dropout(0.5), tail), X, 400))


def test_weights_written_in_place_would_be_the_users_own() -> None:
    """Dropout of a weight drops a copy: the parameter stays."""

    class DropsItsWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), F.dropout(self.head.weight, 0.5, self.training), self.head.bias)

    method = MCDropout(made(DropsItsWeight), num_samples=6)
    before = snapshot(method)
    assert bool((method.predict(X, seed=0).class_std > 0).all())
    assert_unchanged(method, before)


def test_random_numbers_of_python_and_numpy_that_the_model_draws_are_given_back() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.dropout(x.flatten(1), 0.5, self.training)
            if self.training and random.random() + np.random.rand() < 0.5:
                hidden = 2 * hidden
            return self.head(hidden)

    method = MCDropout(made(Skips), num_samples=10)
    before = snapshot(method)
    method.predict(X, seed=0)
    assert_unchanged(method, before)


def test_what_the_model_keeps_for_a_number_of_inputs_works_on_afterwards() -> None:
    class Keeps(nn.Module):
        """Builds a table for each new number of inputs, as position tables are built."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(24, 3)
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None or len(self.table) != len(x):
                self.table = torch.ones_like(x).cumsum(1)
            return self.head(F.dropout((x + self.table).flatten(1), 0.5, self.training))

    model = made(Keeps).eval()
    with torch.no_grad():
        expected = [model(X[:number]) for number in (1, 2, 4, 6)]
        for chunk_size in (None, 1, 2, 3):
            MCDropout(model, num_samples=7, chunk_size=chunk_size).predict(X[:2], seed=0)
            for number, logits in zip((1, 2, 4, 6), expected, strict=True):
                MCDropout(model, num_samples=7, chunk_size=chunk_size).predict(X[:2], seed=0)
                torch.testing.assert_close(model(X[:number]), logits)


def test_answers_carry_no_gradient_and_share_no_memory() -> None:
    method = MCDropout(MODELS["BatchNorm"](), num_samples=5)
    first = method.predict_samples(X, seed=0)
    kept = first.clone()
    assert not first.requires_grad
    assert not method.predict(X, seed=0).probs.requires_grad
    assert not first.is_inference()
    method.predict_samples(X, seed=1)
    assert torch.equal(first, kept)
    assert type(first) is Tensor


def test_it_predicts_under_autocast_and_inference_mode() -> None:
    model = MODELS["BatchNorm"]().eval()
    expected = plain_passes(model, X, 600)
    with torch.inference_mode():
        samples = MCDropout(model, num_samples=600).predict_samples(X, seed=0)
    assert_same_distribution(samples.clone(), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = MCDropout(model, num_samples=600).predict_samples(X, seed=0)
    torch.testing.assert_close(half.float().mean(0), expected.mean(0), rtol=0.1, atol=0.06)
    assert bool((half.float().std(0) > 1e-3).all())
