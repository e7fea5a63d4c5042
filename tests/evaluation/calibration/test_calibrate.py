import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction
from hesitant.evaluation.calibration import sample as sampling
from hesitant.evaluation.calibration.calibrate import Calibration, CalibrationWarning, calibrate
from hesitant.evaluation.calibration.components import Components
from hesitant.evaluation.calibration.likelihood import BOUNDS, fitted, likelihood
from hesitant.evaluation.calibration.sample import Held
from hesitant.methods.random_state import derived_seed
from hesitant.nn import CovarianceError
from hesitant.nn.models import MLP

pytest.importorskip("scipy")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Logits(nn.Module):
    """Answers its inputs, times a scale."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def labelled(temperature: float, size: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs whose logits, divided by the temperature, are right: each stands often, its labels in their share."""
    logits = 2 * torch.randn(20, classes, generator=generator(seed))
    counts = (torch.softmax(logits.double(), -1) * size).round().long()
    rows = torch.arange(20).repeat_interleave(counts.sum(1))
    targets = torch.cat([torch.arange(classes).repeat_interleave(count) for count in counts])
    return temperature * logits[rows], targets


def nll_of(logits: Tensor, targets: Tensor) -> float:
    """The plain formula."""
    return float(-torch.log_softmax(logits.double(), -1).gather(1, targets.unsqueeze(1)).mean())


def quiet(model: Any, data: Any, **options: Any) -> Calibration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return calibrate(model, data, **options)


# ---------------------------------------------------------------- the temperature


@pytest.mark.parametrize("true", [6.0, 1 / 6, 1.0])
@pytest.mark.parametrize("start", [0.02, 1.0, 90.0])
def test_a_true_temperature_is_recovered_to_three_digits(true: float, start: float) -> None:
    model = Deterministic(Logits(), temperature=start)
    logits, targets = labelled(true, 2_000)
    answer = calibrate(model, (logits, targets), batch_size=10**5)
    assert answer.temperature == pytest.approx(true, rel=5e-4)
    assert model.temperature == answer.temperature
    assert not answer.bounded
    assert answer.nll_before == pytest.approx(nll_of(logits / start, targets), rel=1e-5)
    assert answer.nll_after == pytest.approx(nll_of(logits / true, targets), rel=1e-5)
    assert answer.nll_after <= answer.nll_before


def test_it_is_the_minimum_of_the_likelihood() -> None:
    logits = torch.randn(200, 5, generator=generator())
    targets = torch.where(torch.rand(200, generator=generator(1)) < 0.6, logits.argmax(1), torch.arange(200) % 5)
    answer = calibrate(Deterministic(Logits()), (logits, targets))
    around = [nll_of(logits / (answer.temperature * ratio), targets) for ratio in (0.999, 1.0, 1.001)]
    assert around[1] < around[0]
    assert around[1] < around[2]
    assert answer.nll_after == pytest.approx(around[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "one logit"])
def test_the_form_of_the_answer_changes_nothing(kind: str) -> None:
    logits, targets = labelled(2.0, 200, classes=2)
    model: nn.Module = Logits()
    inputs = logits
    if kind == "probabilities":
        model = nn.Sequential(Logits(), nn.Softmax(-1))
    elif kind == "one logit":
        inputs = logits[:, 1:] - logits[:, :1]
    method = Deterministic(model, outputs="probabilities" if kind == "probabilities" else "logits")
    answer = calibrate(method, (inputs, targets))
    expected = calibrate(Deterministic(Logits()), (logits, targets)).temperature
    assert answer.temperature == pytest.approx(expected, rel=1e-4)
    after = method.predict(TensorDataset(inputs, targets))
    assert answer.nll_after == pytest.approx(nll_of(after.log_probs, targets), rel=1e-5)


