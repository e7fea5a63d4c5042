import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from hesitant import SNGP, Prediction
from hesitant.methods.outputs import logits_of
from hesitant.nn import CovarianceError
from hesitant.nn.models import MLP, DeepResNet
from hesitant.prediction import UnavailableError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(60, 4, generator=generator(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
FAR = 50 * torch.randn(20, 4, generator=generator(2))


def network(classes: int = 3) -> nn.Module:
    return MLP(4, classes, hidden=(16, 16), dropout=0.2, generator=generator())


def unfitted(model: nn.Module | None = None, **options: Any) -> SNGP:
    options = {"num_inducing": 32, "generator": generator(), **options}
    return SNGP(model or network(), **options)


def fitted(model: nn.Module | None = None, **options: Any) -> SNGP:
    method = unfitted(model, **options)
    train(method, 2)
    method.fit_covariance(X)
    return method


def train(
    method: SNGP, steps: int, make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **options: Any
) -> None:
    optimizer = make([p for p in method.parameters() if p.requires_grad], **{"lr": 0.01, **options})
    method.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(method(X), Y).backward()
            optimizer.step()


def features(method: SNGP, x: Tensor) -> Tensor:
    """The random features of each input, in float64."""
    kept: list[Tensor] = []
    handle = method.gp.register_forward_pre_hook(lambda gp, args: kept.append(gp.features(args[0])))
    method.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method.model(x)
    handle.remove()
    return kept[0].double()


# ---------------------------------------------------------------- the one rule


def test_softmax_of_eval_forward_is_the_prediction() -> None:
    method = fitted().eval()
    with torch.no_grad():
        assert torch.equal(torch.softmax(method(X), -1), method.predict(X).probs)


def test_logits_and_variance_are_those_of_the_layer() -> None:
    method = fitted()
    prediction = method.predict(X)
    phi = features(method, X)
    expected = (phi * torch.linalg.solve(method.gp.precision, phi.T).T).sum(1)
    torch.testing.assert_close(prediction.logit_variance[:, 0].double(), expected, rtol=1e-4, atol=1e-6)
    assert bool((prediction.logit_variance == prediction.logit_variance[:, :1]).all())
    logits = phi @ method.gp.output_weights.detach().double()
    torch.testing.assert_close(prediction.logits.double(), logits, rtol=1e-4, atol=1e-5)
    scaled = prediction.logits / torch.sqrt(1 + torch.pi / 8 * prediction.logit_variance)
    torch.testing.assert_close(prediction.probs, scaled.softmax(-1))


def test_far_inputs_are_less_certain() -> None:
    method = fitted()
    near, far = method.predict(X), method.predict(FAR)
    assert far.logit_variance.mean() > 2 * near.logit_variance.mean()


@pytest.mark.parametrize("posterior", ["mean_field", "monte_carlo"])
def test_every_form_of_inputs_has_the_same_answer(posterior: Any) -> None:
    method = fitted()
    whole = method.predict(X, posterior=posterior)
    for inputs in (
        (X,),
        [X],
        {"x": X},
        {"x": X, "labels": Y},
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=512),
        iter([(X, Y)]),
    ):
        assert torch.equal(method.predict(inputs, posterior=posterior).probs, whole.probs)


@pytest.mark.parametrize("posterior", ["mean_field", "monte_carlo"])
def test_targets_travel_through_a_shuffled_loader(posterior: Any) -> None:
    method = fitted()
    loader = DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, generator=generator(3))
    shuffled, ordered = method.predict(loader, posterior=posterior), method.predict(TensorDataset(X, Y))
    assert shuffled.targets is not None
    assert ordered.targets is not None
    assert torch.equal(ordered.targets, Y)
    assert not torch.equal(shuffled.targets, Y)
    keys = [tuple(row) for row in ordered.logits.mul(1e4).round().tolist()]
    found = [keys.index(tuple(row)) for row in shuffled.logits.mul(1e4).round().tolist()]
    assert torch.equal(shuffled.targets, Y[torch.tensor(found)])


