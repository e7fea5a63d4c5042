import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesitant
from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.methods.outputs import logits_of
from hesitant.nn.models import MLP

CLASSES = 3
X = 2 * torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(40) % CLASSES
TEMPERATURES = (0.25, 3.0)


def network(classes: int = CLASSES, seed: int = 0) -> nn.Module:
    return MLP(4, classes, hidden=(16,), dropout=0.3, generator=torch.Generator().manual_seed(seed))


def sngp(classes: int = CLASSES, seed: int = 0) -> SNGP:
    method = SNGP(
        network(classes, seed), num_inducing=32, kernel_scale=1.0, generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        method.gp.beta.mul_(5)
    method.fit_covariance(X[:20])
    return method


def of_plain(classes: int = CLASSES) -> DeepEnsemble:
    return DeepEnsemble([network(classes, seed) for seed in range(3)])


def of_several_kinds(classes: int = CLASSES) -> DeepEnsemble:
    inner = DeepEnsemble([Deterministic(network(classes, 3), temperature=2.0), network(classes, 4)], temperature=1.5)
    return DeepEnsemble([MCDropout(network(classes, 2), 4), sngp(classes), inner])


METHODS: dict[str, Callable[..., Any]] = {
    "Deterministic": lambda classes=CLASSES: Deterministic(network(classes)),
    "MCDropout": lambda classes=CLASSES: MCDropout(network(classes), 6),
    "SNGP": sngp,
    "DeepEnsemble": of_plain,
    "several kinds": of_several_kinds,
}
each_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
each_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def predicted(method: Any, inputs: Any = X, **options: Any) -> hesitant.Prediction:
    seeded = isinstance(method, (MCDropout, DeepEnsemble))
    return method.predict(inputs, **({"seed": 0} if seeded else {}), **options)


def softened(probs: Tensor, temperature: float) -> Tensor:
    """The plain formula: ``p^(1/T)``, divided by its sum."""
    powers = probs.double() ** (1 / temperature)
    return powers / powers.sum(-1, keepdim=True)


# ---------------------------------------------------------------- what it does


@each_method
@pytest.mark.parametrize(("temperature", "classes"), [(0.25, 3), (3.0, 3), (3.0, 1)])
def test_softmax_of_eval_forward_is_the_tempered_prediction(
    make: Callable[..., Any], temperature: float, classes: int
) -> None:
    method = make(classes).eval()
    before = predicted(method).probs
    method.temperature = temperature
    with torch.no_grad():
        answer = method(X)
    assert answer.shape == (40, classes)
    probs = torch.softmax(answer, -1) if classes > 1 else torch.cat([1 - answer.sigmoid(), answer.sigmoid()], 1)
    torch.testing.assert_close(probs, predicted(method).probs, atol=1e-5, rtol=1e-4)
    if isinstance(method, (Deterministic, SNGP)):
        torch.testing.assert_close(probs.double(), softened(before, temperature), atol=1e-5, rtol=0)
    change = (predicted(method).confidence - before.amax(-1)).mean()
    assert change < -0.01 if temperature > 1 else change > 0.01


@each_temperature
def test_each_pass_is_tempered_before_the_mean(temperature: float) -> None:
    method = MCDropout(network(), 6)
    passes = softened(method.predict_samples(X, seed=5), temperature)
    method.temperature = temperature
    torch.testing.assert_close(method.predict_samples(X, seed=5).double(), passes, atol=1e-5, rtol=0)
    torch.testing.assert_close(method.predict_samples(X, seed=5, log=True).exp().double(), passes, atol=1e-5, rtol=0)
    prediction = method.predict(X, seed=5)
    torch.testing.assert_close(prediction.probs.double(), passes.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.class_std.double(), passes.std(0, correction=0), atol=1e-5, rtol=0)


@each_temperature
@pytest.mark.parametrize("vectorize", [True, False])
def test_each_member_is_tempered_before_the_mean(temperature: float, vectorize: bool) -> None:
    members = [network(seed=0), Deterministic(network(seed=1), temperature=2.0)]
    ensemble = DeepEnsemble(members, vectorize=vectorize, temperature=temperature).eval()
    own = torch.stack([Deterministic(network(seed=s)).predict(X).probs for s in (0, 1)])
    expected = torch.stack([softened(own[0], temperature), softened(own[1], 2 * temperature)])
    torch.testing.assert_close(ensemble.predict_samples(X).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ensemble.predict(X).probs.double(), expected.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.softmax(ensemble(X), -1).double(), expected.mean(0), atol=1e-5, rtol=0)


@each_temperature
def test_a_temperature_multiplies_those_of_members_within(temperature: float) -> None:
    outer, inner = of_several_kinds().eval(), of_several_kinds().eval()
    outer.temperature = temperature
    for member in inner.members:
        member.temperature *= temperature
    torch.testing.assert_close(predicted(outer).probs, predicted(inner).probs)
    torch.testing.assert_close(outer(X), inner(X))
    drawn = {"posterior": "monte_carlo", "num_samples": 20}
    torch.testing.assert_close(predicted(outer, **drawn).class_std, predicted(inner, **drawn).class_std)


@each_temperature
def test_draws_are_tempered_before_the_mean(temperature: float) -> None:
    method = sngp()
    method.temperature = temperature
    prediction = method.predict(X, posterior="monte_carlo", num_samples=20_000)
    mean, spread = prediction.logits.double(), prediction.logit_variance.double().sqrt()
    noise = torch.randn(20_000, 40, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = torch.softmax((mean + noise * spread) / temperature, -1).mean(0)
    torch.testing.assert_close(prediction.probs.double(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("make", [METHODS["MCDropout"], of_plain, of_several_kinds], ids=["passes", "plain", "several"])
@each_temperature
def test_total_is_aleatoric_plus_epistemic(make: Callable[..., Any], temperature: float) -> None:
    method = make()
    method.temperature = temperature
    options = {"posterior": "monte_carlo", "num_samples": 20} if make is of_several_kinds else {}
    prediction = predicted(method, **options)
    total = prediction.expected_entropy + prediction.mutual_information
    torch.testing.assert_close(prediction.predictive_entropy, total)
    assert prediction.mutual_information.min() >= 0
    assert prediction.mutual_information.max() > 0.01


def test_the_posterior_stays_untempered() -> None:
    for method in (sngp(), sngp(1), Deterministic(network()), DeepEnsemble([sngp(), sngp(seed=1)])):
        before = method.predict(X)
        method.temperature = 3.0
        after = method.predict(X)
        assert torch.equal(before.logits, after.logits)
        if not isinstance(method, Deterministic):
            assert torch.equal(before.logit_variance, after.logit_variance)
        assert not torch.equal(before.probs, after.probs)


class Answers(nn.Module):
    """A network whose logits are made something else of."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.function = network(), function

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return self.function(self.network(x))


class Output:
    """As the models of Hugging Face answer."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.loss = logits, F.cross_entropy(logits, Y)


@each_temperature
def test_a_model_that_ends_in_softmax_is_tempered_too(temperature: float) -> None:
    method = Deterministic(Answers(lambda z: torch.softmax(z, -1)), outputs="probabilities").eval()
    expected = softened(method.predict(X).probs, temperature)
    method.temperature = temperature
    torch.testing.assert_close(method.predict(X).probs.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.softmax(method(X), -1).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [dict, tuple], ids=["dict", "tuple"])
def test_the_output_keeps_its_form(kind: type) -> None:
    method = Deterministic(Answers(lambda z: {"logits": z} if kind is dict else (z, 1)), temperature=2.0).eval()
    answer = method(X)
    assert type(answer) is kind
    torch.testing.assert_close(logits_of(answer), network().eval()(X) / 2)


def test_a_loss_is_that_of_the_tempered_logits() -> None:
    method = Deterministic(Answers(Output), temperature=2.0).eval()
    output = method(X, labels=Y)
    torch.testing.assert_close(output.loss, F.cross_entropy(network().eval()(X) / 2, Y))
    assert method(X).loss is None


@each_method
def test_a_temperature_of_1_changes_no_bit(make: Callable[..., Any]) -> None:
    method = make().eval()
    prediction, answer = predicted(method), method(X)
    method.temperature = 2.0
    method.temperature = 1.0
    assert torch.equal(predicted(method).log_probs, prediction.log_probs)
    assert torch.equal(method(X), answer)


@pytest.mark.parametrize("name", ["Deterministic", "MCDropout", "SNGP"])
def test_training_mode_knows_no_temperature(name: str) -> None:
    answers = []
    for temperature in (1.0, 3.0):
        method = METHODS[name]().train()
        method.temperature = temperature
        with torch.random.fork_rng():
            torch.manual_seed(0)
            answers.append(method(X))
    assert torch.equal(*answers)


@each_method
def test_a_temperature_is_positive_and_finite(make: Callable[..., Any]) -> None:
    method = make()
    before = method.temperature
    for value in (0, -1.0, math.inf, math.nan, "two", None, True):
        with pytest.raises(ValueError, match=f"temperature={value!r}"):
            method.temperature = value
        assert method.temperature == before


def test_it_is_an_argument_of_every_method() -> None:
    for make in (Deterministic, MCDropout, SNGP):
        assert make(network(), temperature=2).temperature == 2.0
        with pytest.raises(ValueError, match="temperature=-1"):
            make(network(), temperature=-1)
    assert DeepEnsemble([network()], temperature=2).temperature == 2.0


def test_logits_of_more_axes_cannot_be_tempered() -> None:
    method = Deterministic(Answers(lambda z: z.unsqueeze(1))).eval()
    method(X)
    method.temperature = 2.0
    with pytest.raises(ValueError, match=r"\(40, 1, 3\)"):
        method(X)


# ---------------------------------------------------------------- where it is kept

ODD = 1 / 3 * 7.1  # needs all the digits of a float64


def calibrated(make: Callable[..., Any]) -> Any:
    method = make()
    method.temperature = ODD
    for module in method.modules():
        if isinstance(module, SNGP):
            module.calibrate_factor(ODD + 1)
    return method


def factors(method: nn.Module) -> list[float | None]:
    return [module.gp.mean_field_factor for module in method.modules() if isinstance(module, SNGP)]


def through_state_dict(method: Any, make: Callable[..., Any]) -> Any:
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def through_safetensors(method: Any, make: Callable[..., Any]) -> Any:
    from safetensors.torch import load, save

    fresh = make()
    fresh.load_state_dict(load(save({name: t.clone() for name, t in method.state_dict().items()})))
    return fresh


def through_pickle(method: Any, make: Callable[..., Any]) -> Any:
    file = io.BytesIO()
    torch.save(method, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[..., Any]] = {
    "state dict": through_state_dict,
    "safetensors": through_safetensors,
    "pickle": through_pickle,
    "deepcopy": lambda method, make: copy.deepcopy(method),
    "half": lambda method, make: method.half().float(),
    "assign": lambda method, make: _assigned(method, make()),
}


def _assigned(method: Any, fresh: Any) -> Any:
    fresh.load_state_dict(method.state_dict(), assign=True)
    return fresh


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "state dict") for name in METHODS), *(("several kinds", way) for way in list(WAYS)[1:])]
)
def test_a_calibration_survives_to_the_last_digit(name: str, way: str) -> None:
    method = calibrated(METHODS[name])
    inner = [m.temperature for m in method.modules() if hasattr(type(m), "temperature")]
    again = WAYS[way](method, METHODS[name])
    assert again.temperature == ODD
    assert [m.temperature for m in again.modules() if hasattr(type(m), "temperature")] == inner
    assert factors(again) == [ODD + 1] * len(factors(method))