def test_the_form_and_the_batches_of_the_data_change_nothing() -> None:
    logits, targets = labelled(3.0, 20)
    data = TensorDataset(logits, targets)
    forms = [
        (logits, targets),
        data,
        DataLoader(data, batch_size=7),
        DataLoader(data, batch_size=64, shuffle=True, generator=generator()),
        [(logits[:100], targets[:100]), (logits[100:], targets[100:])],
    ]
    found = [calibrate(Deterministic(Logits()), form, batch_size=50).temperature for form in forms[:4]]
    found.append(calibrate(Deterministic(Logits()), iter(forms[4])).temperature)
    assert found == pytest.approx([found[0]] * 5, rel=1e-7)


def mixture_nll(samples: Tensor, targets: Tensor, temperature: float) -> float:
    """The plain formula for the mean of tempered distributions ``(S, B, C)``."""
    probs = torch.softmax(samples.double().log() / temperature, -1).mean(0)
    return float(-probs.log().gather(1, targets.unsqueeze(1)).mean())


def mlp(seed: int = 0, dropout: float = 0.3) -> nn.Module:
    return nn.Sequential(MLP(4, 3, hidden=(16,), dropout=dropout, generator=generator(seed)), Logits(8.0))


X = torch.randn(300, 4, generator=generator(1))
Y = torch.where(
    torch.rand(300, generator=generator(2)) < 0.6,
    torch.stack([Deterministic(mlp(seed)).predict(X).probs for seed in range(3)]).mean(0).argmax(1),
    torch.arange(300) % 3,
)


@pytest.mark.parametrize("masks", ["per_input", "shared"])
def test_passes_are_fitted_as_the_mean_that_they_are(masks: Any) -> None:
    method = MCDropout(mlp(), 5, masks=masks)
    answer = calibrate(method, (X, Y), seed=3)
    model = MCDropout(mlp(), 5, masks=masks)
    again = calibrate(model, (X, Y), seed=3)
    assert again.temperature == answer.temperature
    assert 1.05 < answer.temperature < 50
    samples = model_at_1(method).predict_samples(X, seed=3 if masks == "shared" else derived_seed(3, 0))
    found = [mixture_nll(samples, Y, answer.temperature * ratio) for ratio in (0.99, 1.0, 1.01)]
    assert found[1] == min(found)
    assert answer.nll_after == pytest.approx(found[1], rel=1e-4)
    assert answer.nll_before == pytest.approx(mixture_nll(samples, Y, 1.0), rel=1e-3)


def model_at_1(method: Any) -> Any:
    method.temperature = 1.0
    return method


@pytest.mark.parametrize("vectorize", [True, False])
def test_members_are_fitted_as_the_mean_that_they_are(vectorize: bool) -> None:
    members = [mlp(0), Deterministic(mlp(1), temperature=2.0), mlp(2)]
    ensemble = DeepEnsemble(members, vectorize=vectorize)
    samples = ensemble.predict_samples(X)
    answer = calibrate(ensemble, (X, Y))
    found = [mixture_nll(samples, Y, answer.temperature * ratio) for ratio in (0.99, 1.0, 1.01)]
    assert found[1] == min(found)
    assert answer.nll_after == pytest.approx(found[1], rel=1e-4)
    assert answer.nll_before == pytest.approx(mixture_nll(samples, Y, 1.0), rel=1e-3)
    assert -ensemble.predict(X).log_probs.gather(1, Y.unsqueeze(1)).mean() == pytest.approx(found[1], rel=1e-4)
    assert members[1].temperature == 2.0  # type: ignore[union-attr]


def test_members_of_all_kinds_weigh_the_same() -> None:
    inner = DeepEnsemble([mlp(3), mlp(4)], temperature=1.5)
    ensemble = DeepEnsemble([MCDropout(mlp(0), 4), inner, mlp(2)])
    answer = calibrate(ensemble, (X, Y))
    after = ensemble.predict(X, seed=0)
    assert answer.nll_after == pytest.approx(float(-after.log_probs.gather(1, Y.unsqueeze(1)).mean()), rel=0.05)
    assert answer.nll_after < answer.nll_before


