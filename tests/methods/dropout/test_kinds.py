"""Every way of writing dropout takes part, alone in its model, and answers what the plain loop answers."""

import pytest
import torch
from tests.methods.dropout.kinds import KINDS, REPRESENTATIVES, WITHOUT_A_BATCH, T, X, inputs_of, model_of
from tests.methods.dropout.oracle import assert_same_distribution, plain_passes
from torch import Tensor, nn

from hesitant import MCDropout

representatives = pytest.mark.parametrize("kind", REPRESENTATIVES)


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_part_and_answers_what_the_plain_loop_answers(kind: str) -> None:
    model, inputs = model_of(kind, p=0.3), inputs_of(kind)
    samples = MCDropout(model, num_samples=400).predict_samples(inputs, seed=0)
    assert samples.shape == (400, 5, 3)
    assert bool((samples.std(0) > 1e-5).all())
    assert_same_distribution(samples, plain_passes(model, inputs, 400), jointly=kind not in WITHOUT_A_BATCH)


@representatives
def test_at_rate_zero_it_raises(kind: str) -> None:
    with pytest.raises(ValueError, match=r"[Dd]ropout"):
        MCDropout(model_of(kind, p=0.0), num_samples=3).predict(inputs_of(kind))


@pytest.mark.parametrize("number", [1, T])
@representatives
def test_one_input_or_as_many_as_tokens_answer_as_in_the_plain_loop(kind: str, number: int) -> None:
    """Here the axes of inputs and of tokens cannot be told apart by their sizes."""
    model, inputs = model_of(kind, p=0.3), inputs_of(kind)
    inputs = [x[:number] for x in inputs] if isinstance(inputs, list) else inputs[:number]
    samples = MCDropout(model, num_samples=200).predict_samples(inputs, seed=0)
    assert samples.shape == (200, number, 3)
    assert_same_distribution(samples, plain_passes(model, inputs, 200), jointly=kind not in WITHOUT_A_BATCH)


@representatives
def test_a_seed_reproduces_it_and_the_global_generator_rests(kind: str) -> None:
    method, inputs = MCDropout(model_of(kind), num_samples=7), inputs_of(kind)
    state = torch.get_rng_state()
    first = method.predict_samples(inputs, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(11)
    assert torch.equal(method.predict_samples(inputs, seed=3), first)
    assert not torch.equal(method.predict_samples(inputs, seed=4), first)


@representatives
def test_modules_are_left_in_their_modes(kind: str) -> None:
    model = model_of(kind)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    method = MCDropout(model, num_samples=3)
    modes = [module.training for module in method.modules()]
    method.predict(inputs_of(kind), seed=0)
    assert [module.training for module in method.modules()] == modes


def test_dropout_takes_part_whatever_mode_its_module_was_left_in() -> None:
    for training in (True, False):
        model = model_of("Dropout").train(not training)
        model.inner.train(training)
        with torch.random.fork_rng():
            assert bool((MCDropout(model, num_samples=20).predict(X, seed=0).class_std > 0).all())
    samples = [
        MCDropout(model_of("Dropout").train(mode), num_samples=5).predict_samples(X, seed=0) for mode in (True, False)
    ]
    assert torch.equal(*samples)


class TwoInputs(nn.Module):
    """Two dropouts, each on one side of the network only."""

    def __init__(self, p: float, q: float) -> None:
        super().__init__()
        self.left, self.right = nn.Dropout(p), nn.Dropout(q)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.left(x).flatten(1).sum(1), self.right(x).flatten(1).sum(1)], 1)


def test_dropout_at_rate_zero_beside_another_stays_out_of_it() -> None:
    with torch.no_grad():
        samples = MCDropout(TwoInputs(0.5, 0.0), num_samples=50).predict_samples(X, seed=0)
    assert_same_distribution(samples, plain_passes(TwoInputs(0.5, 0.0), X, 600))


def test_other_noise_of_training_is_no_dropout() -> None:
    noisy = nn.Sequential(nn.RReLU(), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(ValueError, match=r"[Dd]ropout"):
        MCDropout(noisy, num_samples=3).predict(X)
    model = nn.Sequential(nn.RReLU(), nn.Flatten(), nn.Linear(32, 3), nn.Dropout(0.5))
    samples = MCDropout(model, num_samples=40).predict_samples(X, seed=0)
    expected = nn.Sequential(nn.LeakyReLU((1 / 8 + 1 / 3) / 2), *model[1:])
    torch.testing.assert_close(MCDropout(expected, num_samples=40).predict_samples(X, seed=0), samples)
