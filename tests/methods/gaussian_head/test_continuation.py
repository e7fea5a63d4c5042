"""What a model makes of its classifier's logits, against its derivative: torch.func.jacrev is the oracle."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from hesitant.methods.gaussian_head.continuation import Continuation, continuation, only_call, picked_positions

BATCH, CLASSES, LENGTH = 5, 4, 7
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


G = drawn(BATCH, CLASSES)
H = drawn(BATCH, CLASSES, seed=1)  # another head's logits
SCALE = drawn(BATCH, CLASSES, seed=2)
MIX = drawn(2, CLASSES, seed=3)
MIXES = drawn(BATCH, 3, CLASSES, seed=4)
LAST = torch.tensor([6, 0, 3, 3, 1])


class Again:
    """Runs a continuation with other values, and counts."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.runs = function, 0

    def __call__(self, values: Tensor) -> Tensor:
        self.runs += 1
        return self.function(values)


def told(
    function: Callable[[Tensor], Tensor], logits: Tensor = G, probabilities: bool = False
) -> tuple[Continuation, int]:
    again = Again(function)
    found = continuation(logits, function(logits), again, probabilities=probabilities)
    return found, again.runs


def last(logits: Tensor) -> Tensor:
    return logits[torch.arange(BATCH), LAST]


# ---------------------------------------------------------------- the logits themselves


@pytest.mark.parametrize(
    "function",
    [
        lambda g: g,
        lambda g: g.clone(),
        lambda g: g.double(),
        lambda g: g.half(),
        lambda g: g.reshape(1, BATCH, CLASSES),
        lambda g: g.log_softmax(-1),
        lambda g: g - g.amax(-1, keepdim=True) + 3,
    ],
)
def test_the_logits_up_to_a_shift_stand_as_they_are_without_another_run(function: Any) -> None:
    found, runs = told(function)
    assert runs == 0
    variance = drawn(BATCH, CLASSES, seed=9).square()
    assert torch.equal(found.mean(G), G.reshape(found.shape))
    assert torch.equal(found.variance(variance), variance.reshape(found.shape))
    assert torch.equal(found.draws(torch.stack([G, H])), torch.stack([G, H]).reshape(2, *found.shape))


def test_a_single_logit_may_be_squeezed() -> None:
    for logits in (G[:, :1], drawn(BATCH, LENGTH, 1)):
        found, runs = told(lambda g: g.squeeze(-1), logits)
        assert runs == 0
        assert found.mean(logits).shape == logits.shape[:-1]
        assert found.positions is None


def test_a_shift_of_a_single_logit_is_another_probability() -> None:
    found, _ = told(lambda g: g + 2, G[:, :1])
    torch.testing.assert_close(found.mean(G[:, :1]), G[:, :1] + 2)


def test_zeros_are_no_proof() -> None:
    zeros = torch.zeros(BATCH, CLASSES)
    for function in (lambda g: 10 * g, lambda g: (10 * g).log_softmax(-1)):
        found, _ = told(function, zeros)
        torch.testing.assert_close(found.variance(torch.ones_like(G)), torch.full_like(G, 100.0))
    with pytest.raises(ValueError, match="not linear"):
        told(torch.tanh, zeros)
    assert torch.equal(told(lambda g: g, zeros)[0].variance(torch.ones_like(G)), torch.ones_like(G))


def test_nan_stays_where_the_answer_is_the_logits() -> None:
    broken = G.clone()
    broken[1, 2] = torch.nan
    assert told(lambda g: g.clone(), broken)[1] == 0
    with pytest.raises(ValueError, match="NaN or Inf"):
        told(lambda g: 10 * g, broken)