def test_batch_size_changes_nothing() -> None:
    method = fitted()
    whole = method.predict(X)
    for size in (1, 7, 59):
        part = method.predict(X, batch_size=size)
        torch.testing.assert_close(part.probs, whole.probs)
        torch.testing.assert_close(part.logit_variance, whole.logit_variance, rtol=1e-4, atol=1e-6)
    assert len(method.predict(X[:1])) == 1


def test_no_tensor_grows_with_the_square_of_the_inputs() -> None:
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                Largest.numbers = max(Largest.numbers, out.numel())
            return out

    method = fitted()
    inputs = torch.zeros(20_000, 4)
    for posterior, most in (("mean_field", 20_000 * 4), ("monte_carlo", 2**22)):
        Largest.numbers = 0
        with Largest():
            method.predict(inputs, posterior=posterior, batch_size=20_000 if posterior == "monte_carlo" else 512)
        assert Largest.numbers <= most


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
@pytest.mark.parametrize("posterior", ["mean_field", "monte_carlo"])
def test_a_single_logit_is_binary(shape: tuple[int, ...], posterior: Any) -> None:
    class SingleLogit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).reshape(shape)

    method = unfitted(SingleLogit(), likelihood="binary_logistic").eval()
    method.fit_covariance(X)
    prediction = method.predict(X, posterior=posterior)
    assert prediction.probs.shape == (60, 2)
    if posterior == "mean_field":
        with torch.no_grad():
            torch.testing.assert_close(prediction.probs[:, 1], torch.sigmoid(method(X)).flatten())
    assert bool((prediction.logit_variance[:, 0] == 0).all())
    assert bool((prediction.logit_variance[:, 1] > 0).all())


def test_a_model_that_ends_in_softmax_is_not_softmaxed_again() -> None:
    softmax = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1))
    method = unfitted(softmax, outputs="probabilities").eval()
    method.fit_covariance(X)
    with torch.no_grad():
        torch.testing.assert_close(method.predict(X).probs, method(X).exp())
    sampled = method.predict(X, posterior="monte_carlo", num_samples=4000)
    torch.testing.assert_close(sampled.probs, method.predict(X).probs, rtol=0.1, atol=0.02)


