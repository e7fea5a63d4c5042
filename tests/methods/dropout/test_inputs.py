"""What MCDropout takes, what its model may answer, and what it refuses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.dropout.oracle import assert_same_distribution, generator, plain_passes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hesitant import MCDropout
from hesitant.methods.outputs import logits_of
from hesitant.nn.models import MLP

X = torch.randn(50, 4, generator=generator(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def mlp(classes: int = 3, dropout: float = 0.5) -> MLP:
    return MLP(4, classes, hidden=(16, 8), dropout=dropout, dropout_input=dropout / 2, generator=generator())


def method_of(model: nn.Module | None = None, num_samples: int = 20, **options: Any) -> Any:
    return MCDropout(mlp() if model is None else model, num_samples=num_samples, **options)


# ---------------------------------------------------------------- inputs


class Records(Dataset[Any]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": X[index], "labels": Y[index]}


@pytest.mark.parametrize("masks", ["per_input", "shared"])
def test_every_form_of_inputs_has_the_same_answer(masks: Any) -> None:
    method = method_of(masks=masks)
    whole = method.predict(X, seed=2)
    for inputs in (
        (X,),
        [X],
        {"x": X},
        {"x": X, "labels": Y},
        TensorDataset(X, Y),
        TensorDataset(X),
        Records(),
        DataLoader(TensorDataset(X, Y), batch_size=512),
        DataLoader(Records(), batch_size=50),
        iter([(X, Y)]),
        iter([({"x": X}, Y)]),
    ):
        torch.testing.assert_close(method.predict(inputs, seed=2).probs, whole.probs, rtol=1e-6, atol=1e-7)


def test_targets_travel_through_a_shuffled_loader() -> None:
    method = method_of()
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=generator(3))
    shuffled, ordered = method.predict(loader, seed=0), method.predict({"x": X, "labels": Y}, seed=0)
    assert torch.equal(ordered.targets, Y)
    assert not torch.equal(shuffled.targets, Y)
    assert torch.equal(shuffled.targets.bincount(), Y.bincount())
    assert method.predict(X).targets is None
    assert method.predict_samples(TensorDataset(X, Y)).shape == (20, 50, 3)


class Several(nn.Module):
    """Two tensors, an optional one, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)
        self.drop = nn.Dropout(0.4)

    def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        logits = self.left(self.drop(a)) + self.right(b)
        return scale * (logits if mask is None else logits * mask.unsqueeze(1))


def test_several_inputs_are_several_arguments() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = method_of(Several())
    a, b, mask = X[:6], X[6:12], torch.tensor([1, 1, 0, 1, 1, 1])
    expected = method.predict([a, b], seed=0)
    for inputs in ({"a": a, "b": b}, {"a": a, "b": b, "scale": 1.0, "mask": None}, ([a, b], Y[:6])):
        torch.testing.assert_close(method.predict(inputs, seed=0).probs, expected.probs)
    masked = method.predict({"a": a, "b": b, "mask": mask}, seed=0, batch_size=2)
    torch.testing.assert_close(masked.probs[2], torch.full((3,), 1 / 3))
    assert bool((masked.class_std[2] < 1e-6).all())
    assert bool((masked.class_std[mask.bool()] > 0).all())
    samples = MCDropout(method.model, num_samples=600).predict_samples([a, b, mask], seed=0)
    assert_same_distribution(samples, plain_passes(method.model, [a, b, mask], 600))


@pytest.mark.parametrize("batch_size", [1, 7, 49, 50])
def test_batches_are_only_a_matter_of_memory(batch_size: int) -> None:
    method = method_of(num_samples=500)
    samples = method.predict_samples(X, seed=0, batch_size=batch_size)
    assert samples.shape == (500, 50, 3)
    assert_same_distribution(samples[:, :6], plain_passes(method.model, X[:6], 500))


def test_batches_draw_masks_of_their_own() -> None:
    samples = method_of().predict_samples(X[:1].repeat(6, 1), seed=0, batch_size=2)
    assert len(samples.flatten(0, 1).unique(dim=0)) > 100  # of 120


# ---------------------------------------------------------------- outputs


class Answers(nn.Module):
    """A network whose logits go through ``function`` on their way out."""

    def __init__(self, function: Callable[[Tensor], Any], classes: int = 3) -> None:
        super().__init__()
        self.drop, self.linear, self.function = nn.Dropout(0.5), nn.Linear(4, classes), function
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(classes, 4, generator=generator(5)))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(self.drop(x)))


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "object": lambda z: Output(z, z),
    "dict": lambda z: {"logits": z, "hidden": z},
    "tuple": lambda z: (z, z),
    "list": lambda z: [z],
    "log-softmax": lambda z: z.log_softmax(-1),
    "softmax": lambda z: z.softmax(-1),
    "object of probabilities": lambda z: Output(z.softmax(-1)),
}


@pytest.mark.parametrize(
    ("form", "masks"), [*((form, "per_input") for form in OUTPUTS), ("object", "shared"), ("softmax", "shared")]
)
def test_outputs_that_carry_logits_or_probabilities_are_read(form: str, masks: Any) -> None:
    function = OUTPUTS[form]
    plain = method_of(Answers(lambda z: z), masks=masks).predict(X, seed=0)
    answered = logits_of(function(torch.zeros(1, 3)))
    outputs = "probabilities" if float(answered.sum()) > 0.5 else "logits"
    method = method_of(Answers(function), masks=masks, outputs=outputs)
    torch.testing.assert_close(method.predict(X, seed=0).probs, plain.probs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.predict(X, seed=0).class_std, plain.class_std, rtol=1e-4, atol=1e-6)