# ---------------------------------------------------------------- linear

ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "a scale": lambda g: 10 * g,
    "a negative scale": lambda g: -0.3 * g,
    "an average of two heads": lambda g: (g + H.to(g.dtype)) / 2,
    "a scale of each input and class": lambda g: SCALE.to(g.dtype) * g + H.to(g.dtype),
    "a temperature of each input": lambda g: g / (1 + SCALE[:, :1].to(g.dtype).abs()),
    "a bias": lambda g: g + torch.arange(CLASSES, dtype=g.dtype),
}
MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "the first classes": lambda g: g[:, :2],
    "classes permuted": lambda g: g.flip(-1),
    "labels grouped": lambda g: g @ MIX.to(g.dtype).T,
    "one column": lambda g: g[:, 1] - g[:, 0],
    "a matrix of each input": lambda g: torch.einsum("bij,bj->bi", MIXES.to(g.dtype), g) + 1,
    "less their mean, and scaled by class": lambda g: (g - g.mean(-1, keepdim=True)) * torch.arange(1.0, 5).to(g.dtype),
}


def jacobians(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Answers ``da_b / dg_b`` of every input, ``(B, C', C)``."""
    full = jacrev(lambda g: function(g).reshape(len(g), -1))(logits.double())  # (B, C', B, C)
    return torch.stack([full[b, :, b] for b in range(len(logits))])


@pytest.mark.parametrize("name", [*ELEMENTWISE, *MATRICES])
def test_what_is_linear_carries_mean_variance_and_draws(name: str) -> None:
    function = (ELEMENTWISE | MATRICES)[name]
    exact = jacobians(function, G)
    mean, variance = drawn(BATCH, CLASSES, seed=7), drawn(BATCH, CLASSES, seed=8).square()
    shape = function(G).shape
    expected = torch.einsum("bij,bj->bi", exact.square(), variance.double()).reshape(shape)
    samples = torch.stack([mean, G, H])
    for dtype, tolerance in TOLERANCE.items():
        found, runs = told(function, G.to(dtype))
        assert runs == 2 if name in ELEMENTWISE else runs <= 2 + CLASSES
        close = {"rtol": tolerance, "atol": tolerance * float(expected.abs().max())}
        torch.testing.assert_close(found.variance(variance).double(), expected, **close)
        close["atol"] = tolerance * float(function(mean).abs().max())
        torch.testing.assert_close(found.mean(mean), function(mean), **close)
        draws = found.draws(samples)
        assert draws.shape == (3, *shape)
        torch.testing.assert_close(draws, torch.stack([function(sample) for sample in samples]), rtol=0.1, atol=0.2)
        torch.testing.assert_close(draws[0], found.mean(mean))


def test_the_mean_at_the_logits_is_the_answer() -> None:
    for function in (ELEMENTWISE | MATRICES).values():
        torch.testing.assert_close(told(function)[0].mean(G), function(G), rtol=1e-5, atol=1e-5)


def test_draws_of_grouped_classes_are_joint() -> None:
    samples = drawn(4000, BATCH, CLASSES)
    draws = told(MATRICES["labels grouped"])[0].draws(samples)
    covariance = torch.cov(draws[:, 0].T)
    torch.testing.assert_close(covariance, MIX @ MIX.T, rtol=0.1, atol=0.15)


def test_a_log_softmax_of_scaled_logits_is_those_but_for_a_shift() -> None:
    found, runs = told(lambda g: (10 * g + H).log_softmax(-1))
    assert runs == 2
    torch.testing.assert_close(found.variance(torch.ones_like(G)), torch.full_like(G, 100.0))
    torch.testing.assert_close(found.mean(H).softmax(-1), (11 * H).softmax(-1), rtol=1e-3, atol=1e-5)
    elsewhere, _ = told(lambda g: (10 * g + H).log_softmax(-1), G.flip(0))
    torch.testing.assert_close(elsewhere.mean(H), found.mean(H), rtol=1e-4, atol=1e-4)


def test_a_class_that_is_masked_has_no_variance() -> None:
    mask = torch.tensor([False, True, False, False])
    for value in (-torch.inf, -1e9):
        found, _ = told(lambda g, value=value: (3 * g).masked_fill(mask, value))
        assert torch.equal(found.variance(torch.ones_like(G))[:, 1], torch.zeros(BATCH))
        torch.testing.assert_close(found.mean(H), (3 * H).masked_fill(mask, value), rtol=1e-5, atol=1e-5)
        assert bool((found.draws(H.unsqueeze(0))[..., 1] == value).all())


def test_a_single_logit_as_two() -> None:
    one = G[:, :1]
    found, _ = told(lambda z: torch.cat([torch.zeros_like(z), z], -1), one)
    expected = torch.cat([torch.zeros_like(one), torch.ones_like(one)], -1)
    torch.testing.assert_close(found.variance(torch.ones_like(one)), expected)


def test_an_input_alone_has_the_factors_that_it_has_among_others() -> None:
    together = told(lambda g: SCALE * g + H)[0].variance(G.square())
    for i in range(BATCH):
        alone = told(lambda g, i=i: SCALE[i : i + 1] * g + H[i : i + 1], G[i : i + 1])[0].variance(
            G[i : i + 1].square()
        )
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=0)


# ---------------------------------------------------------------- what carries no variance

NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda g: g.softmax(-1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky relu": lambda g: torch.nn.functional.leaky_relu(g, 0.3),
    "square": lambda g: g**2,
    "abs": torch.abs,
    "sorted": lambda g: g.sort(-1).values,
    "normalized": lambda g: torch.nn.functional.normalize(g, dim=-1),
    "its largest": lambda g: g.amax(-1),
    "a temperature of its own": lambda g: g * (1 + g.std(-1, keepdim=True)),
    "less the mean of the batch": lambda g: g - g.mean(0),
    "another input's": lambda g: g.roll(1, 0),
    "less the mean of the batch, grouped": lambda g: (g - g.mean(0))[:, :2],
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_what_is_not_linear_is_refused(name: str) -> None:
    for dtype, size in itertools.product(TOLERANCE, (0.1, 1.0, 30.0)):
        with pytest.raises(ValueError, match=r"variance of the answer: softmax\(model\(x\)\) is the predictive distri"):
            told(NONLINEAR[name], (size * G).to(dtype))


@pytest.mark.parametrize("rows", [1, 2])
def test_two_classes_of_an_input_alone_are_not_taken_for_linear(rows: int) -> None:
    for sign in (1, -1):
        logits = sign * G[:rows, :2].abs() + 0.1
        for name in ("tanh", "leaky relu", "square", "its largest", "a temperature of its own", "softmax"):
            with pytest.raises(ValueError, match="not linear"):
                told(NONLINEAR[name], logits if name != "leaky relu" else -logits.abs())


def test_an_answer_that_the_layer_has_no_part_in_is_refused() -> None:
    routed = torch.tensor([[True], [False], [True], [True], [True]])
    for function in (lambda g: H + 0 * g, lambda g: torch.where(routed, 2 * g, H)):
        with pytest.raises(ValueError, match="inputs whose answer does not depend on it"):
            told(function)


def test_many_classes_are_not_asked_one_by_one() -> None:
    many = drawn(2, 65)
    with pytest.raises(ValueError, match="with 65 classes that takes as many forward passes, and 64 are the most"):
        told(lambda g: g.flip(-1), many)
    assert told(lambda g: 10 * g, many)[1] == 2


def test_the_message_names_both_shapes_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"answered \(5, 2\), and its Gaussian process \(5, 4\).*classifier=\.\.\."):
        told(lambda g: g[:, :2].exp())
    for function in (lambda g: g[:3], lambda g: g.mean(), lambda g: g.reshape(BATCH, 2, 2)):
        with pytest.raises(ValueError, match="not one answer for each input"):
            told(function)


def test_a_classifier_runs_once() -> None:
    assert only_call(["a"]) == "a"
    for calls in ([], ["a", "b"]):
        with pytest.raises(ValueError, match=f"ran its classifier {len(calls)} times in one forward pass"):
            only_call(calls)


# ---------------------------------------------------------------- one position of a sequence

SEQUENCES = drawn(BATCH, LENGTH, CLASSES)


def test_a_position_that_the_model_picks_is_found_without_another_run() -> None:
    for logits in (SEQUENCES, SEQUENCES[..., :1], SEQUENCES.bfloat16()):
        found, runs = told(last, logits)
        assert runs == 0
        assert found.positions is not None
        assert torch.equal(found.positions, LAST)
        assert torch.equal(found.mean(logits), last(logits))
        assert torch.equal(found.rows(drawn(BATCH, LENGTH, 9)), last(drawn(BATCH, LENGTH, 9)))
    assert told(lambda g: last(g).squeeze(-1), SEQUENCES[..., :1])[0].mean(SEQUENCES[..., :1]).shape == (BATCH,)


def test_equal_logits_do_not_hide_the_position() -> None:
    alike = SEQUENCES[:, :1].expand(-1, LENGTH, -1).clone()
    found, runs = told(last, alike)
    assert torch.equal(found.positions, LAST)  # type: ignore[arg-type]
    assert runs <= 4
    padded = SEQUENCES.clone()
    padded[:, 4:] = 0.5
    found, runs = told(lambda g: g[:, 5], padded)
    assert torch.equal(found.positions, torch.full((BATCH,), 5))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a scale of each input and class", "a bias", "one column", "a matrix of each input"])
def test_the_model_may_go_on_from_the_position(name: str) -> None:
    function = (ELEMENTWISE | MATRICES)[name]
    found, runs = told(lambda g: function(last(g)), SEQUENCES)
    assert runs <= 4 + 2 + CLASSES
    assert torch.equal(found.positions, LAST)  # type: ignore[arg-type]
    variance = drawn(BATCH, LENGTH, CLASSES, seed=5).square()
    exact = jacobians(function, last(SEQUENCES))
    expected = torch.einsum("bij,bj->bi", exact.square(), last(variance).double()).float()
    torch.testing.assert_close(found.variance(variance), expected.reshape(found.shape), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean(SEQUENCES), function(last(SEQUENCES)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.draws(G.unsqueeze(0))[0], function(G), rtol=1e-4, atol=1e-4)


def test_the_position_is_found_where_no_variance_is_carried() -> None:
    again = Again(lambda g: last(g).tanh())
    found = picked_positions(SEQUENCES, last(SEQUENCES).tanh(), again)
    assert torch.equal(found, LAST)  # type: ignore[arg-type]
    assert again.runs == 4
    with pytest.raises(ValueError, match="not linear"):
        told(lambda g: last(g).tanh(), SEQUENCES)


def test_all_positions_may_be_answered() -> None:
    assert picked_positions(G, G[:, :2], Again(lambda g: g[:, :2])) is None
    assert picked_positions(SEQUENCES, SEQUENCES * 2, Again(lambda g: 2 * g)) is None
    found, _ = told(lambda g: 10 * g, SEQUENCES)
    torch.testing.assert_close(found.variance(torch.ones_like(SEQUENCES)), torch.full_like(SEQUENCES, 100.0))
    flat = SEQUENCES.flatten(0, 1)
    found, runs = told(lambda g: g.view(BATCH, LENGTH, CLASSES), flat)
    assert (runs, found.shape) == (0, SEQUENCES.shape)


@pytest.mark.parametrize(
    "function",
    [
        lambda g: g.mean(1),
        lambda g: g.amax(1),
        lambda g: g[:, 0] + g[:, 3],
        lambda g: g[:, 0] - g[:, 1] * 1e-3,
        lambda g: g.mean((1, 2)),
    ],
)
def test_several_positions_are_not_independent(function: Any) -> None:
    with pytest.raises(ValueError, match="depends on several positions"):
        told(function, SEQUENCES)
    with pytest.raises(ValueError, match="not one answer for each sequence"):
        told(lambda g: g[:3, 0], SEQUENCES)


# ---------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("function", "runs"),
    [
        (lambda g: g.softmax(-1), 0),
        (lambda g: g.softmax(-1).clamp(1e-6, 1 - 1e-6), 1),
        (lambda g: g.softmax(-1) + 1e-5, 1),
        (lambda g: g.softmax(-1).mul(1e4).round().div(1e4), 1),
    ],
)
def test_a_softmax_that_is_said_to_be_one_has_the_logits_moments(function: Any, runs: int) -> None:
    found, asked = told(function, 10 * G, probabilities=True)
    assert asked == runs
    assert torch.equal(found.mean(G), G)
    assert torch.equal(found.variance(G.square()), G.square())


def test_a_sigmoid_that_is_said_to_be_one_has_the_logits_moments() -> None:
    for function in (torch.sigmoid, lambda g: torch.sigmoid(g).squeeze(-1)):
        found, asked = told(function, G[:, :1], probabilities=True)
        assert asked == 0
        assert torch.equal(found.variance(G[:, :1].square()).flatten(), G[:, 0].square())


def test_a_softmax_of_scaled_logits_has_theirs() -> None:
    for function in (lambda g: (10 * g + H).softmax(-1), lambda g: torch.sigmoid(10 * g + H[:, : g.shape[1]])):
        logits = G if function(G).sum(-1).allclose(torch.ones(BATCH)) else G[:, :1]
        found, _ = told(function, logits, probabilities=True)
        ones = torch.ones_like(logits)
        torch.testing.assert_close(found.variance(ones), 100 * ones, rtol=1e-3, atol=1e-3)
        turned = torch.sigmoid if logits.shape[1] == 1 else lambda z: z.softmax(-1)
        torch.testing.assert_close(turned(found.mean(logits)), function(logits), rtol=1e-3, atol=1e-4)


def test_a_softmax_of_small_or_saturated_logits_is_not_taken_for_another() -> None:
    for size in (1e-6, 50.0):
        found, _ = told(lambda g: (10 * g).softmax(-1), size * G, probabilities=True)
        ones = torch.ones_like(G)
        torch.testing.assert_close(found.variance(ones), 100 * ones, rtol=1e-3, atol=1e-3)


def test_a_softmax_of_one_position() -> None:
    found, _ = told(lambda g: last(g).softmax(-1), SEQUENCES, probabilities=True)
    assert torch.equal(found.positions, LAST)  # type: ignore[arg-type]
    assert torch.equal(found.mean(SEQUENCES), last(SEQUENCES))


@pytest.mark.parametrize(
    "function",
    [lambda g: g, lambda g: g.tanh().softmax(-1), lambda g: g.softmax(-1).sqrt(), lambda g: g.softmax(-1)[:, :2]],
)
def test_other_probabilities_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="a softmax or sigmoid of them"):
        told(function, probabilities=True)


# ---------------------------------------------------------------- precision


def test_the_rounding_of_autocast_is_no_contradiction() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = told(lambda g: g @ MIX.T)
    expected = (MIX.square().sum(1)).expand(BATCH, 2)
    torch.testing.assert_close(found.variance(torch.ones_like(G)), expected, rtol=0.1, atol=0.1)


def test_no_gradient_is_kept() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    logits = G.clone().requires_grad_()
    found = continuation(logits, weight * logits, lambda g: weight * g)
    assert found.scale is not None
    assert not found.scale.requires_grad


def test_vmap_of_one_input_agrees_with_the_whole() -> None:
    function = MATRICES["labels grouped"]
    each = vmap(jacrev(lambda g: function(g.unsqueeze(0))[0]))(G.double())
    torch.testing.assert_close(told(function)[0].matrix, each, rtol=1e-4, atol=1e-5)
