import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.evaluation.predictions import CASES
from torch import Tensor, nn

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.evaluation import SCORES, load_predictions, save_predictions, uncertainty
from hesitant.inputs import as_batch
from hesitant.methods.random_state import derived_seed
from hesitant.nn.models import MLP
from hesitant.prediction import Prediction, UnavailableError


def with_everything(dtype: torch.dtype = torch.float64) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 4, generator=generator, dtype=dtype)
    samples = torch.softmax(logits + torch.randn(6, 40, 4, generator=generator, dtype=dtype), dim=-1)
    return Prediction.from_samples(samples, logits=logits, logit_variance=logits.square())


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """`KL(U || softmax f)` of logits `f` `(B, C)`."""
    uniform = 1 / logits.shape[-1]
    return (uniform * (math.log(uniform) - torch.softmax(logits.double(), -1).log())).sum(-1)


def plain(prediction: Prediction, score: str) -> Tensor:
    p = prediction.probs
    return {
        "confidence": lambda: 1 - p.amax(dim=-1),
        "predictive_entropy": lambda: -(p * p.log()).sum(dim=-1),
        "mutual_information": lambda: -(p * p.log()).sum(dim=-1) - prediction.expected_entropy,
        "logit_variance": lambda: prediction.logit_variance.mean(dim=-1),
        "dempster_shafer": lambda: p.shape[1] / (p.shape[1] + prediction.logits.exp().sum(dim=-1)),
        "energy": lambda: -prediction.logits.exp().sum(dim=-1).log(),
        "ood_score": lambda: torch.exp(-divergence_from_uniform(prediction.logits)),
    }[score]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_they_are_the_plain_formulas(score, dtype):
    prediction = with_everything(dtype)
    answer = uncertainty(prediction, score)
    assert (answer.dtype, answer.shape) == (torch.float64, (40,))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(answer, plain(prediction, score).double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("score", SCORES)
def test_in_parts_they_are_the_same(score, monkeypatch):
    whole = uncertainty(with_everything(), score)
    monkeypatch.setattr("hesitant.prediction.parts._CHUNK_NUMBERS", 30)
    torch.testing.assert_close(uncertainty(with_everything(), score), whole)
    assert uncertainty(with_everything()[:0], score).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_confidences_that_round_to_1_keep_their_order(dtype):
    margins = torch.tensor(
        [0.0, 1.0, 10.0, 20.0, 40.0, 80.0, 90.0, 103.0, 104.0, 110.0, 200.0, 400.0, 650.0], dtype=dtype
    )
    prediction = Prediction.from_logits(torch.stack([margins, torch.zeros_like(margins)], dim=-1))
    expected = torch.sigmoid(-margins.double())
    torch.testing.assert_close(uncertainty(prediction), expected, rtol=1e-4, atol=0)
    assert bool((uncertainty(prediction).diff() < 0).all())


def test_confidences_of_1_less_1e_30_and_1_less_1e_31_differ():
    log_probs = torch.tensor([[0.0, -30 * math.log(10)], [0.0, -31 * math.log(10)]])
    prediction = Prediction(torch.tensor([[1.0, 1e-30], [1.0, 1e-31]]), log_probs=log_probs)
    assert uncertainty(prediction).tolist() == pytest.approx([1e-30, 1e-31], rel=1e-4)


def test_certainty_is_an_uncertainty_of_0():
    prediction = Prediction(torch.eye(3))
    assert uncertainty(prediction).tolist() == [0.0] * 3
    assert uncertainty(prediction, "predictive_entropy").tolist() == [0.0] * 3


def test_the_size_of_the_logits_saturates_no_energy():
    logits = torch.tensor([[1e4, 0.0], [2e4, 0.0], [-1e4, -1e4], [-2e4, -2e4]])
    prediction = Prediction.from_logits(logits)
    assert uncertainty(prediction, "energy").tolist() == pytest.approx([-1e4, -2e4, 1e4, 2e4], rel=1e-4)
    assert uncertainty(prediction, "dempster_shafer").tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_members_in_full_disagreement(dtype):
    prediction = Prediction.from_samples(torch.eye(2, dtype=dtype).unsqueeze(1))  # (2, 1, 2)
    for score in ("predictive_entropy", "mutual_information"):
        assert uncertainty(prediction, score).item() == pytest.approx(math.log(2), rel=1e-6)
    assert uncertainty(prediction).item() == pytest.approx(0.5, rel=1e-6)
    agreeing = Prediction.from_samples(torch.full((2, 1, 2), 0.5, dtype=dtype))
    assert uncertainty(agreeing, "predictive_entropy").item() == pytest.approx(math.log(2), rel=1e-6)
    assert uncertainty(agreeing, "mutual_information").item() == 0


@pytest.mark.parametrize("log", [False, True], ids=["probabilities", "log-probabilities"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_total_is_aleatoric_plus_epistemic(dtype, log):
    shapes, scales = ((1, 2), (2, 2), (10, 3), (5, 1000)), (0.0, 1.0, 10.0, 100.0, 1e4)
    for (num_samples, num_classes), scale in itertools.product(shapes, scales):
        generator = torch.Generator().manual_seed(num_classes)
        logits = scale * torch.randn(num_samples, 50, num_classes, generator=generator, dtype=dtype)
        samples = torch.log_softmax(logits, dim=-1) if log else torch.softmax(logits, dim=-1)
        prediction = Prediction.from_samples(samples, log=log)
        total = uncertainty(prediction, "predictive_entropy")
        epistemic = uncertainty(prediction, "mutual_information")
        aleatoric = prediction.expected_entropy.double()
        allowed = 4 * torch.finfo(dtype).eps * math.log(num_classes)
        torch.testing.assert_close(aleatoric + epistemic, total, rtol=0, atol=allowed)
        assert bool((torch.stack([total, aleatoric, epistemic]) >= 0).all())
        assert bool((total <= math.log(num_classes) + 1e-5).all())
        each = torch.softmax(logits.double(), dim=-1)
        entropies = -torch.xlogy(each, each).sum(dim=-1)
        mean = each.mean(dim=0)
        torch.testing.assert_close(aleatoric, entropies.mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(total, -torch.xlogy(mean, mean).sum(dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_none_is_nan_or_infinite_on_extreme_inputs(name):
    for score in ("confidence", "ood_score", "predictive_entropy"):
        answer = uncertainty(CASES[name], score)
        assert bool(answer.isfinite().all())
        assert bool((answer >= 0).all())


@pytest.mark.parametrize(
    ("score", "missing"),
    [
        ("mutual_information", "mutual_information"),
        ("logit_variance", "logit_variance"),
        ("dempster_shafer", "evidence"),
        ("energy", "evidence"),
    ],
)
def test_what_the_method_cannot_give_is_named(score, missing):
    for prediction in (Prediction([[0.5, 0.5]]), Prediction([[0.5, 0.5]])[:0]):
        with pytest.raises(UnavailableError, match=f"^{missing} is not available"):
            uncertainty(prediction, score)


def test_an_unknown_score_is_named():
    with pytest.raises(ValueError, match="score is 'margin', expected one of 'confidence'"):
        uncertainty(with_everything(), "margin")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("score", SCORES)
def test_they_stay_on_the_device(score):
    answer = uncertainty(with_everything().to("cuda"), score)
    assert answer.device.type == "cuda"
    torch.testing.assert_close(answer.cpu(), uncertainty(with_everything(), score))


# ---------------------------------------------------------------- of which logits


X = 2 * torch.randn(60, 4, generator=torch.Generator().manual_seed(3))


def network(seed: int, outputs: int = 3) -> MLP:
    return MLP(4, outputs, hidden=(16,), dropout=0.3, generator=torch.Generator().manual_seed(seed))


def process(seed: int = 0, **options: Any) -> SNGP:
    generator = torch.Generator().manual_seed(seed)
    model = SNGP(network(seed), num_inducing=64, kernel_scale=1.0, generator=generator, **options)
    model.fit_covariance(X[:30])
    return model


METHODS: dict[str, Callable[[], Any]] = {
    "Deterministic": lambda: Deterministic(network(0)),
    "SNGP": lambda: process(mean_field_factor=20.0),
    "MCDropout": lambda: MCDropout(network(0), 20),
    "shared masks": lambda: MCDropout(network(0), 20, masks="shared"),
    "plain members": lambda: DeepEnsemble([network(seed) for seed in range(3)]),
    "members that drop": lambda: DeepEnsemble([MCDropout(network(seed), 5) for seed in range(3)]),
    "members of SNGP": lambda: DeepEnsemble([process(seed, mean_field_factor=20.0) for seed in range(3)]),
    "members of many kinds": lambda: DeepEnsemble([process(), network(1), MCDropout(network(2), 5)]),
}


def energy(logits: Tensor) -> Tensor:
    return -logits.double().exp().sum(-1).log()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_them_and_no_temperature_moves_those_of_a_plain_model(name):
    method = METHODS[name]()
    before = method.predict(X)
    assert {"logits", "evidence", "energy", "ood_score"} <= set(before.available)
    method.temperature = 0.3
    after = method.predict(X)
    assert not torch.allclose(after.probs, before.probs, atol=1e-2)
    for prediction in (before, after):
        torch.testing.assert_close(prediction.ood_score, torch.exp(-divergence_from_uniform(prediction.evidence)))
    if "SNGP" in name or "many kinds" in name:  # whose temperature belongs to the factor
        return
    for score in ("ood_score", "dempster_shafer", "energy"):
        torch.testing.assert_close(uncertainty(after, score), uncertainty(before, score), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_number_added_to_all_logits_of_an_input_moves_no_ood_score(name):
    """Cross-entropy does not determine it; the literature's energy and Dempster-Shafer uncertainty are moved."""
    prediction = METHODS[name]().predict(X)
    shift = torch.linspace(-5, 5, len(X)).unsqueeze(1)
    moved = Prediction(prediction.probs, logits=prediction.logits, evidence=prediction.evidence + shift)
    torch.testing.assert_close(moved.ood_score, prediction.ood_score, rtol=1e-4, atol=1e-6)
    for score in ("dempster_shafer", "energy"):
        assert (uncertainty(moved, score) - uncertainty(prediction, score)).abs().max() > 1e-3


def test_the_ood_score_tells_the_ambiguous_from_the_unknown():
    ambiguous, unknown, sure = [5.0, 5.0, -5.0, -5.0], [0.1, 0.0, 0.1, 0.0], [9.0, -3.0, -3.0, -3.0]
    scores = Prediction.from_logits(torch.tensor([ambiguous, unknown, sure])).ood_score
    assert max(scores[0], scores[2]) < 0.1
    assert scores[1] > 0.99
    assert Prediction.from_logits(torch.zeros(1, 7)).ood_score.item() == 1
    assert Prediction.from_logits(torch.tensor([[1e30, -1e30]])).ood_score.item() == 0


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_those_of_sngp_are_of_the_mean_field_logits_at_the_temperature(temperature):
    method = METHODS["SNGP"]()
    method.temperature = temperature
    for posterior in ("mean_field", "monte_carlo"):
        prediction = method.predict(X, posterior=posterior)
        logits = prediction.logits / (temperature * torch.sqrt(1 + 20 * prediction.logit_variance))
        torch.testing.assert_close(prediction.energy.double(), energy(logits), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(prediction.energy.double(), energy(prediction.logits), atol=1e-2)
    torch.testing.assert_close(prediction.energy, method.predict(X).energy)


def test_those_of_members_are_of_the_mean_of_the_logits_that_their_answers_rest_on():
    plain = METHODS["plain members"]()
    logits = torch.stack([member.eval()(X) for member in plain.members]).mean(0)
    prediction = plain.predict(X)
    torch.testing.assert_close(prediction.logits, logits.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prediction.energy.double(), energy(logits.detach()), rtol=1e-4, atol=1e-5)
    processes = METHODS["members of SNGP"]()
    mean_field = torch.stack([member.eval()(X) for member in processes.members]).mean(0) / 0.3
    processes.temperature = 0.3
    torch.testing.assert_close(processes.predict(X).energy.double(), energy(mean_field.detach()), rtol=1e-4, atol=1e-5)
    mixed = METHODS["members of many kinds"]()
    first, second, third = mixed._answers([as_batch(X)], 1.0, derived_seed(0, 0), {})
    logits = (mixed.members[0].eval()(X).detach() + second.logits + third.logits) / 3
    assert "logit_variance" in first.available
    torch.testing.assert_close(mixed.predict(X).energy.double(), energy(logits), rtol=1e-4, atol=1e-5)


def test_the_score_of_the_mean_is_that_of_the_members_and_the_disagreement():
    """The identities that the choice of the mean of the logits rests on."""
    ensemble = METHODS["plain members"]()
    prediction = ensemble.predict(X)
    each = torch.stack([member.eval()(X) for member in ensemble.members]).detach().double()
    mean = prediction.logits.double().log_softmax(-1)
    divergence = (mean.exp() * (mean - each.log_softmax(-1))).sum(-1).mean(0)
    from_uniform = torch.stack([divergence_from_uniform(logits) for logits in each]).mean(0)
    torch.testing.assert_close(-prediction.ood_score.log(), from_uniform - divergence, rtol=1e-4, atol=1e-5)
    expected = torch.stack([energy(logits) for logits in each]).mean(0) + divergence
    torch.testing.assert_close(prediction.energy.double(), expected, rtol=1e-4, atol=1e-5)


def test_passes_of_dropout_have_the_mean_of_their_logits(monkeypatch):
    method = METHODS["MCDropout"]()
    prediction = method.predict(X)
    # A pass's logits are known but for their sum over the classes, which the energy tells.
    log_probs = method.predict_samples(X, log=True)
    centred = (log_probs - log_probs.mean(-1, keepdim=True)).mean(0)
    torch.testing.assert_close(
        prediction.logits - prediction.logits.mean(-1, keepdim=True), centred, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(prediction.energy.double(), energy(prediction.logits), rtol=1e-4, atol=1e-5)


SINGLE: dict[str, Callable[[], Any]] = {
    "Deterministic": lambda: Deterministic(network(0, 1)),
    "MCDropout": lambda: MCDropout(network(0, 1), 20),
    "plain members": lambda: DeepEnsemble([network(seed, 1) for seed in range(3)]),
    "members that drop": lambda: DeepEnsemble([MCDropout(network(seed, 1), 5) for seed in range(3)]),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_of_a_single_logit_neither_class_is_the_unknown_one(name, temperature):
    method = SINGLE[name]()
    method.temperature = temperature
    prediction = method.predict(X)
    z = prediction.logits[:, 1].double()
    torch.testing.assert_close(
        prediction.energy.double(), energy(torch.stack([-z / 2, z / 2], -1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["Deterministic", "MCDropout", "plain members"])
def test_of_probabilities_alone_it_is_the_predictive_entropy(name):
    ending = [nn.Sequential(network(seed), nn.Softmax(-1)) for seed in range(2)]
    method = {
        "Deterministic": lambda: Deterministic(ending[0], outputs="probabilities"),
        "MCDropout": lambda: MCDropout(ending[0], 10, outputs="probabilities"),
        "plain members": lambda: DeepEnsemble(ending, outputs="probabilities"),
    }[name]()
    prediction = method.predict(X)
    torch.testing.assert_close(prediction.ood_score, prediction.predictive_entropy.double())
    with pytest.raises(UnavailableError, match=r"^evidence is not available: .*from_logits"):
        _ = prediction.energy


def test_of_sngp_that_ends_in_a_softmax_they_are_of_the_mean_field_logits_too():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(network(0), nn.Softmax(-1))
    method = SNGP(
        model, num_inducing=64, kernel_scale=1.0, mean_field_factor=20.0, outputs="probabilities", generator=generator
    )
    method.fit_covariance(X[:30])
    prediction = method.predict(X)
    logits = prediction.logits / torch.sqrt(1 + 20 * prediction.logit_variance)
    torch.testing.assert_close(prediction.energy.double(), energy(logits), rtol=1e-4, atol=1e-5)


def test_what_a_detector_gives_stays_with_its_inputs(tmp_path):
    score = torch.linspace(-1, 1, 40, dtype=torch.float64)
    made = with_everything(torch.float32)
    prediction = Prediction(made.probs, logits=made.logits, ood_score=score)
    assert torch.equal(uncertainty(prediction, "ood_score"), score)
    assert torch.equal(Prediction.cat([prediction[20:], prediction[:20]]).ood_score, score.roll(20))
    path = save_predictions(tmp_path / "a.npz", prediction.with_targets(prediction.labels))
    assert torch.equal(load_predictions(path).prediction.ood_score, score)
    with pytest.raises(ValueError, match=r"ood_score has shape \(3,\)"):
        Prediction(made.probs, ood_score=score[:3])


@pytest.mark.parametrize("name", METHODS)
def test_files_carry_them(name, tmp_path):
    prediction = METHODS[name]().predict(X).with_targets(torch.zeros(len(X), dtype=torch.int64))
    read = load_predictions(save_predictions(tmp_path / "a.npz", prediction)).prediction
    for score in ("ood_score", "dempster_shafer", "energy"):
        assert torch.equal(uncertainty(read, score), uncertainty(prediction, score))


def test_a_temperature_that_undoes_a_scale_of_the_logits_leaves_those_of_sngp_where_they_were():
    """As `calibrate` does: a model whose logits are ten times too small has a temperature ten times as small."""
    method = process(mean_field_factor=0.0)
    before = method.predict(X)
    with torch.no_grad():
        method.gp.beta.mul_(0.1)
    method.fit_covariance(X[:30])
    method.temperature = 0.1
    torch.testing.assert_close(method.predict(X).ood_score, before.ood_score, rtol=1e-3, atol=1e-5)
