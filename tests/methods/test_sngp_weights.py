"""Whose covariance it is: SNGP notices who moves weights, and reads them all only where somebody may have."""

import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant import SNGP, fit
from hesitant.methods.gaussian_head import fitted_weights
from hesitant.nn import CovarianceError

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def fitted(**options: Any) -> SNGP:
    method = SNGP(network(), num_inducing=32, norm_bound=None, **options)
    fit(method, (X, Y), epochs=1, progress=False)
    return method


def step(method: SNGP, optimizer: torch.optim.Optimizer) -> None:
    method.train()
    F.cross_entropy(method(X), Y).backward()
    optimizer.step()
    method.eval()


def swap_in_place(method: SNGP) -> None:
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1.01)


def swap_data(method: SNGP) -> None:
    for parameter in method.parameters():
        parameter.data = parameter.data * 1.01


def swap_through_data(method: SNGP) -> None:
    for parameter in method.parameters():
        parameter.data.mul_(1.01)


ONES = {"weight": torch.ones(16, 4), "bias": torch.ones(16)}
MOVES: dict[str, Callable[[SNGP], Any]] = {
    "SGD": lambda m: step(m, torch.optim.SGD(m.parameters(), lr=0.1)),
    "fused AdamW": lambda m: step(m, torch.optim.AdamW(m.parameters(), fused=True)),
    "foreach Adam": lambda m: step(m, torch.optim.Adam(m.parameters(), foreach=True)),
    "in place, as an EMA swap": swap_in_place,
    "other data": swap_data,
    "through .data": swap_through_data,
    "weights loaded": lambda m: m.load_state_dict({f"model.0.{name}": t for name, t in ONES.items()}, strict=False),
    "a layer's weights loaded": lambda m: m.model.get_submodule("0").load_state_dict(ONES),
    "a parameter replaced": lambda m: setattr(m.model.get_submodule("0"), "weight", nn.Parameter(torch.ones(16, 4))),
}


@pytest.mark.parametrize("move", MOVES)
def test_who_moves_weights_is_seen_by_predict_and_by_forward(move: str) -> None:
    method = fitted()
    MOVES[move](method)
    with pytest.warns(UserWarning, match="stale"):
        answer = method(X)
    plain = method.gp.mean(method.model[:2](X))  # type: ignore[index]
    torch.testing.assert_close(answer, plain)
    with pytest.raises(CovarianceError, match="stale"):
        method.predict(X)
    assert method.covariance_state == "stale"
    method.fit_covariance((X, Y))
    assert method.covariance_state == "fitted"


def test_a_forward_in_training_mode_without_a_step_moves_nothing() -> None:
    method = fitted()
    before = method.predict(X)
    method.train()
    F.cross_entropy(method(X), Y).backward()
    method.eval()
    assert method.covariance_state == "fitted"
    assert torch.equal(method.predict(X).probs, before.probs)


def test_a_step_of_another_model_moves_nothing() -> None:
    method, other = fitted(), network()
    F.cross_entropy(other(X), Y).backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert method.covariance_state == "fitted"
    assert len(method.predict(X)) == 40


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The times that all weights have been read."""
    read, times = fitted_weights.fingerprint, []

    def counted(model: nn.Module, without: str) -> int:
        times.append(1)
        return read(model, without=without)

    monkeypatch.setattr(fitted_weights, "fingerprint", counted)
    return times  # type: ignore[return-value]


def test_weights_are_read_only_after_a_suspicion(hashes: list[int]) -> None:
    method, other = fitted(), network()
    hashes.clear()
    for _ in range(3):
        method.predict(X)
        method(X)
    assert not hashes
    F.cross_entropy(other(X), Y).backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    for _ in range(3):
        method.predict(X)
    assert len(hashes) == 2  # before it is trusted again, and after


def test_fit_leaves_the_model_in_eval_mode_ready_to_predict() -> None:
    method = fitted()
    assert not any(module.training for module in method.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(method(X).softmax(-1), method.predict(X).probs)


def test_a_pickled_sngp_answers_as_before() -> None:
    method = fitted()
    again: SNGP = pickle.loads(pickle.dumps(method))
    assert torch.equal(again.predict(X).probs, method.predict(X).probs)
    assert torch.equal(again.predict(X).logit_variance, method.predict(X).logit_variance)


def _predict(method: SNGP, x: Tensor, answers: Any) -> None:
    answers.put(method.predict(x).numpy()["logit_variance"])


@pytest.mark.slow
def test_an_sngp_can_be_sent_to_a_spawned_process() -> None:
    method = fitted()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_predict, args=(method, X, answers))
    process.start()
    variance = answers.get(timeout=120)
    process.join()
    torch.testing.assert_close(torch.from_numpy(variance), method.predict(X).logit_variance)


class Decoder(nn.Module):
    """Classifies a sequence by the logits of its last token that is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.score = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.score(self.embedding(ids))[torch.arange(len(ids)), attention_mask.sum(1) - 1]


class Tagger(Decoder):
    """Classifies every token."""

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.score(self.embedding(ids))


@pytest.mark.parametrize("kind", [Decoder, Tagger])
def test_padding_counts_for_nothing_in_a_running_covariance_either(kind: type[nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 11, (6, 5), generator=generator)
    mask = (torch.arange(5) < torch.tensor([[5], [4], [3], [2], [1], [5]])).long()
    method = SNGP(kind(), classifier="score", num_inducing=16, momentum=1.0, kernel_scale=3.0).train()
    method(ids, attention_mask=mask)
    wide = SNGP(kind(), classifier="score", num_inducing=16, momentum=1.0, kernel_scale=3.0).train()
    wide.load_state_dict(method.state_dict())
    wide.gp.reset_covariance()
    padded = torch.cat([ids, torch.zeros(6, 7, dtype=torch.long)], 1)
    wide(padded, attention_mask=torch.cat([mask, torch.zeros(6, 7, dtype=torch.long)], 1))
    torch.testing.assert_close(wide.gp.precision, method.gp.precision)
    assert float(method.gp.laplace.num_seen) == (6 if kind is Decoder else int(mask.sum()))