class Wraps(nn.Module):
    """A network whose logits go through ``function`` on their way out."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.classifier, self.function = nn.Linear(4, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.classifier(torch.relu(self.body(x))))


@pytest.mark.parametrize("function", [lambda z: {"logits": z}, lambda z: (z, None)])
def test_outputs_that_carry_logits_keep_their_form(function: Any) -> None:
    torch.manual_seed(0)
    method = unfitted(Wraps(function), classifier="classifier").eval()
    method.fit_covariance(X)
    with torch.no_grad():
        output = method(X)
    assert type(output) is type(function(X))
    assert torch.equal(torch.softmax(logits_of(output), -1), method.predict(X).probs)


def test_a_model_that_makes_something_else_of_its_classifiers_logits_is_refused_by_predict() -> None:
    method = unfitted(Wraps(lambda z: z[:, :2].square()), classifier="classifier")
    method.fit_covariance(X)
    with pytest.raises(ValueError, match=r"\(60, 2\), and its Gaussian process \(60, 3\)"):
        method.predict(X)


def test_the_variance_is_carried_through_what_is_linear_in_the_logits() -> None:
    plain, scaled = (
        unfitted(Wraps(lambda z: z), classifier="classifier"),
        unfitted(Wraps(lambda z: 10 * z + 1), classifier="classifier"),
    )
    plain.start_from_classifier(X)  # or it would, and the one that is given its weights not
    scaled.load_state_dict(plain.state_dict())
    for method in (plain, scaled):
        method.fit_covariance(X)
    first, second = plain.predict(X), scaled.predict(X)
    torch.testing.assert_close(second.logits, 10 * first.logits + 1, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.logit_variance, 100 * first.logit_variance, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.probs, scaled.eval()(X).softmax(-1))


# ---------------------------------------------------------------- purity


def modes(module: nn.Module) -> list[bool]:
    return [m.training for m in module.modules()]


def test_predicting_changes_nothing() -> None:
    method = fitted(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)))
    method.train()
    method.model.get_submodule("1").eval()
    before, weights, state = modes(method), copy.deepcopy(method.state_dict()), torch.get_rng_state()
    for posterior in ("mean_field", "monte_carlo"):
        first = method.predict(TensorDataset(X, Y), posterior=posterior)
        second = method.predict(TensorDataset(X, Y), posterior=posterior)
        assert torch.equal(first.probs, second.probs)
        assert not first.probs.requires_grad
    assert modes(method) == before
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        method.predict(iter([(X, Y), (X[:, :2], Y)]))
    assert modes(method) == before
    method.eval()
    with torch.no_grad():
        assert torch.equal(method(X), method(X))
    after = method.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_fitting_the_covariance_restores_modes_and_the_global_generator() -> None:
    method = fitted(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)))
    method.train()
    method.model.get_submodule("1").eval()
    before, state = modes(method), torch.get_rng_state()
    method.fit_covariance(TensorDataset(X, Y))
    assert modes(method) == before
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError):
        method.fit_covariance(X[:, :2])
    assert modes(method) == before
    assert not method.gp._forward_pre_hooks


def test_making_one_leaves_the_global_generator_alone_where_one_is_given() -> None:
    model = network()
    state = torch.get_rng_state()
    unfitted(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_forward_answers_plain_logits() -> None:
    method = fitted(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    phi = features(method, X)
    logits = method.train()(X)
    torch.testing.assert_close(logits.double(), phi @ method.gp.output_weights.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
def test_inference_never_changes_weights_that_exceed_the_bound() -> None:
    method = unfitted(norm_bound=0.9)
    method.fit_covariance(X)
    with torch.no_grad():
        method.model.get_submodule("layers").get_submodule("0")
        weights = [p for p in method.parameters() if p.shape == (16, 16)]
        weights[0].mul_(5)
    kept = weights[0].clone()
    method.gp.laplace.mark_stale()
    with pytest.warns(UserWarning, match="plain logits"):
        method.eval()(X)
    with torch.no_grad():
        method.train()(X)
    assert torch.equal(weights[0], kept)
    method.train()(X)
    assert not torch.equal(weights[0], kept)
    assert method.spectral_normalizer is not None
    assert max(method.spectral_normalizer.norms().values()) <= 0.9 * 1.01


# ---------------------------------------------------------------- never silently stale

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    (torch.optim.AdamW, {"fused": True}),  # whose writes no version counter shows
    (torch.optim.AdamW, {"foreach": False}),
    (torch.optim.Adagrad, {"fused": True}),
]


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_a_training_step_makes_it_stale(make: Any, options: dict[str, Any]) -> None:
    method = fitted()
    assert method.covariance_state == "fitted"
    train(method, 1, make, **options)
    assert method.covariance_state == "stale"
    with pytest.raises(CovarianceError, match=r"predict: the covariance is stale.*fit_covariance\(data\)"):
        method.predict(X)


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_fine_tuning_in_eval_mode_is_noticed(make: Any, options: dict[str, Any]) -> None:
    method = fitted().eval()
    optimizer = make([p for p in method.parameters() if p.requires_grad], **{"lr": 0.01, **options})
    F.cross_entropy(method(X), Y).backward()
    optimizer.step()
    with torch.no_grad(), pytest.warns(UserWarning, match="stale: the weights have moved"):
        answer = method(X)
    with torch.no_grad():
        method.gp.mean_field_factor = None  # plain logits, whatever the state
        assert torch.equal(answer, method(X))
    with pytest.raises(CovarianceError, match="stale"):
        method.predict(X)


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.add_(0.01),
        lambda p: p.data.mul_(1.01),
        lambda p: p.data.copy_(p.data.flip(0)),
        lambda p: p.detach().numpy().__imul__(2),
        lambda p: setattr(p, "data", p.data * 2),
    ],
    ids=["add_", "data", "permutation", "numpy", "data replaced"],
)
def test_weights_written_by_hand_are_noticed(write: Callable[[Tensor], Any]) -> None:
    for name in ("classifier.beta", "layers.1.weight", "layers.1.bias"):
        method = fitted()
        parameters = dict(method.model.named_parameters())
        with torch.no_grad():
            write(parameters[name])
        with pytest.raises(CovarianceError, match="stale"):
            method.predict(X)


@pytest.mark.parametrize("make", [unfitted, fitted])
def test_an_ema_swap_is_noticed(make: Callable[[], SNGP]) -> None:
    method = make()
    average = torch.optim.swa_utils.AveragedModel(method, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        train(method, 1)
        average.update_parameters(method)
    method.fit_covariance(X)
    with torch.no_grad():
        for mine, averaged in zip(method.parameters(), average.module.parameters(), strict=True):
            mine.copy_(averaged)
    with pytest.raises(CovarianceError, match="stale"):
        method.predict(X)


def test_moved_statistics_are_noticed_by_predict_and_by_forward() -> None:
    method = fitted(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    method.train()
    with torch.no_grad():
        method(X + 1)  # what torch.optim.swa_utils.update_bn does
    with pytest.warns(UserWarning, match="stale"):
        method.eval()(X)
    with pytest.raises(CovarianceError, match="stale"):
        method.predict(X)


LOADS: dict[str, Callable[[SNGP, SNGP], Any]] = {
    "model": lambda method, other: method.model.load_state_dict(
        {k: v for k, v in other.model.state_dict().items() if "laplace" not in k}, strict=False
    ),
    "submodule": lambda method, other: method.model.layers.load_state_dict(other.model.layers.state_dict()),
    "deep": lambda method, other: method.model.layers[1].load_state_dict(other.model.layers[1].state_dict()),
    "assign": lambda method, other: method.model.layers.load_state_dict(other.model.layers.state_dict(), assign=True),
    "gp": lambda method, other: method.gp.load_state_dict(
        {k: v for k, v in other.gp.state_dict().items() if "laplace" not in k}, strict=False
    ),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_loaded_weights_are_noticed_by_predict_and_by_forward(load: Callable[[SNGP, SNGP], Any]) -> None:
    method = fitted()
    other = fitted()
    train(other, 3)
    layers = other.model.layers
    assert isinstance(layers, nn.Sequential)
    load(method, other)
    with pytest.warns(UserWarning, match="stale"):
        plain = method.eval()(X)
    phi = features(method, X)
    torch.testing.assert_close(plain.double(), phi @ method.gp.output_weights.double(), rtol=1e-4, atol=1e-5)
    with pytest.raises(CovarianceError, match="stale"):
        method.predict(X)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("through", ["root", "model"])
def test_a_full_checkpoint_of_a_fitted_one_is_fitted(assign: bool, through: str) -> None:
    method = fitted()
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    fresh = unfitted(generator=generator(9))
    fresh.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert fresh.covariance_state == "fitted"
    assert torch.equal(fresh.predict(X).probs, method.predict(X).probs)
    sampled = [m.predict(X, posterior="monte_carlo").probs for m in (fresh, method)]
    assert torch.equal(*sampled)
    if through == "model":
        fresh.model.load_state_dict(method.model.state_dict(), assign=assign)
        assert fresh.covariance_state == "fitted"


def test_a_checkpoint_of_an_unfitted_one_is_not_fitted() -> None:
    method = fitted()
    method.load_state_dict(unfitted(kernel_scale=1.0).state_dict())
    assert method.covariance_state == "none"
    stale = fitted()
    train(stale, 1)
    method = fitted()
    method.load_state_dict(stale.state_dict())
    assert method.covariance_state == "stale"


@pytest.mark.parametrize(
    "move",
    [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(), lambda m: m.to("cpu"), lambda m: m.float()],
    ids=["half", "bfloat16", "double", "to", "float"],
)
def test_casts_keep_it_fitted(move: Callable[[SNGP], SNGP]) -> None:
    method = fitted()
    expected = method.predict(X)
    moved = move(method)
    x = X.to(next(moved.parameters()).dtype)
    assert moved.covariance_state == "fitted"
    tolerance = 0.05 if x.dtype.itemsize == 2 else 1e-4
    answer = moved.predict(x)
    torch.testing.assert_close(answer.probs.float(), expected.probs, rtol=tolerance, atol=tolerance)
    assert moved.gp.precision.dtype == torch.float64
    assert bool((answer.logit_variance >= 0).all())
    with torch.no_grad():
        assert moved.eval()(x).dtype == x.dtype


def test_a_cast_does_not_hide_that_weights_had_moved() -> None:
    method = fitted()
    with torch.no_grad():
        method.gp.beta.add_(1)
    assert method.double().covariance_state == "stale"


def test_eval_forward_warns_once_for_each_state() -> None:
    method = unfitted(network(), kernel_scale=1.0).eval()

    def warned() -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                method.eval()(X)
        assert all("plain logits" in str(w.message) for w in caught)
        return len(caught)

    assert warned() == 1
    assert warned() == 0
    method.fit_covariance(X)
    assert warned() == 0
    train(method, 1)
    assert warned() == 1
    with pytest.raises(CovarianceError, match="fit_covariance"):
        method.predict(X)


def test_an_unfitted_one_does_not_predict() -> None:
    with pytest.raises(CovarianceError, match=r"predict: the covariance is not fitted. Call fit_covariance\(data\)"):
        unfitted().predict(X)


# ---------------------------------------------------------------- fit_covariance


DATA: dict[str, Any] = {
    "tensor": X,
    "tuple": (X,),
    "dict": {"x": X, "labels": Y},
    "dataset": TensorDataset(X),
    "pairs": TensorDataset(X, Y),
    "drop_last": DataLoader(TensorDataset(X, Y), batch_size=7, drop_last=True),
    "shuffled": DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, drop_last=True),
    "list of examples": list(zip(X, Y, strict=True)),
}


@pytest.mark.parametrize(("data", "batch_size"), [*((name, 7) for name in DATA), ("tensor", 1), ("pairs", 512)])
def test_the_covariance_is_the_sum_over_all_data(data: str, batch_size: int) -> None:
    method = unfitted(kernel_scale=3.0)
    method.fit_covariance(DATA[data], batch_size=batch_size)
    phi = features(method, X)
    torch.testing.assert_close(
        method.gp.precision, torch.eye(32, dtype=torch.float64) + phi.T @ phi, rtol=1e-5, atol=1e-5
    )
    assert float(method.gp.laplace.num_seen) == 60


def test_in_float64_it_is_the_plain_formula_to_rounding() -> None:
    method = unfitted(kernel_scale=3.0, ridge_penalty=0.1).double()
    method.fit_covariance(X.double(), batch_size=13)
    phi = features(method, X.double())
    expected = 0.1 * torch.eye(32, dtype=torch.float64) + phi.T @ phi
    torch.testing.assert_close(method.gp.precision, expected, rtol=1e-12, atol=1e-12)


def test_fitting_twice_counts_the_data_once() -> None:
    method = fitted()
    once = method.gp.precision.clone()
    method.fit_covariance(X)
    torch.testing.assert_close(method.gp.precision, once)


def test_dropout_is_off_while_fitting() -> None:
    method = unfitted(MLP(4, 3, hidden=(16,), dropout=0.9, generator=generator()), kernel_scale=1.0).train()
    method.fit_covariance(X)
    phi = features(method, X)
    torch.testing.assert_close(method.gp.precision.sum(), 32 + (phi.T @ phi).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_batch_leaves_the_covariance_as_it_was(value: float) -> None:
    method = fitted()
    before = method.predict(X)
    bad = X.clone()
    bad[50, 2] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        method.fit_covariance(bad, batch_size=7)
    assert method.covariance_state == "fitted"
    assert torch.equal(method.predict(X).logit_variance, before.logit_variance)


def test_an_interrupted_pass_leaves_the_covariance_as_it_was() -> None:
    method = fitted()
    before = method.predict(X)

    def interrupted() -> Any:
        yield X[:30], Y[:30]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.fit_covariance(interrupted())
    assert torch.equal(method.predict(X).logit_variance, before.logit_variance)


class PicksOneToken(nn.Module):
    """Classifies every token, and answers with the logits of one, as language models do."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.score = nn.Linear(4, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        logits = self.score(torch.relu(self.body(x)))
        return logits[torch.arange(len(x)), last]


