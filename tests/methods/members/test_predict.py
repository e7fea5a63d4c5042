"""What an ensemble predicts: the plain formulas over its members, whatever they are."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.members.ensembles import CLASSES, X, dropout, each_kind, ensemble_of, mlp, sngp
from torch import Tensor, nn

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction
from hesitant.nn import CovarianceError
from hesitant.prediction import UnavailableError


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Fixed(nn.Module):
    """Answers the same logits to every input."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def entropy(probs: Tensor) -> Tensor:
    return -torch.where(probs > 0, probs * probs.log(), 0.0).sum(-1)


def assert_follows_from(prediction: Prediction, samples: Tensor) -> None:
    """The plain formulas, over samples (S, N, C)."""
    samples = samples.double()
    mean, aleatoric = samples.mean(0), entropy(samples).mean(0)
    expected = {
        "probs": mean,
        "log_probs": mean.log(),
        "predictive_entropy": entropy(mean),
        "expected_entropy": aleatoric,
        "mutual_information": entropy(mean) - aleatoric,
        "class_std": samples.std(0, correction=0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(prediction, name).double(), value, rtol=1e-5, atol=2e-6, msg=name)
    split = prediction.expected_entropy + prediction.mutual_information
    torch.testing.assert_close(split, prediction.predictive_entropy)


# ---------------------------------------------------------------- the formulas


def test_probabilities_are_the_mean_of_the_members_and_not_of_their_logits() -> None:
    ensemble = ensemble_of()
    logits = torch.stack([member(X) for member in ensemble.members]).detach()
    prediction = ensemble.predict(X)
    assert_follows_from(prediction, logits.softmax(-1))
    assert float((prediction.probs - logits.mean(0).softmax(-1)).abs().max()) > 1e-3
    torch.testing.assert_close(ensemble.predict_samples(X), logits.softmax(-1))


def test_two_members_in_full_disagreement_have_log_two_of_both() -> None:
    prediction = DeepEnsemble([Fixed(90.0, 0.0), Fixed(0.0, 90.0)]).predict(X[:1])
    assert prediction.predictive_entropy.item() == pytest.approx(math.log(2))
    assert prediction.mutual_information.item() == pytest.approx(math.log(2))
    assert prediction.expected_entropy.item() == pytest.approx(0)
    assert prediction.class_std.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("num_members", [1, 3, 10])
def test_members_that_agree_leave_nothing_epistemic(num_members: int) -> None:
    prediction = DeepEnsemble([Fixed(0.3, 0.1, -1.0) for _ in range(num_members)]).predict(X)
    assert prediction.class_std.count_nonzero() == 0
    assert float(prediction.mutual_information.max()) < 1e-6


def test_every_member_counts_the_same_however_many_passes_it_makes() -> None:
    few, many = dropout(2), dropout(50)
    prediction = DeepEnsemble([few, many]).predict(X, seed=0)
    samples = DeepEnsemble([few, many]).predict_samples(X, seed=0)
    torch.testing.assert_close(prediction.probs, samples.mean(0))


# ---------------------------------------------------------------- dropout


class RecordedDropout(MCDropout):
    """Keeps the samples behind its predictions."""

    def answer(self, given: Any, *, temperature: float, seed: int) -> Prediction:
        group = list(given)
        drawn = self.samples(group, temperature=temperature, seed=seed, log=False)
        self.__dict__.setdefault("drawn", []).append(drawn)
        return super().answer(group, temperature=temperature, seed=seed)


def recorded(**options: Any) -> Callable[[], nn.Module]:
    return lambda: RecordedDropout(mlp(), 7, **options)


def test_an_ensemble_of_dropout_models_is_the_mixture_of_all_members_and_passes() -> None:
    ensemble = ensemble_of(recorded())
    prediction = ensemble.predict(X, seed=0)
    passes = torch.cat([member.drawn[0] for member in ensemble.members])
    assert passes.shape == (21, 40, CLASSES)
    assert_follows_from(prediction, passes)


def test_members_batches_and_groups_of_batches_draw_their_own_masks() -> None:
    net = mlp()
    ensemble = DeepEnsemble([MCDropout(mlp(), 4) for _ in range(3)])
    for member in ensemble.members:
        member.model.load_state_dict(net.state_dict())
    samples = ensemble.predict_samples(X[:1].expand(40, -1), seed=0, batch_size=2)  # 20 batches of the same input
    rows = samples.flatten(0, 1)
    assert len(rows.unique(dim=0)) > 100  # of 120; 8 hidden units make some draws alike


def test_a_seed_reproduces_and_is_0_where_none_is_given() -> None:
    for masks in ("per_input", "shared"):
        ensemble = ensemble_of(lambda masks=masks: dropout(masks=masks))
        first = ensemble.predict(X, seed=3, batch_size=20)
        for prediction, same in (
            (ensemble.predict(X, seed=3, batch_size=20), True),
            (ensemble.predict(X, seed=np.int64(3), batch_size=20), True),
            (ensemble.predict(X, seed=4, batch_size=20), False),
            (ensemble.predict(X, batch_size=20), False),  # of seed 0
        ):
            assert torch.equal(first.probs, prediction.probs) is same
            assert torch.equal(first.class_std, prediction.class_std) is same
        assert torch.equal(ensemble.predict(X).probs, ensemble.predict(X, seed=0).probs)


@pytest.mark.parametrize("seed", [0, 5])
def test_shared_masks_are_shared_by_all_batches(seed: int) -> None:
    ensemble = ensemble_of(lambda: dropout(1, masks="shared"))
    same = X[:1].expand(40, -1)
    for samples in (
        ensemble.predict_samples(same, seed=seed, batch_size=1),
        DeepEnsemble([ensemble, mlp()]).predict_samples(same, seed=seed, batch_size=1),
    ):
        torch.testing.assert_close(samples, samples[:, :1].expand_as(samples), rtol=1e-5, atol=1e-6)
    assert len(ensemble.predict_samples(X[:1], seed=0).unique(dim=0)) == 3


class Pooled(nn.Module):
    """Averages over positions (B, T, 4) after dropout, so that masks depend on the length."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(0.5), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x).mean(1))


def test_shared_masks_that_do_not_fit_a_later_batch_raise() -> None:
    ensemble = ensemble_of(lambda: MCDropout(Pooled(), 3, masks="shared"))
    lengths = [(torch.ones(2, 5, 4),)] * 16 + [(torch.ones(2, 3, 4),)]
    with pytest.raises(ValueError, match="masks='shared' cannot be kept"):
        ensemble.predict(iter(lengths), seed=0)
    assert len(ensemble.predict(iter(lengths[:16]), seed=0)) == 32


# ---------------------------------------------------------------- Gaussian processes


def test_mean_field_members_cannot_be_split_and_say_how_they_can() -> None:
    ensemble = ensemble_of(sngp)
    prediction = ensemble.predict(X)
    for name in ("expected_entropy", "mutual_information", "class_std"):
        with pytest.raises(UnavailableError, match='posterior="monte_carlo"'):
            getattr(prediction, name)
    torch.testing.assert_close(prediction.probs, ensemble.predict_samples(X).mean(0))
    torch.testing.assert_close(prediction.predictive_entropy, entropy(prediction.probs))


@pytest.mark.parametrize("posterior", ["mean_field", "monte_carlo"])
def test_logits_of_an_ensemble_of_sngps_follow_the_law_of_total_variance(posterior: str) -> None:
    ensemble = ensemble_of(sngp)
    gaussians = [member.predict(X) for member in ensemble.members]
    means = torch.stack([gaussian.logits for gaussian in gaussians]).double()
    variances = torch.stack([gaussian.logit_variance for gaussian in gaussians]).double()
    prediction = ensemble.predict(X, posterior=posterior)
    expected = variances.mean(0) + means.square().mean(0) - means.mean(0).square()
    torch.testing.assert_close(prediction.logits.double(), means.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prediction.logit_variance.double(), expected, rtol=1e-4, atol=1e-5)


def test_draws_of_the_members_posteriors_are_split_over_members_and_draws() -> None:
    ensemble = ensemble_of(sngp)
    prediction = ensemble.predict(X, posterior="monte_carlo", num_samples=20_000)
    noise = torch.Generator().manual_seed(1)
    draws = []
    for member in ensemble.members:
        gaussian = member.predict(X)
        normal = torch.randn(20_000, 40, CLASSES, generator=noise)
        draws.append((gaussian.logits + gaussian.logit_variance.sqrt() * normal).softmax(-1))
    samples = torch.cat(draws)
    split = prediction.expected_entropy + prediction.mutual_information
    torch.testing.assert_close(split, prediction.predictive_entropy)
    for ours, plain in (
        (prediction.probs, samples.mean(0)),
        (prediction.expected_entropy, entropy(samples).mean(0)),
        (prediction.class_std, samples.std(0, correction=0)),
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0.01)
    assert float(prediction.mutual_information.min()) > 0


class NotingSNGP(SNGP):
    """Notes the seeds that it is asked with."""

    def answer(self, given: Any, *, temperature: float, seed: int, **options: Any) -> Prediction:
        NOTED.append(seed)
        return super().answer(given, temperature=temperature, seed=seed, **options)


NOTED: list[int] = []


def test_members_and_groups_of_batches_draw_their_logits_from_seeds_of_their_own() -> None:
    models = [sngp(), sngp(), sngp()]
    for model in models:
        model.__class__ = NotingSNGP
    ensemble = DeepEnsemble([DeepEnsemble(models[:2]), models[2]])
    seeds = []
    for seed in ({}, {"seed": 0}, {"seed": 5}):
        NOTED.clear()
        ensemble.predict(torch.cat([X] * 20), batch_size=4, posterior="monte_carlo", num_samples=3, **seed)
        assert len(set(NOTED)) == len(NOTED)
        assert len(NOTED) % 3 == 0
        seeds.append(list(NOTED))
    assert seeds[0] == seeds[1]
    assert not set(seeds[1]) & set(seeds[2])


def test_a_member_without_a_covariance_raises_as_it_does_alone() -> None:
    unfitted = SNGP(mlp(), num_inducing=16, kernel_scale=1.0)
    with pytest.raises(CovarianceError, match="fit_covariance"):
        DeepEnsemble([sngp(), unfitted]).predict(X)


# ---------------------------------------------------------------- mixtures of kinds


class InDouble(nn.Module):
    """Computes in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


def test_members_of_other_architectures_average_as_any() -> None:
    softmax = Deterministic(nn.Sequential(nn.Linear(4, 2), nn.Softmax(-1)), outputs="probabilities")
    binary = [nn.Linear(4, 1), softmax, mlp(2), InDouble()]
    ensemble = DeepEnsemble(binary).eval()
    single = torch.sigmoid(binary[0](X))
    members = [torch.cat([1 - single, single], 1), softmax.model(X), binary[2](X).softmax(-1), binary[3](X).softmax(-1)]
    samples = torch.stack([member.detach().double() for member in members])
    assert_follows_from(ensemble.predict(X), samples)
    torch.testing.assert_close(torch.sigmoid(ensemble(X)).double(), samples.mean(0)[:, 1:])


def test_members_of_all_kinds_average_and_split_where_all_of_them_can() -> None:
    kinds = [mlp(), Deterministic(mlp()), dropout(), sngp()]
    ensemble = DeepEnsemble(kinds).eval()
    prediction = ensemble.predict(X, seed=0, posterior="monte_carlo", num_samples=50)
    samples = ensemble.predict_samples(X, seed=0, posterior="monte_carlo", num_samples=50)
    assert samples.shape == (4, 40, CLASSES)
    torch.testing.assert_close(prediction.probs, samples.mean(0))
    assert float(prediction.mutual_information.min()) > 0
    assert "logit_variance" not in prediction.available
    with pytest.raises(UnavailableError, match="monte_carlo"):
        _ = ensemble.predict(X, seed=0).mutual_information
    assert len(DeepEnsemble(kinds[:3]).predict(X).mutual_information) == 40


@each_kind
def test_the_softmax_of_forward_is_the_mean_of_the_members_own(build: Callable[[], nn.Module]) -> None:
    ensemble = ensemble_of(build)
    with torch.no_grad():
        answered = ensemble(X).softmax(-1)
    torch.testing.assert_close(ensemble.predict(X, seed=0).probs, answered)
    if build is not dropout:  # whose members draw other masks here than by themselves
        with torch.no_grad():
            own = torch.stack([member(X).softmax(-1) for member in ensemble.members])
        torch.testing.assert_close(answered, own.mean(0))


def test_ensembles_in_an_ensemble_are_members_with_a_spread_of_their_own() -> None:
    nets = [mlp() for _ in range(4)]
    nested = DeepEnsemble([DeepEnsemble(nets[:2]), DeepEnsemble(nets[2:])]).eval()
    ours, flat = nested.predict(X), DeepEnsemble(nets).predict(X)
    for name in ("probs", "log_probs", "expected_entropy", "class_std", "mutual_information"):
        torch.testing.assert_close(getattr(ours, name), getattr(flat, name), msg=name)
    torch.testing.assert_close(nested(X).softmax(-1), ours.probs)


def test_ensembles_in_an_ensemble_take_seeds_and_options() -> None:
    nested = DeepEnsemble([ensemble_of(dropout), DeepEnsemble([mlp(), sngp()])])
    first, again = (nested.predict(X, seed=1, posterior="monte_carlo", num_samples=5) for _ in range(2))
    assert torch.equal(first.probs, again.probs)
    assert len(first.mutual_information) == 40
    with pytest.raises(UnavailableError, match="monte_carlo"):  # plain and mean field, one level down
        _ = nested.predict(X, seed=1).mutual_information


def test_members_that_share_a_module_answer_as_by_themselves() -> None:
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    nets = [nn.Sequential(body, nn.Linear(8, CLASSES)) for _ in range(3)]
    nets[1].eval()
    body.train()
    before = [[module.training for module in net.modules()] for net in nets]
    prediction = DeepEnsemble(nets).predict(X)
    assert before == [[module.training for module in net.modules()] for net in nets]
    samples = torch.stack([Deterministic(net).predict(X).probs for net in nets])
    assert_follows_from(prediction, samples)


class WithPredict(nn.Linear):
    """A model with a ``predict`` of its own, as those of scikit-learn have: classes, and nothing for this library."""

    def predict(self, x: Tensor) -> Tensor:
        raise AssertionError("not what an ensemble asks")


def test_a_members_own_predict_is_not_asked() -> None:
    members = [WithPredict(4, CLASSES) for _ in range(2)]
    expected = torch.stack([member(X).softmax(-1).detach() for member in members])
    assert_follows_from(DeepEnsemble(members).predict(X), expected)


class WritesToItsInput(nn.Module):
    """Normalises in place, as some published models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.sub_(1).mul_(2))


def test_what_a_member_writes_to_its_input_reaches_no_other_and_not_the_user() -> None:
    ensemble, x = ensemble_of(WritesToItsInput), X.clone()
    samples = torch.stack([member(X.clone()).softmax(-1).detach() for member in ensemble.members])
    assert_follows_from(ensemble.predict(x), samples)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(x).softmax(-1), samples.mean(0))
    assert torch.equal(x, X)


def test_logits_for_every_token_raise() -> None:
    ensemble = DeepEnsemble([nn.Unflatten(1, (2, 2))]).eval()
    for ask in (ensemble, ensemble.predict):
        with pytest.raises(ValueError, match=r"logits .*shape \(40, 2, 2\).*expected one row for each input, \(B, C\)"):
            ask(X)


class FirstRow(nn.Linear):
    """Answers for the first input alone, which would pass for an answer to all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:1])


@pytest.mark.parametrize("other", [lambda: mlp(4), lambda: FirstRow(4, CLASSES)])
def test_members_of_other_classes_or_lengths_raise(other: Callable[[], nn.Module]) -> None:
    ensemble = DeepEnsemble([mlp(), mlp(), other()]).eval()
    for ask in (ensemble, ensemble.predict, ensemble.predict_samples):
        with pytest.raises(ValueError, match=r"members\[2\] answers probabilities|FirstRow answers logits of shape"):
            ask(X)
