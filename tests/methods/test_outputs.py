"""What a model's outputs are is said once, and an answer is never changed by what the numbers look like."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction, calibrate, fit
from hesitant.methods.outputs import log_probs_of, logits_of, require_kind, require_rows, with_logits

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Network(nn.Module):
    """Logits, and what ``ending`` makes of them."""

    def __init__(self, ending: Callable[[Tensor], Any] = lambda logits: logits, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.dropout, self.head = nn.Linear(4, 16), nn.Dropout(0.2), nn.Linear(16, classes)
        self.ending = ending
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.ending(self.head(self.dropout(self.hidden(x).relu())))


ENDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(-1),
    "clamp": lambda z: z.softmax(-1).clamp(1e-4, 1 - 1e-4),
    "epsilon": lambda z: z.softmax(-1) + 1e-6,
    "rounding": lambda z: z.softmax(-1).mul(1000).round() / 1000,
    "half": lambda z: z.softmax(-1).half(),
    "average": lambda z: (z.softmax(-1) + (2 * z).softmax(-1)) / 2,
    "normalised": lambda z: z.sigmoid() / z.sigmoid().sum(-1, keepdim=True),
}
METHODS: dict[str, Callable[..., Any]] = {
    "Deterministic": Deterministic,
    "MCDropout": lambda model, **options: MCDropout(model, num_samples=3, **options),
    "DeepEnsemble": lambda model, **options: DeepEnsemble([model, Network(model.ending)], **options),
}
each_ending_and_each_method = pytest.mark.parametrize(
    ("method", "ending"),
    [*(("Deterministic", ending) for ending in ENDINGS), ("MCDropout", "softmax"), ("DeepEnsemble", "softmax")],
)


@each_ending_and_each_method
def test_a_model_of_probabilities_that_does_not_say_so_is_refused(method: str, ending: str) -> None:
    asked = METHODS[method](Network(ENDINGS[ending]))
    with pytest.raises(ValueError, match="outputs='probabilities'"):
        asked.predict(X)


@each_ending_and_each_method
def test_a_model_of_probabilities_that_says_so_answers_with_these(method: str, ending: str) -> None:
    model = Network(ENDINGS[ending])
    asked = METHODS[method](model, outputs="probabilities").eval()
    prediction = asked.predict(X)
    if method == "Deterministic":
        torch.testing.assert_close(prediction.probs, model(X).float(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(logits_of(asked(X)).float().softmax(-1), prediction.probs, rtol=2e-3, atol=2e-3)


def test_a_single_column_is_judged_by_the_code_alone() -> None:
    sigmoid = Network(lambda z: z.sigmoid(), classes=1)
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        Deterministic(sigmoid).predict(X)
    probs = Deterministic(sigmoid, outputs="probabilities").predict(X).probs
    torch.testing.assert_close(probs[:, 1], sigmoid(X).squeeze(1))
    logits = Network(lambda z: z.sigmoid().log(), classes=1)  # in (-inf, 0]: no probabilities, whatever they look like
    torch.testing.assert_close(Deterministic(logits).predict(X).probs[:, 1], logits(X).squeeze(1).sigmoid())


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    """Logits that happen to sum to 1 were taken for probabilities where all rows of a batch did."""
    model = Deterministic(nn.Identity())
    alone, beside = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.8, 0.2], [3.0, -1.0]])
    expected = torch.softmax(beside, -1)
    torch.testing.assert_close(model.predict(alone).probs, expected[:1])
    torch.testing.assert_close(model.predict(beside).probs, expected)
    torch.testing.assert_close(DeepEnsemble([nn.Identity()]).predict(alone).probs, expected[:1])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_said_to_be_probabilities_and_is_none_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="outputs='logits'"):
        METHODS[method](Network(), outputs="probabilities").predict(X)
    with pytest.raises(ValueError, match="outputs="):
        METHODS[method](Network(), outputs="softmax")


def test_a_method_that_ends_in_a_gate_or_in_logarithms_is_taken_for_logits() -> None:
    for ending in (lambda z: z.sigmoid() * z, lambda z: z.log_softmax(-1), lambda z: 5 * z.sigmoid() - 2 * z):
        model = Network(ending)
        torch.testing.assert_close(Deterministic(model).predict(X).probs, model(X).softmax(-1))


def test_fit_knows_the_loss_of_each() -> None:
    softmax, plain = Network(ENDINGS["softmax"]), Network()
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "progress": False, "seed": 1}
    histories = [
        fit(Deterministic(softmax, outputs="probabilities"), (X, Y), **options),
        fit(Deterministic(plain), (X, Y), **options),
    ]
    assert histories[0].train_loss == pytest.approx(histories[1].train_loss, rel=1e-4)
    binary, logit = Network(lambda z: z.sigmoid(), classes=1), Network(classes=1)
    first = fit(Deterministic(binary, outputs="probabilities"), (X, Y > 0), **options)
    assert first.train_loss == pytest.approx(fit(logit, (X, Y > 0), **options).train_loss, rel=1e-4)


@pytest.mark.parametrize("wrap", [lambda m: m, Deterministic, lambda m: DeepEnsemble([m, Network(m.ending)])])
def test_fit_refuses_a_double_softmax_before_the_first_step(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Network(ENDINGS["softmax"])
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="ends in a softmax"):
        fit(wrap(model), (X, Y), epochs=1, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_calibrate_notices_it_too() -> None:
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        calibrate(Deterministic(Network(lambda z: z.sigmoid(), classes=1)), (X, Y > 0))


def test_sngp_around_a_model_that_ends_in_a_softmax() -> None:
    model = SNGP(Network(ENDINGS["softmax"]), outputs="probabilities")
    fit(model, (X, Y), epochs=1, progress=False)
    prediction = model.predict(X)
    torch.testing.assert_close(prediction.probs, model.model(X))
    assert prediction.logit_variance.shape == (40, 3)
    sampled = model.predict(X, posterior="monte_carlo")
    assert (sampled.mutual_information >= 0).all()
    wrong = SNGP(Network(ENDINGS["softmax"]))
    wrong.fit_covariance((X, Y))
    with pytest.raises(ValueError, match="outputs='probabilities'"):
        wrong.predict(X)


SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "transposed": (lambda z: z.T, r"shape \(3, 40\) for 40 inputs.*transpose"),
    "one row": (lambda z: z.mean(0, keepdim=True), r"shape \(1, 3\) for 40 inputs"),
    "no axis of inputs": (lambda z: z.mean(0), r"shape \(3,\) for 40 inputs"),
    "a number": (lambda z: z.sum(), r"shape \(\) for 40 inputs"),
    "fewer rows": (lambda z: z[:7], r"shape \(7, 3\) for 40 inputs"),
    "one axis more": (lambda z: z.unsqueeze(1), r"shape \(40, 1, 3\)"),
}


@pytest.mark.parametrize(
    ("method", "name"),
    [*(("Deterministic", name) for name in SHAPES), ("MCDropout", "transposed"), ("DeepEnsemble", "transposed")],
)
def test_there_is_one_row_for_each_input(method: str, name: str) -> None:
    ending, message = SHAPES[name]
    with pytest.raises(ValueError, match=message):
        METHODS[method](Network(ending)).predict(X)
    with pytest.raises(ValueError, match="shape"):
        fit(METHODS[method](Network(ending)), (X, Y), epochs=1, batch_size=40, progress=False)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_squeezes_a_single_input_away_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"squeezes|shape|inputs"):
        METHODS[method](Network(lambda z: z.squeeze())).predict(X[:5], batch_size=1)


def test_rows_of_graphs_are_told_by_their_targets_alone() -> None:
    assert require_rows(torch.zeros(4, 3), None, nn.Identity()).shape == (4, 3)


def test_logits_are_found_in_what_models_answer_and_put_back() -> None:
    from torchvision.models.inception import InceptionOutputs
    from transformers.modeling_outputs import SequenceClassifierOutput

    logits, other = torch.zeros(2, 3), torch.ones(2, 3)
    outputs: list[Any] = [
        logits,
        {"logits": logits},
        (logits, "rest"),
        [logits, "rest"],
        SequenceClassifierOutput(logits=logits),  # type: ignore[arg-type]
        InceptionOutputs(logits, other),
    ]
    for output in outputs:
        assert logits_of(output) is logits
        replaced = with_logits(output, other, None)
        assert type(replaced) is type(output)
        assert logits_of(replaced) is other
        assert logits_of(output) is logits
    for nothing in ({"scores": logits}, None, 3, (), ("text", logits)):
        with pytest.raises(TypeError, match="expected a tensor of logits"):
            logits_of(nothing)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_many_rows_of_a_softmax_are_noticed_in_every_dtype(dtype: torch.dtype) -> None:
    for classes in (2, 10, 1000):
        logits = 5 * torch.randn(64, classes, generator=torch.Generator().manual_seed(classes))
        with pytest.raises(ValueError, match="all 64 rows"):
            require_kind(logits.to(dtype).softmax(-1), "logits", nn.Identity())
        require_kind(logits.to(dtype), "logits", nn.Identity())
        require_kind(logits.to(dtype).softmax(-1), "probabilities", nn.Identity())


def test_few_rows_or_one_that_is_none_prove_nothing() -> None:
    require_kind(torch.tensor([[0.5, 0.5]]).expand(15, 2), "logits", nn.Identity())
    rows = torch.tensor([[0.5, 0.5]]).repeat(100, 1)
    rows[50] = torch.tensor([1.0, 1.0])
    require_kind(rows, "logits", nn.Identity())
    require_kind(torch.zeros(0, 2), "logits", nn.Identity())


def test_log_probs_are_exact_where_probabilities_saturate() -> None:
    probs = torch.tensor([[1.0, 1e-30], [0.25, 0.75]])
    log_probs = log_probs_of(probs, "probabilities")
    assert log_probs[0, 1].item() == pytest.approx(-69.0776, rel=1e-5)
    prediction = Deterministic(nn.Identity(), outputs="probabilities").predict(probs)
    assert isinstance(prediction, Prediction)
    torch.testing.assert_close(prediction.probs, probs)
    torch.testing.assert_close(F.softmax(log_probs, -1), probs)
