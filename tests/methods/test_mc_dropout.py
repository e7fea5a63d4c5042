import copy
import inspect
import io
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import assert_same_distribution, generator, plain_passes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hesitant
from hesitant import MCDropout
from hesitant.nn.models import MLP, DeepResNet, WideResNet

X = torch.randn(50, 4, generator=generator(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def mlp(classes: int = 3, dropout: float = 0.5) -> MLP:
    return MLP(4, classes, hidden=(16, 8), dropout=dropout, dropout_input=dropout / 2, generator=generator())


def method_of(model: nn.Module | None = None, num_samples: int = 20, **options: Any) -> Any:
    return MCDropout(mlp() if model is None else model, num_samples=num_samples, **options)


# ---------------------------------------------------------------- the one rule


@pytest.mark.parametrize("masks", ["per_input", "shared"])
def test_softmax_of_eval_forward_is_the_prediction(masks: Any) -> None:
    method = method_of(masks=masks).eval()
    logits = method(X)
    assert torch.equal(method(X), logits)
    torch.testing.assert_close(torch.softmax(logits, -1), method.predict(X, seed=0).probs, rtol=1e-6, atol=1e-7)
    assert not torch.equal(method.predict(X, seed=0).probs, method.predict(X, seed=1).probs)


def test_eval_forward_is_the_logarithm_of_the_mean_also_where_it_underflows() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.copy_(300 * torch.randn(3, 4, generator=generator()))
    method = method_of(model).eval()
    assert bool(torch.isfinite(method(X)).all())
    assert bool((method(X).exp().sum(-1) - 1 < 1e-5).all())
    assert bool(torch.isfinite(method.predict(X, seed=0).log_probs).all())


def test_training_forward_is_the_models_own() -> None:
    model = mlp()
    method = method_of(model).train()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = model(X)
        torch.manual_seed(3)
        torch.testing.assert_close(method(X), expected, rtol=0, atol=0)
        F.cross_entropy(method(X), Y).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_eval_mode_reaches_the_model_only_for_the_plain_model() -> None:
    """A loop that validates in eval mode and trains on afterwards finds the model as it left it."""
    method = method_of()
    method.eval()
    method(X)
    assert not any(module.training for module in method.modules())
    method.train()
    assert all(module.training for module in method.modules())
    method.predict(X)
    assert all(module.training for module in method.modules())


def test_fit_trains_it_as_the_plain_model() -> None:
    def trained(model: nn.Module) -> list[Tensor]:
        hesitant.fit(model, TensorDataset(X, Y), epochs=2, batch_size=10, progress=False, seed=4)
        return [parameter.detach() for parameter in model.parameters()]

    for ours, plain in zip(trained(method_of(mlp())), trained(mlp()), strict=True):
        torch.testing.assert_close(ours, plain)


def test_fit_validates_it_on_the_mean_of_the_passes() -> None:
    method = method_of(mlp())
    history = hesitant.fit(method, TensorDataset(X, Y), epochs=1, validation_data=TensorDataset(X, Y), progress=False)
    probs = method.predict(X, seed=0).probs
    nll = float(-probs.gather(1, Y[:, None]).log().mean())
    assert history.validation_nll[0] == pytest.approx(nll, rel=0.1)


# ---------------------------------------------------------------- the plain loop


class Classic(nn.Module):
    """The PyTorch recipe: dropout always on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.first(x)), p=0.5, training=True)
        return self.head(F.dropout(F.relu(self.second(hidden)), p=0.5, training=True))


class KerasRecipe(nn.Sequential):
    """The Keras recipe: dropout at the input too, and softmax at the end."""

    def __init__(self) -> None:
        sizes = (4, 16, 8, 3)
        layers: list[nn.Module] = []
        for width, size in itertools.pairwise(sizes):
            layers += [nn.Dropout(0.2), nn.Linear(width, size), nn.ReLU()]
        super().__init__(*layers[:-1], nn.Softmax(-1))


IMAGES = torch.randn(5, 3, 8, 8, generator=generator(2))
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "MLP": (mlp, X[:6]),
    "DeepResNet": (lambda: DeepResNet(in_features=4, num_classes=3, width=16), X[:6]),
    "WideResNet": (lambda: WideResNet(depth=10, widen=1, num_classes=3, dropout=0.3), IMAGES),
    "PyTorch recipe": (Classic, X[:6]),
    "Keras recipe": (KerasRecipe, X[:6]),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.MaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.4), nn.Linear(72, 3),
        ),
        IMAGES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODELS))
def test_it_answers_what_the_plain_loop_answers(name: str) -> None:
    build, inputs = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    passes = 300 if name == "WideResNet" else 800
    outputs: Any = "probabilities" if name == "Keras recipe" else "logits"
    samples = MCDropout(model, num_samples=passes, outputs=outputs).predict_samples(inputs, seed=0)
    assert_same_distribution(samples, plain_passes(model, inputs, passes))


# ---------------------------------------------------------------- a model like any other


def saved_and_loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_a_copy_answers_the_same_and_is_its_own(copied: Any) -> None:
    method = method_of(num_samples=7, masks="shared", chunk_size=3)
    other = copied(method)
    assert torch.equal(other.predict(X, seed=0).probs, method.predict(X, seed=0).probs)
    assert list(inspect.signature(other.forward).parameters) == ["x"]
    with torch.no_grad():
        other.model.classifier.weight.zero_()
        other.model.classifier.bias.zero_()
    torch.testing.assert_close(other.predict(X, seed=0).probs, torch.full((50, 3), 1 / 3))
    assert float(method.predict(X, seed=0).class_std.max()) > 0.01


def test_its_state_is_the_models_and_nothing_else() -> None:
    method, other = method_of(mlp()), method_of(MLP(4, 3, hidden=(16, 8), dropout=0.5, dropout_input=0.25))
    assert list(method.state_dict()) == [f"model.{name}" for name in mlp().state_dict()]
    method.predict(X)
    other.load_state_dict(method.state_dict())
    assert list(method.state_dict()) == [f"model.{name}" for name in mlp().state_dict()]
    assert torch.equal(other.predict(X, seed=0).probs, method.predict(X, seed=0).probs)


def test_forward_keeps_the_signature_of_the_model() -> None:
    class Keywords(nn.Sequential):
        def forward(self, pixels: Tensor, scale: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
            return super().forward(pixels * scale)

    model = Keywords(nn.Dropout(0.5), nn.Linear(4, 3))
    assert inspect.signature(method_of(model).forward) == inspect.signature(model.forward)
    assert method_of(model).eval()(X, scale=2.0, mask=None).shape == (50, 3)


def test_the_wrapped_model_is_the_given_one_and_works_on_without_it() -> None:
    model = mlp().eval()
    before = model(X).detach()
    method = method_of(model)
    assert method.model is model
    method.predict(X)
    assert torch.equal(model(X).detach(), before)
    assert not hasattr(model, "predict")


def test_weights_trained_on_are_the_weights_that_predict() -> None:
    method = method_of()
    before = method.predict(X, seed=0).probs
    with torch.no_grad():
        method.model.classifier.bias.add_(torch.tensor([3.0, 0.0, 0.0]))
    assert bool((method.predict(X, seed=0).probs[:, 0] > before[:, 0]).all())


def test_hooks_of_the_user_still_run() -> None:
    method, seen = method_of(num_samples=5), []
    handle = method.model.classifier.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    method.predict(X)
    handle.remove()
    assert seen
    assert set(seen) == {3}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masks", ["per_input", "shared"])
def test_every_dtype_predicts(dtype: torch.dtype, masks: Any) -> None:
    expected = method_of(num_samples=400).predict(X, seed=0)
    method = method_of(mlp().to(dtype), num_samples=400, masks=masks)
    prediction = method.predict(X.to(dtype), seed=0)
    torch.testing.assert_close(prediction.probs.float(), expected.probs, rtol=0.2, atol=0.06)
    assert bool((prediction.class_std > 0).all())
    torch.testing.assert_close(prediction.probs.double().sum(1), torch.ones(50).double(), rtol=0, atol=1e-2)


def test_it_samples_other_methods_of_this_library() -> None:
    sngp = hesitant.SNGP(mlp(), num_inducing=32, generator=generator()).eval()
    sngp.fit_covariance(X)
    for model in (sngp, hesitant.Deterministic(mlp())):
        method = method_of(model, num_samples=400)
        samples = method.predict_samples(X[:6], seed=0)
        assert bool((samples.std(0) > 1e-4).all())
        plain: Any = copy.deepcopy(model)
        passes = []
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            for module in plain.modules():
                module.training = isinstance(module, nn.Dropout)
            passes = [plain(X[:6]).softmax(-1) for _ in range(400)]
        assert_same_distribution(samples, torch.stack(passes))
    assert sngp.covariance_state == "fitted"


def test_a_compiled_model_drops_too() -> None:
    model = mlp().eval()
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(X)  # a graph without dropout
    samples = method_of(compiled, num_samples=400).predict_samples(X[:6], seed=0)
    assert_same_distribution(samples, plain_passes(model, X[:6], 400))
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), model(X))


def test_nothing_is_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (mlp(), Classic()):
            method_of(model).predict(X)
            method_of(model, masks="shared").predict(X)