def test_the_search_finds_the_lower_of_two_minima() -> None:
    # One distribution is right where the other is sure and wrong: sharpened they part, softened they agree.
    generators = generator(5)
    logits = torch.randn(2, 400, 3, generator=generators) * torch.tensor([0.3, 8.0]).view(2, 1, 1)
    targets = torch.where(
        torch.rand(400, generator=generators) < 0.7,
        logits[1].argmax(1),
        torch.randint(0, 3, (400,), generator=generators),
    )
    held = Held()
    one = torch.ones(2, dtype=torch.float64)
    held.append(Components(logits, None, 0 * one, one / 2, targets))
    fit = fitted(held, None, 1.0)
    grid = [math.exp(step / 50) for step in range(-230, 231)]
    best = min(grid, key=lambda t: mixture_nll(logits.double().softmax(-1), targets, t))
    assert not fit.bounded
    assert fit.likelihood.temperature == pytest.approx(best, rel=0.03)


def passes(size: int, samples: int = 3, classes: int = 4, seed: int = 0) -> Components:
    """Components of several distributions that disagree, with a variance, a factor and a weight of each."""
    logits = 3 * torch.randn(samples, size, classes, generator=generator(seed))
    variance = torch.randn(samples, size, classes, generator=generator(seed + 1)).square()
    factors = torch.arange(samples, dtype=torch.float64)
    weights = torch.arange(1.0, samples + 1).double()
    known = logits.softmax(-1).mean(0).argmax(1)
    targets = torch.where(torch.rand(size, generator=generator(seed + 2)) < 0.7, known, torch.arange(size) % classes)
    return Components(logits, variance, factors, weights / weights.sum(), targets)


def plain_losses(components: Components, temperature: float, factor: float | None) -> Tensor:
    """The plain formula, in float64 and without a thought for rounding."""
    assert components.variance is not None
    assert components.targets is not None
    factors = components.factors if factor is None else torch.full_like(components.factors, factor)
    logits = components.logits.double() / torch.sqrt(1 + factors.view(-1, 1, 1) * components.variance.double())
    probs = (components.weights.view(-1, 1, 1) * torch.softmax(logits / temperature, -1)).sum(0)
    return -probs.gather(1, components.targets.unsqueeze(1)).squeeze(1).log()


@pytest.mark.parametrize("factor", [None, 0.0, 5.0])
@pytest.mark.parametrize("temperature", [0.1, 0.7, 30.0])
def test_the_likelihood_and_its_derivatives_are_those_of_the_plain_formula(
    factor: float | None, temperature: float
) -> None:
    components = passes(50)
    held = Held()
    held.append(components)
    losses = plain_losses(components, temperature, factor)
    here = likelihood(held, temperature, factor)
    torch.testing.assert_close(here.losses, losses, rtol=1e-12, atol=1e-12)
    low, high = (likelihood(held, temperature * math.exp(shift), factor) for shift in (-1e-5, 1e-5))
    assert here.slope == pytest.approx((high.mean - low.mean) / 2e-5, rel=1e-6, abs=1e-9)
    assert here.curvature == pytest.approx((high.slope - low.slope) / 2e-5, rel=1e-6, abs=1e-9)