@pytest.mark.parametrize("classes", [1, 3])
def test_a_token_that_the_model_picks_is_the_one_that_counts(classes: int) -> None:
    tokens, last = X.reshape(12, 5, 4), torch.randint(0, 5, (12,), generator=generator())
    method = unfitted(PicksOneToken(classes), classifier="score", kernel_scale=1.0)
    method.fit_covariance({"x": tokens, "last": last})
    assert float(method.gp.laplace.num_seen) == 12
    alone = tokens[torch.arange(12), last].unsqueeze(1)
    one = unfitted(method_of(method), classifier="2", kernel_scale=1.0)
    one.gp.load_state_dict({k: v for k, v in method.gp.state_dict().items() if "laplace" not in k}, strict=False)
    one.fit_covariance(alone.squeeze(1))
    torch.testing.assert_close(one.gp.precision, method.gp.precision, rtol=1e-5, atol=1e-5)
    answer = method.predict({"x": tokens, "last": last})
    torch.testing.assert_close(answer.probs, one.predict(alone.squeeze(1)).probs)
    torch.testing.assert_close(answer.logit_variance, one.predict(alone.squeeze(1)).logit_variance)


def method_of(method: SNGP) -> nn.Module:
    body = method.model.get_submodule("body")
    return nn.Sequential(body, nn.ReLU(), nn.Linear(8, method.gp.out_features))