def test_a_state_dict_without_one_is_that_of_an_uncalibrated_model() -> None:
    for make in (METHODS["Deterministic"], sngp):
        plain, method = make(), calibrated(make)
        assert "temperature" not in plain.state_dict()
        own = factors(plain)
        method.load_state_dict(plain.state_dict())
        assert method.temperature == 1
        assert factors(method) == own
        assert method.state_dict().keys() == plain.state_dict().keys()


def test_what_a_state_dict_lacks_or_has_too_much_is_still_named() -> None:
    method = calibrated(METHODS["Deterministic"])
    state = method.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected"):
        method.load_state_dict({**state, "temperatures": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Missing"):
        method.load_state_dict({"temperature": state["temperature"]})


def test_a_factor_of_none_is_kept_apart_from_none_at_all() -> None:
    method = sngp()
    method.calibrate_factor(None)
    again = through_state_dict(method, sngp)
    assert again.gp.mean_field_factor is None
    again.forget_calibration()
    assert again.gp.mean_field_factor == pytest.approx(math.pi / 8)


def test_a_factor_set_by_hand_stays_through_loading() -> None:
    method = sngp()
    method.gp.mean_field_factor = 7.0
    method.load_state_dict(sngp().state_dict())
    assert method.gp.mean_field_factor == 7.0
    method.calibrate_factor(2.0)
    method.calibrate_factor(3.0)
    assert method.uncalibrated_factor == 7.0
    method.forget_calibration()
    assert method.gp.mean_field_factor == 7.0


# ---------------------------------------------------------------- other people's tools


@pytest.mark.parametrize("name", ["Deterministic", "SNGP", "DeepEnsemble"])
def test_compiled_agrees_with_eager(name: str) -> None:
    method = METHODS[name]().eval()
    method.temperature = 2.5
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(method, backend="aot_eager")(X), method(X))


def test_compiled_models_that_end_in_softmax_agree_with_eager() -> None:
    method = Deterministic(Answers(lambda z: torch.softmax(z, -1)), temperature=2.5).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(method, backend="aot_eager", fullgraph=True)(X), method(X))