def test_a_likelihood_is_the_same_however_the_inputs_are_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    components, found = passes(500), []
    for numbers in (1, 12 * 7, 2**17):
        monkeypatch.setattr(sampling, "NUMBERS_AT_ONCE", numbers)
        held = Held()
        held.append(components)
        found.append(likelihood(held, 0.7, None))
        assert len(list(held)) == -(-500 // max(1, numbers // 12))
    for other in found[:-1]:
        torch.testing.assert_close(other.losses, found[-1].losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [40, 3000])  # more than the first look, and fewer
@pytest.mark.parametrize("start", [0.02, 1.0, 60.0])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_search_finds_the_minimum_to_nine_digits(size: int, start: float, samples: int) -> None:
    from scipy.optimize import brentq

    components = passes(size, samples)
    held = Held()
    held.append(components)
    fit = fitted(held, 1.0, start)
    assert not fit.bounded

    def slope(log_temperature: float) -> float:
        low, high = (plain_losses(components, math.exp(log_temperature + s), 1.0).mean() for s in (-1e-4, 1e-4))
        return float(high - low)

    around = math.log(fit.likelihood.temperature)
    assert around == pytest.approx(brentq(slope, around - 0.1, around + 0.1, xtol=1e-12), abs=1e-7)
    # The differences above are rounded; the derivative of the plain formula is not.
    log_temperature = torch.tensor(around, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(plain_losses(components, log_temperature.exp(), 1.0).mean(), log_temperature)  # type: ignore[arg-type]
    assert abs(float(gradient)) < 2e-9 * fit.likelihood.curvature
    grid = [float(plain_losses(components, math.exp(step / 10), 1.0).mean()) for step in range(-46, 47)]
    assert fit.likelihood.mean <= min(grid)


# ---------------------------------------------------------------- where there is no optimum


@pytest.mark.parametrize("scale", [1e-1, 1.0, 1e3])
@pytest.mark.parametrize("size", [30, 3000])
def test_separated_data_are_sharpened_as_far_as_they_support(scale: float, size: int) -> None:
    logits = torch.rand(size, 3, generator=generator()) * scale
    targets = logits.argmax(1)
    method = Deterministic(Logits())
    with pytest.warns(CalibrationWarning, match=f"each of the {size} calibration inputs is classified rightly"):
        answer = calibrate(method, (logits, targets))
    assert answer.bounded
    confidence = float(method.predict(logits).confidence.double().mean())
    if answer.temperature == pytest.approx(BOUNDS[0]):
        assert confidence <= (size + 1) / (size + 2)
    elif answer.temperature < 1:
        assert confidence == pytest.approx((size + 1) / (size + 2), abs=1e-5)
    else:  # it is as sure already: no reason to soften
        assert answer.temperature == 1
        assert confidence >= (size + 1) / (size + 2)


def test_members_that_disagree_and_are_never_all_wrong_do_not_become_their_votes() -> None:
    # As T falls the loss falls to that of the shares of the votes: probabilities of 1 wherever all agree.
    size = 200
    targets = torch.arange(size) % 3
    logits = 3 * torch.eye(3)[targets].expand(3, -1, -1) + 0.5 * torch.randn(3, size, 3, generator=generator())
    logits[0, :20] = logits[0, :20].roll(1, -1)  # one member of three is wrong there
    samples = logits.softmax(-1)
    assert mixture_nll(samples, targets, 0.05) < mixture_nll(samples, targets, 0.5)
    ensemble = DeepEnsemble([Rows(rows) for rows in logits])
    with pytest.warns(CalibrationWarning, match="by one member or pass at least"):
        answer = calibrate(ensemble, (torch.arange(size).float().unsqueeze(1), targets))
    assert 0.1 < answer.temperature < 1
    confidence = ensemble.predict(torch.arange(size).float().unsqueeze(1)).confidence.double().mean()
    assert float(1 - confidence) == pytest.approx(20 / 3 / size + 1 / (size + 2), rel=1e-3)


class Rows(nn.Module):
    """Answers a row of a table."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0].long()]


def test_saturated_data_stay_at_1() -> None:
    logits = 1e4 * torch.eye(3)[torch.arange(30) % 3]
    for method in (Deterministic(Logits()), DeepEnsemble([Logits(), Logits(2.0)])):
        assert quiet(method, (logits, torch.arange(30) % 3)).temperature == 1


def test_labels_that_contradict_the_model_soften_it_to_the_bound() -> None:
    logits = torch.rand(50, 3, generator=generator())
    method = Deterministic(Logits())
    with pytest.warns(CalibrationWarning, match="beyond 100"):
        answer = calibrate(method, (logits, logits.argmin(1)))
    assert answer.temperature == pytest.approx(BOUNDS[1])
    assert answer.bounded


def test_a_best_temperature_below_the_bound_is_named() -> None:
    logits, targets = labelled(1e-4, 100)
    with pytest.warns(CalibrationWarning, match=r"beyond 0\.01"):
        assert calibrate(Deterministic(Logits()), (logits, targets)).temperature == pytest.approx(BOUNDS[0])


def test_answers_that_are_all_the_same_leave_it_at_1() -> None:
    method = Deterministic(Logits(), temperature=3.0)
    with pytest.warns(CalibrationWarning, match="every temperature"):
        assert calibrate(method, (torch.zeros(20, 3), torch.arange(20) % 3)).temperature == 1


def test_a_target_of_probability_0_is_fitted_as_the_least_that_is_held_and_said() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.25, 0.75]])
    with pytest.warns(CalibrationWarning, match="the probability 0 to 1 of the targets"):
        answer = calibrate(Deterministic(nn.Identity(), outputs="probabilities"), (probs, torch.tensor([1, 1, 0, 1])))
    assert answer.nll_before == answer.nll_after == math.inf
    assert answer.temperature > 10


# ---------------------------------------------------------------- what stays


METHODS: dict[str, Callable[[], Any]] = {
    "Deterministic": lambda: Deterministic(mlp()),
    "MCDropout": lambda: MCDropout(mlp(), 4),
    "DeepEnsemble": lambda: DeepEnsemble([mlp(0), MCDropout(mlp(1), 3)]),
    "SNGP": lambda: sngp(),
}


def sngp(seed: int = 0, **options: Any) -> SNGP:
    options = {"num_inducing": 64, "kernel_scale": 4.0, "generator": generator(seed), **options}
    method = SNGP(MLP(4, 3, hidden=(16,), dropout=0.2, generator=generator(seed)), **options)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(method(X), Y).backward()
            optimizer.step()
    method.fit_covariance(X)
    return method


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_modes_weights_and_random_states_stay(name: str, training: bool) -> None:
    method = METHODS[name]().train(training)
    next(method.children()).eval()
    modes = [module.training for module in method.modules()]
    state, random_state = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    data = DataLoader(TensorDataset(X, Y), batch_size=50, shuffle=True)
    quiet(method, data)
    assert [module.training for module in method.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    after = method.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in state.items())


@pytest.mark.parametrize("name", METHODS)
def test_twice_is_as_once(name: str) -> None:
    method = METHODS[name]()
    first = quiet(method, (X, Y))
    second = quiet(method, (X, Y))
    assert second.temperature == pytest.approx(first.temperature, rel=1e-6)
    assert second.mean_field_factor == first.mean_field_factor
    assert second.nll_before == pytest.approx(first.nll_after, rel=1e-6)


# ---------------------------------------------------------------- SNGP


def far(method: SNGP) -> float:
    """The mean uncertainty far from the data, in [0, 1]: the predictive variance over its greatest value."""
    away = 6 * torch.nn.functional.normalize(torch.randn(100, 4, generator=generator(3)), dim=1)
    return float(method.predict(away).predictive_variance.mean()) * 3 / 2


def test_the_temperature_and_the_factor_are_those_of_the_likelihood() -> None:
    method = sngp()
    before = method.predict(X)
    answer = quiet(method, (X, Y))
    assert answer.mean_field_factor is not None
    logits = before.logits / (answer.temperature * torch.sqrt(1 + answer.mean_field_factor * before.logit_variance))
    after = method.predict(X)
    torch.testing.assert_close(after.probs, torch.softmax(logits, -1))
    assert answer.nll_after == pytest.approx(nll_of(logits, Y), rel=1e-5)
    assert answer.nll_before == pytest.approx(nll_of(before.log_probs, Y), rel=1e-5)
    assert method.gp.mean_field_factor == answer.mean_field_factor
    assert torch.equal(after.logits, before.logits)


def losses_of(method: SNGP, before: Prediction, factor: float, data: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of each input with a factor and its own temperature."""
    found = quiet(copy.deepcopy(method), data, mean_field_factors=(factor,))
    assert found.mean_field_factor == factor
    logits = before.logits / (found.temperature * torch.sqrt(1 + factor * before.logit_variance))
    return -torch.log_softmax(logits.double(), -1).gather(1, data[1].unsqueeze(1)).squeeze(1)


def test_the_factor_is_the_largest_that_costs_next_to_nothing() -> None:
    method = sngp()
    before = method.predict(X)
    ladder = (0.0, 1.0, 10.0, 100.0)
    losses = {factor: losses_of(method, before, factor, (X, Y)) for factor in ladder}
    best = min(losses.values(), key=lambda loss: float(loss.mean()))
    frequencies = Y.bincount().double() / len(Y)
    known = float(-(frequencies * frequencies.log()).sum() - best.mean())
    share = min(max(0.02 * float(best.mean()), 1 / len(X)), 0.02 * known)
    allowed = [
        factor
        for factor, loss in losses.items()
        if float((loss - best).mean()) <= max(float((loss - best).std(correction=0)) / math.sqrt(len(X)), share)
    ]
    answer = quiet(copy.deepcopy(method), (X, Y), mean_field_factors=ladder)
    assert answer.mean_field_factor == max(allowed)
    assert quiet(method, (X, Y)).mean_field_factor in [10 ** (third / 3) for third in range(-6, 7)]


def test_the_factors_that_are_given_are_the_ladder_and_no_other() -> None:
    method = sngp()
    assert quiet(method, (X, Y), mean_field_factors=(30.0,)).mean_field_factor == 30
    assert method.gp.mean_field_factor == 30


def sharply_informed(size: int) -> tuple[SNGP, tuple[Tensor, Tensor]]:
    """An SNGP and many inputs near its data, on which a larger factor costs a little, and surely does."""
    draws = generator(11)
    centers = 2 * torch.randn(12, 8, generator=draws)
    targets = torch.randint(12, (size + 2000,), generator=draws)
    inputs = centers[targets] + 1.4 * torch.randn(size + 2000, 8, generator=draws)
    method = SNGP(
        nn.Linear(8, 12),
        norm_bound=None,
        num_inducing=256,
        kernel_scale=64.0,
        ridge_penalty=1.0,
        random_features="gaussian",
        parametrization="standard",
        generator=draws,
    )
    optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(method(inputs[:2000]), targets[:2000]).backward()
        optimizer.step()
    method.fit_covariance(inputs[:2000])
    return method, (inputs[2000:], targets[2000:])


def test_many_inputs_do_not_switch_sngp_off_for_next_to_nothing() -> None:
    """As on CLINC150: 3,000 inputs refuse every factor but the least by their standard error."""
    method, data = sharply_informed(20_000)
    before = method.predict(data[0])
    losses = {factor: losses_of(method, before, factor, data) for factor in (0.0, 0.1)}
    excess = losses[0.1] - losses[0.0]
    assert float(excess.mean()) > float(excess.std(correction=0)) / math.sqrt(len(excess))
    answer = quiet(method, data)
    assert answer.mean_field_factor is not None
    assert answer.mean_field_factor > 10
    assert answer.nll_after <= 1.02 * min(float(loss.mean()) for loss in losses.values())


def test_what_can_hardly_be_predicted_is_not_given_away_for_a_share_of_a_large_loss() -> None:
    """Targets that are nearly noise: 2 % of the NLL is more than all that the model knows."""
    method, (inputs, targets) = sharply_informed(20_000)
    draws = generator(12)
    noise = torch.randint(12, targets.shape, generator=draws)
    noisy = torch.where(torch.rand(targets.shape, generator=draws) < 0.1, targets, noise)
    answer = quiet(method, (inputs, noisy))
    least = quiet(copy.deepcopy(method), (inputs, noisy), mean_field_factors=(0.0,)).nll_after
    assert 0.02 * least > 0.5 * (math.log(12) - least)
    assert math.log(12) - answer.nll_after > 0.9 * (math.log(12) - least)


def test_easy_data_do_not_switch_sngp_off() -> None:
    """Where each input is known the least NLL, its share and the standard error are nothing; caution costs 1 / N."""
    method, (inputs, targets) = sharply_informed(20_000)
    prediction = method.predict(inputs)
    sure_and_right = prediction.confidence.where(prediction.labels == targets, 0.0)
    easy = sure_and_right.argsort(descending=True)[:1000]
    data = inputs[easy], targets[easy]
    least = quiet(copy.deepcopy(method), data, mean_field_factors=(0.0,)).nll_after
    assert least < 1e-4
    answer = quiet(method, data)
    assert answer.mean_field_factor is not None
    assert answer.mean_field_factor > 10
    assert answer.nll_after - least <= 1 / 1000


def moons(seed: int, size: int = 400) -> tuple[Tensor, Tensor]:
    from hesitant.data import two_moons

    data = two_moons(size, generator=generator(seed))
    return data.inputs, data.targets


@pytest.fixture(scope="module")
def under_confident() -> Any:
    """A Gaussian process over the plane itself, trained too short to be sure of anything."""
    inputs, targets = moons(0)
    method = SNGP(
        nn.Linear(2, 2),
        norm_bound=None,
        num_inducing=256,
        kernel_scale=0.2,
        ridge_penalty=0.1,
        random_features="gaussian",
        parametrization="standard",
        generator=generator(),
    )
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(method(inputs), targets).backward()
        optimizer.step()
    method.fit_covariance(inputs)
    return method


AWAY = torch.tensor([2.5, -1.75]) + 0.1 * torch.randn(200, 2, generator=generator(7))


def u(method: SNGP, inputs: Tensor) -> float:
    return float(2 * method.predict(inputs).predictive_variance.mean())


def test_ours_keeps_the_distance_awareness_that_the_likelihood_alone_destroys(under_confident: SNGP) -> None:
    """FIELD.md: fitted by NLL alone, the temperature or the factor gives the distance awareness away."""
    method = copy.deepcopy(under_confident)
    data, test = moons(1), moons(2)
    before, u_before = nll_of(method.predict(test[0]).log_probs, test[1]), u(method, AWAY)
    assert u_before > 0.9
    own = method.gp.mean_field_factor

    def loss(temperature: float, factor: float) -> float:
        method.temperature, method.gp.mean_field_factor = temperature, factor
        return nll_of(method.predict(data[0]).log_probs, data[1])

    factors = [0.0, 0.1, 1.0, 10.0, 100.0]
    assert min(factors, key=lambda factor: loss(1.0, factor)) == 0  # the factor alone
    temperatures = [math.exp(step / 4) for step in range(-18, 5)]
    assert own is not None
    loss(min(temperatures, key=lambda temperature: loss(temperature, own)), own)
    temperature_alone = u(method, AWAY)
    loss(*min(((t, f) for t in temperatures for f in factors), key=lambda pair: loss(*pair)))
    jointly = u(method, AWAY)
    assert temperature_alone < 0.6 * u_before
    assert jointly < 0.6 * u_before

    method.temperature, method.gp.mean_field_factor = 1.0, own
    answer = quiet(method, data)
    assert answer.mean_field_factor is not None
    assert answer.mean_field_factor > 10
    assert u(method, AWAY) > 0.9
    assert nll_of(method.predict(test[0]).log_probs, test[1]) < before / 4


def test_an_ensemble_of_sngps_shares_one_factor() -> None:
    ensemble = DeepEnsemble([sngp(0), sngp(1, mean_field_factor=2.0)])
    assert calibrate_quietly_factor(ensemble) is not None
    first, second = ensemble.members
    assert first.gp.mean_field_factor == second.gp.mean_field_factor  # type: ignore[union-attr]
    answer = quiet(ensemble, (X, Y))
    after = -ensemble.predict(X).log_probs.gather(1, Y.unsqueeze(1)).mean()
    assert answer.nll_after == pytest.approx(float(after), rel=1e-4)


def calibrate_quietly_factor(ensemble: DeepEnsemble) -> float | None:
    return quiet(ensemble, (X, Y)).mean_field_factor


class Shell(nn.Module):
    """A model around a method."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)


WRAPPED: dict[str, Callable[[SNGP], Any]] = {
    "Deterministic": Deterministic,
    "MCDropout": lambda process: MCDropout(process, 5),
    "members of a model": lambda process: DeepEnsemble([Shell(process), Shell(sngp(1))]),
    "beside one that can": lambda process: DeepEnsemble([sngp(1), Deterministic(process)]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_factor_of_an_sngp_within_another_method_stays(name: str) -> None:
    process = sngp()
    method = WRAPPED[name](process)
    kept = process.gp.mean_field_factor
    answer = quiet(method, (X, Y))
    assert process.gp.mean_field_factor == kept
    options = {} if name != "MCDropout" else {"seed": derived_seed(0, 0)}
    assert answer.nll_after == pytest.approx(nll_of(method.predict(X, **options).log_probs, Y), rel=1e-4)


def test_members_that_keep_their_own_factors_have_none_in_common() -> None:
    ensemble = DeepEnsemble([sngp(0), sngp(1, mean_field_factor=2.0)])
    assert quiet(ensemble, (X, Y), mean_field_factors=()).mean_field_factor is None
    assert [m.gp.mean_field_factor for m in ensemble.members] == [pytest.approx(math.pi / 8), 2.0]  # type: ignore[union-attr]


def test_a_stale_covariance_is_refused() -> None:
    method = sngp()
    with torch.no_grad():
        method.gp.beta.mul_(1.1)
    with pytest.raises(CovarianceError, match="stale"):
        calibrate(method, (X, Y))
    assert method.temperature == 1


def test_a_model_that_changes_its_logits_afterwards_has_no_factor_to_fit() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = MLP(4, 3, hidden=(8,), generator=generator())

        def forward(self, x: Tensor) -> Tensor:
            return 8 * self.network(x)

    method = SNGP(Doubled(), num_inducing=16, kernel_scale=1.0, generator=generator())
    method.fit_covariance(X)
    with pytest.raises(ValueError, match="no factor to fit"):
        calibrate(method, (X, Y))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(X, "no targets", id="tensor"),
        pytest.param(TensorDataset(X), "no targets", id="dataset"),
        pytest.param((X[:0], Y[:0]), "empty|no batch", id="empty"),
        pytest.param((X, torch.zeros_like(Y)), "one class alone, 0", id="one class"),
        pytest.param((X, Y + 1), r"\[1, 3\]: expected 0 to 2", id="out of range"),
        pytest.param((X, Y - 1), r"\[-1, 1\]: expected 0 to 2", id="negative"),
        pytest.param((X, Y + 0.5), "expected class indices", id="fractions"),
        pytest.param((X, torch.full((len(X), 3), 1 / 3)), "one class an input", id="soft"),
        pytest.param((X * math.nan, Y), "NaN|finite", id="NaN"),
        pytest.param((X,), "data has no targets", id="no targets"),
        pytest.param((X, X, Y), "a tuple of 3", id="three"),
    ],
)
@pytest.mark.parametrize("name", ["Deterministic", "MCDropout"])
def test_bad_data_is_named(name: str, data: Any, message: str) -> None:
    method = METHODS[name]()
    with pytest.raises((TypeError, ValueError), match=message):
        calibrate(method, data)
    assert method.temperature == 1


def test_a_plain_model_is_told_to_be_wrapped() -> None:
    with pytest.raises(TypeError, match=r"hesitant\.Deterministic\(model\)"):
        calibrate(mlp(), (X, Y))  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [-1.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_named(factor: float) -> None:
    with pytest.raises(ValueError, match="mean_field_factors"):
        calibrate(sngp(), (X, Y), mean_field_factors=(1.0, factor))


def test_it_says_what_it_did() -> None:
    assert repr(Calibration(1.834, None, 0.124, 0.098, 1000, 1000, False)) == (
        "Calibration(temperature 1.834, NLL 0.124 -> 0.098 on 1,000 inputs)"
    )
    assert repr(Calibration(0.2, 20.0, 0.07, 0.001, 5000, 50_000, True)) == (
        "Calibration(temperature 0.2 (not determined by the data), mean-field factor 20,"
        " NLL 0.07 -> 0.001 on 5,000 of 50,000 inputs)"
    )