@pytest.mark.parametrize("empty", [X[:0], TensorDataset(X[:0], Y[:0]), []])
def test_empty_data_is_refused(empty: Any) -> None:
    method = fitted()
    with pytest.raises(ValueError, match="at least one input"):
        method.fit_covariance(empty)
    assert method.covariance_state == "fitted"


def test_momentum_has_no_second_pass() -> None:
    method = unfitted(momentum=0.9, kernel_scale=1.0)
    with pytest.raises(CovarianceError, match=r"momentum=0.9.*momentum=None"):
        method.fit_covariance(X)
    with pytest.raises(CovarianceError, match="not fitted"):
        method.predict(X)
    train(method, 3)
    assert method.covariance_state == "fitted"
    assert len(method.predict(X)) == 60
    train(method, 1)
    assert method.covariance_state == "fitted"


def test_wrong_arguments_are_named() -> None:
    method = fitted()
    with pytest.raises(ValueError, match="posterior='exact' is not known"):
        method.predict(X, posterior="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        method.predict(X, posterior="monte_carlo", num_samples=0)
    with pytest.raises(ValueError, match="batch_size=0 is no integer"):
        method.predict(X, batch_size=0)
    with pytest.raises(ValueError, match="norm_bound=-1"):
        unfitted(norm_bound=-1)
    with pytest.raises(ValueError, match="Gaussian process already"):
        SNGP(fitted())
    with pytest.raises(ValueError, match="likelihood='poisson' needs out_features=1"):
        unfitted(likelihood="poisson")
    with pytest.raises(ValueError, match="expected at least one input"):
        method.predict(X[:0])
    with pytest.raises(ValueError, match="batch_size"):
        method.fit_covariance(X, batch_size=0)


# ---------------------------------------------------------------- Monte Carlo


def test_monte_carlo_agrees_with_mean_field_within_the_approximation() -> None:
    method = unfitted(num_inducing=256)
    train(method, 200, torch.optim.Adam)
    method.fit_covariance(X)
    exact = method.predict(X, posterior="monte_carlo", num_samples=5000).probs
    # Independent logits differ from one another by twice the variance that the factor pi/8 was made for.
    assert (method.predict(X).probs - exact).abs().max() < 0.06
    far = method.predict(FAR, posterior="monte_carlo", num_samples=5000).probs
    assert (method.predict(FAR).probs - far).abs().max() < 0.06


def test_total_is_aleatoric_plus_epistemic_and_none_is_negative() -> None:
    prediction = fitted().predict(torch.cat([X, FAR]), posterior="monte_carlo", num_samples=20)
    total, aleatoric, epistemic = (
        prediction.predictive_entropy,
        prediction.expected_entropy,
        prediction.mutual_information,
    )
    torch.testing.assert_close(total, aleatoric + epistemic)
    assert bool((epistemic >= 0).all())
    assert bool((aleatoric >= 0).all())
    assert epistemic[60:].mean() > epistemic[:60].mean()


def test_draws_follow_from_the_seed_which_is_0_where_none_is_given() -> None:
    method = fitted()

    def draw(**seed: int) -> Tensor:
        return method.predict(X, posterior="monte_carlo", num_samples=5, **seed).probs

    assert torch.equal(draw(seed=1), draw(seed=1))
    assert torch.equal(draw(), draw(seed=0))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    with pytest.raises(ValueError, match="seed=-1"):
        draw(seed=-1)


def test_mean_field_cannot_be_split() -> None:
    prediction = fitted().predict(X)
    for name in ("expected_entropy", "mutual_information"):
        with pytest.raises(UnavailableError, match="monte_carlo"):
            getattr(prediction, name)


# ---------------------------------------------------------------- weights in and out


def test_a_plain_checkpoint_loads_into_the_wrapped_model() -> None:
    plain = network()
    method = unfitted()
    answer = method.model.load_state_dict(plain.state_dict(), strict=False)
    assert sorted(answer.unexpected_keys) == ["classifier.bias", "classifier.weight"]
    assert all(key.startswith("classifier.") for key in answer.missing_keys)
    for name, parameter in method.model.named_parameters():
        if not name.startswith("classifier."):
            assert torch.equal(parameter, plain.state_dict()[name])


def test_safetensors_saves_it(tmp_path: Any) -> None:
    from safetensors.torch import load_model, save_model

    method = fitted()
    save_model(method, str(tmp_path / "model.safetensors"))
    fresh = unfitted(generator=generator(9))
    load_model(fresh, str(tmp_path / "model.safetensors"))
    assert torch.equal(fresh.predict(X).probs, method.predict(X).probs)
    pointers = [tensor.data_ptr() for tensor in method.state_dict().values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)


def test_a_classifier_under_two_names_is_replaced_under_both() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.fc = self.head

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    method = unfitted(Aliased(), kernel_scale=1.0)
    method.fit_covariance(X)
    assert method.predict(X).probs.shape == (60, 3)


def test_a_model_that_is_its_classifier_is_taken_over() -> None:
    method = unfitted(nn.Linear(4, 3)).eval()
    method.fit_covariance(X)
    with torch.no_grad():
        assert torch.equal(method(X).softmax(-1), method.predict(X).probs)
    fresh = unfitted(nn.Linear(4, 3))
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.predict(X).probs, method.predict(X).probs)