def test_probabilities_are_averaged_and_not_logits() -> None:
    method = method_of(Answers(lambda z: 10 * z), num_samples=400)
    probs = method.predict(X, seed=0).probs
    logits = torch.stack([log for log in method.predict_samples(X, seed=0).clamp(min=1e-30).log()])
    assert float((probs - logits.mean(0).softmax(-1)).abs().max()) > 0.1
    torch.testing.assert_close(probs, method.predict_samples(X, seed=0).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
@pytest.mark.parametrize("masks", ["per_input", "shared"])
def test_a_single_logit_is_binary(shape: tuple[int, ...], masks: Any) -> None:
    method = method_of(Answers(lambda z: z.reshape(shape), classes=1), masks=masks)
    samples, prediction = method.predict_samples(X, seed=0), method.predict(X, seed=0, batch_size=50)
    assert samples.shape == (20, 50, 2)
    torch.testing.assert_close(samples.mean(0), prediction.probs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prediction.class_std[:, 0], prediction.class_std[:, 1], rtol=1e-4, atol=1e-6)
    answered = method.eval()(X)
    binary = torch.sigmoid(answered).flatten() if answered.numel() == 50 else answered.softmax(-1)[:, 1]
    torch.testing.assert_close(binary, method.predict(X, seed=0).probs[:, 1], rtol=1e-5, atol=1e-6)


def test_an_answer_keeps_its_form_in_eval_mode() -> None:
    for function, read in (
        (lambda z: Output(z, 2 * z), lambda out: out.logits),
        (lambda z: {"logits": z, "hidden": 2 * z}, lambda out: out["logits"]),
        (lambda z: (z, 2 * z), lambda out: out[0]),
    ):
        method = method_of(Answers(function)).eval()
        answer = method(X)
        assert type(answer) is type(method.model(X))
        torch.testing.assert_close(read(answer).softmax(-1), method.predict(X, seed=0).probs)


def test_wrong_outputs_are_named() -> None:
    with pytest.raises(TypeError, match="the model answered a NoneType"):
        method_of(Answers(lambda z: None)).predict(X)
    with pytest.raises(ValueError, match="shape"):
        method_of(Answers(lambda z: z.unsqueeze(1))).predict(X)
    with pytest.raises(ValueError, match="nan"):
        method_of(Answers(lambda z: z * float("nan"))).predict(X)
    with pytest.raises(RuntimeError, match="shapes"):
        method_of().model.classifier(X[:, :2])


# ---------------------------------------------------------------- errors


def test_a_model_without_dropout_says_so() -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for model in (plain, mlp(dropout=0.0), nn.Sequential(plain, nn.Dropout(0.0))):
        for masks in ("per_input", "shared"):
            method = method_of(model, masks=masks)
            for ask in (method.predict, method.predict_samples, method.eval()):
                with pytest.raises(ValueError, match=r"[Nn]o dropout"):
                    ask(X)


def test_dropout_that_never_runs_is_named() -> None:
    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.forgotten = nn.Linear(4, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    with pytest.raises(ValueError, match="forgotten"):
        method_of(Forgets()).predict(X)


def test_dropout_that_does_not_reach_the_logits_is_no_dropout() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.aside, self.drop = nn.Linear(4, 3), nn.Linear(4, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"aside": self.aside(self.drop(x)), "logits": self.head(x)}

    with pytest.raises(ValueError, match=r"[Dd]ropout.*logits"):
        method_of(Aside()).predict(X)


def test_inputs_that_dropout_leaves_as_they_are_are_no_error() -> None:
    method = method_of(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))
    for masks in ("per_input", "shared"):
        prediction = method_of(method.model, masks=masks).predict(torch.zeros(3, 4))
        assert bool((prediction.class_std < 1e-6).all())


def test_one_pass_has_no_spread() -> None:
    for masks in ("per_input", "shared"):
        prediction = method_of(num_samples=1, masks=masks).predict(X)
        assert bool((prediction.class_std == 0).all())
        assert bool((prediction.mutual_information.abs() < 1e-6).all())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": -3}, "num_samples=-3"),
        ({"num_samples": 2.5}, r"num_samples.*2\.5"),
        ({"masks": "x"}, "masks='x'.*per_input.*shared"),
        ({"masks": None}, "masks=None"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chunk_size": -1}, "chunk_size=-1"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options: Any, names: str) -> None:
    with pytest.raises((TypeError, ValueError), match=names):
        method_of(**options)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model is a function"):
        method_of(lambda x: x)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        method_of().predict(X, batch_size=batch_size)
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        method_of().predict_samples(X, batch_size=batch_size)


@pytest.mark.parametrize("empty", [X[:0], {"x": X[:0]}, [], TensorDataset(X[:0])])
def test_empty_inputs_are_refused(empty: Any) -> None:
    with pytest.raises(ValueError, match="at least one input"):
        method_of().predict(empty)


def test_seeds_of_numpy_are_seeds() -> None:
    method = method_of()
    assert torch.equal(method.predict(X, seed=np.int64(3)).probs, method.predict(X, seed=3).probs)