@pytest.mark.parametrize("name", ["Deterministic", "SNGP"])
def test_exported_agrees_with_eager(name: str) -> None:
    method = METHODS[name]().eval()
    method.temperature = 2.5
    with torch.no_grad():
        exported = torch.export.export(method, (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
        torch.testing.assert_close(exported.module()(X[:7]), method(X[:7]))


# ---------------------------------------------------------------- fit


def fit(model: nn.Module, **options: Any) -> None:
    hesitant.fit(model, (X, Y), epochs=1, batch_size=20, device="cpu", progress=False, **options)


@pytest.mark.parametrize("name", ["Deterministic", "MCDropout", "SNGP"])
def test_training_forgets_the_calibration(name: str, tmp_path: Any) -> None:
    method = calibrated(METHODS[name])
    own = factors(METHODS[name]())
    fit(method, checkpoint=tmp_path / "run")
    assert method.temperature == 1
    assert factors(method) == own


@pytest.mark.parametrize("vectorize", [True, False])
def test_training_forgets_the_calibration_of_members(vectorize: bool) -> None:
    members = [Deterministic(network(seed=s), temperature=2.0) for s in range(2)]
    ensemble = DeepEnsemble(members, vectorize=vectorize, temperature=3.0)
    fit(ensemble)
    assert ensemble.temperature == 1
    assert [member.temperature for member in ensemble.members] == [1, 1]