def copied(method: SNGP, how: str) -> SNGP:
    if how == "deepcopy":
        return copy.deepcopy(method)
    file = io.BytesIO()
    torch.save(method, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_fitted_and_independent(how: str) -> None:
    method = fitted(norm_bound=0.8)
    assert method.spectral_normalizer is not None
    expected = method.predict(X)
    other = copied(method, how)
    assert other.spectral_normalizer is not None
    assert torch.equal(other.predict(X).probs, expected.probs)
    weights = copy.deepcopy(method.state_dict())
    train(other, 5, torch.optim.AdamW, fused=True, lr=0.1)
    assert other.covariance_state == "stale"
    assert method.covariance_state == "fitted"
    assert torch.equal(method.predict(X).probs, expected.probs)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in method.state_dict().items())
    other.fit_covariance(X)
    assert max(other.spectral_normalizer.norms().values()) <= 0.8 * 1.01
    assert torch.equal(method.predict(X).probs, expected.probs)
    # Weights loaded into the copy are noticed by the copy.
    other.model.get_submodule("layers").load_state_dict(method.model.get_submodule("layers").state_dict())
    assert other.covariance_state == "stale"
    assert method.covariance_state == "fitted"


# ---------------------------------------------------------------- the ways of training


def trained(method: SNGP, forward: Callable[[SNGP, Tensor], Tensor]) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method.train()
    for start in (0, 20, 40):
        optimizer.zero_grad()
        F.cross_entropy(forward(method, X[start : start + 20]), Y[start : start + 20]).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in method.named_parameters()}


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.body = DeepResNet(4, 8, width=16, depth=2, dropout=0.0, generator=generator())
        self.classifier = nn.Linear(8, 3)
        self.use_reentrant = use_reentrant

    def whole(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.use_reentrant is None:
            return self.whole(x)
        return checkpoint(self.whole, x.requires_grad_(), use_reentrant=self.use_reentrant)


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_activation_checkpointing_trains_the_same_weights(use_reentrant: bool, momentum: float | None) -> None:
    answers = []
    for how in (None, use_reentrant):
        torch.manual_seed(0)
        method = unfitted(Checkpointed(how), classifier="classifier", norm_bound=0.9, momentum=momentum)
        weights = trained(method, lambda m, x: m(x.clone()))
        if momentum is None:
            method.fit_covariance(X)
        answers.append((weights, method.gp.precision))
    for name, tensor in answers[0][0].items():
        torch.testing.assert_close(tensor, answers[1][0][name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
def test_two_forwards_before_one_backward() -> None:
    method = unfitted(norm_bound=0.9)
    train(method, 1)
    method.train()
    (method(X[:30]).sum() + method(X[30:]).sum()).backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_agrees_with_eager() -> None:
    method = fitted().eval()
    with torch.no_grad():
        expected = method(X)
        compiled = torch.compile(method, backend="aot_eager")
        torch.testing.assert_close(compiled(X), expected)
    method.train()
    compiled = torch.compile(method, backend="aot_eager")
    F.cross_entropy(compiled(X), Y).backward()
    assert method.covariance_state == "fitted"
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    assert method.covariance_state == "stale"


def refusal(message: str) -> str:
    """torch 2.6 cannot be asked whether it exports: where dynamo traces, the refusal is its own, at the same place."""
    return message if hasattr(torch.compiler, "is_exporting") else f"{message}|skipfiles|get_submodule"


@pytest.mark.filterwarnings("ignore:.*get_attr")  # torch 2.6, of tensors that are no buffers
@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_exported_agrees_with_eager_and_needs_a_fit(strict: bool) -> None:
    batch = {0: torch.export.Dim("batch", min=2)}
    method = unfitted(network(), kernel_scale=1.0).eval()
    with pytest.raises(Exception, match=refusal("the covariance is not fitted")):
        torch.export.export(method, (X,), strict=strict)
    method.fit_covariance(X)
    exported = torch.export.export(method, (X,), dynamic_shapes=(batch,), strict=strict).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(FAR), method(FAR))
    train(method, 1)
    with pytest.raises(Exception, match=refusal("the covariance (is|may be) stale")):
        torch.export.export(method.eval(), (X,), strict=strict)


@pytest.mark.filterwarnings("ignore:.*get_attr")  # torch 2.6, of tensors that are no buffers
@pytest.mark.slow
def test_a_loaded_checkpoint_exports() -> None:
    method = fitted()
    fresh = unfitted(generator=generator(9)).eval()
    fresh.load_state_dict(method.state_dict())
    exported = torch.export.export(fresh, (X,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(X), method.eval()(X))
    fresh.model.load_state_dict(network().state_dict(), strict=False)
    with pytest.raises(Exception, match=refusal("the covariance (is|may be) stale")):
        torch.export.export(fresh, (X,))


def test_cat_of_predictions_keeps_everything() -> None:
    method = fitted()
    whole = Prediction.cat([method.predict(X[:30]), method.predict(X[30:])])
    torch.testing.assert_close(whole.logit_variance, method.predict(X).logit_variance, rtol=1e-4, atol=1e-6)
