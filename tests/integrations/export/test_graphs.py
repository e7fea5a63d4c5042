"""The module that is exported answers as predict does, by torch itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.integrations.export.exported import graph, inputs, network, sngp
from torch import Tensor, nn

import hesitant
from hesitant.integrations.export.named_answers import NamedAnswers

X = inputs()


def heterogeneous() -> hesitant.DeepEnsemble:
    wide = network(3, width=24)
    tempered = hesitant.Deterministic(network(4), temperature=2.0)
    return hesitant.DeepEnsemble(
        [sngp(), wide, tempered, hesitant.DeepEnsemble([network(5), sngp(6)])], temperature=0.7
    )


METHODS: dict[str, Callable[[], Any]] = {
    "plain": lambda: hesitant.Deterministic(network()),
    "tempered": lambda: hesitant.Deterministic(network(), temperature=2.5),
    "single logit": lambda: hesitant.Deterministic(network(classes=1)),
    "squeezed": lambda: hesitant.Deterministic(
        nn.Sequential(network(classes=1), nn.Flatten(0)).eval(), temperature=3.0
    ),
    "softmax": lambda: hesitant.Deterministic(
        nn.Sequential(network(), nn.Softmax(-1)).eval(), outputs="probabilities", temperature=2.0
    ),
    "sngp": sngp,
    "sngp of many features": lambda: sngp(num_inducing=600),
    "sngp, low rank": lambda: sngp(num_inducing=600, ridge_penalty=1.0, kernel_scale=100.0),
    "sngp, tempered": lambda: sngp(temperature=0.5, mean_field_factor=2.0),
    "sngp, plain logits": lambda: sngp(mean_field_factor=None),
    "sngp, linear kernel": lambda: sngp(kernel="linear", kernel_scale=2.0, parametrization="standard"),
    "sngp, normalised": lambda: sngp(normalize_input=True),
    "sngp, single logit": lambda: sngp(classes=1, classifier="7", likelihood="binary_logistic"),
    "sngp, a covariance for each class": lambda: sngp(likelihood="softmax"),
    "sngp, one of low rank for each class": lambda: sngp(likelihood="softmax", covariance_rank=8),
    "sngp, nearest neighbours": lambda: sngp(ood_score="knn"),
    "sngp alone": lambda: fitted(hesitant.SNGP(nn.Linear(4, 3), num_inducing=64)),
    "ensemble": lambda: hesitant.DeepEnsemble([network(seed) for seed in range(3)]),
    "ensemble of single logits": lambda: hesitant.DeepEnsemble([network(seed, classes=1) for seed in range(2)]),
    "ensemble of sngps": lambda: hesitant.DeepEnsemble([sngp(0), sngp(1)], temperature=1.5),
    "ensemble of neighbours": lambda: hesitant.DeepEnsemble([sngp(0, ood_score="knn"), sngp(1, ood_score="knn")]),
    "ensemble in an ensemble of neighbours": lambda: hesitant.DeepEnsemble(
        [sngp(0, ood_score="knn"), hesitant.DeepEnsemble([sngp(1, ood_score="knn"), sngp(2, ood_score="knn")])]
    ),
    "ensemble of all kinds": heterogeneous,
}


def fitted(method: hesitant.SNGP) -> hesitant.SNGP:
    method.eval().fit_covariance(inputs(200))
    return method


def answers(module: NamedAnswers, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        named: dict[str, Tensor] = module(x)
    return named


@pytest.mark.filterwarnings("ignore:norm_bound bounds")
@pytest.mark.parametrize("name", METHODS)
def test_it_answers_as_predict_does(name: str) -> None:
    method = METHODS[name]()
    module, prediction = graph(method, X[:2]), method.predict(X)
    named = answers(module, X)
    assert list(named) == module.names
    torch.testing.assert_close(named["probs"], prediction.probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(named["uncertainty"], prediction.ood_score, atol=1e-5, rtol=0)
    assert ("logit_variance" in named) == ("logit_variance" in prediction.available)
    if "logit_variance" in named:
        torch.testing.assert_close(named["logit_variance"], prediction.logit_variance, atol=1e-6, rtol=1e-3)


def test_an_input_does_not_see_its_neighbours() -> None:
    module = graph(sngp(ood_score="knn"), X[:2])
    alone = answers(module, X[3:4])
    for name, among_others in answers(module, X).items():
        torch.testing.assert_close(among_others[3:4], alone[name])


def test_the_method_is_left_as_it_was() -> None:
    method = sngp(ood_score="knn", normalize_input=True).train()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    graph(method, X[:2])
    assert all(module.training for module in method.modules())
    assert method.gp is method.model[-1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_variances_of_float16_keep_three_digits() -> None:
    method = sngp().half()
    x = X.half()
    module, prediction = graph(method, x[:2]), method.predict(x)
    named = answers(module, x)
    torch.testing.assert_close(named["logit_variance"], prediction.logit_variance, atol=0, rtol=1e-3)
    torch.testing.assert_close(named["probs"], prediction.probs, atol=1e-3, rtol=0)


class Picking(nn.Module):
    """Classifies each position, and answers with the last that is not padding, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        last = (input_ids != 0).int().sum(1) - 1
        return self.score(self.embed(input_ids).cumsum(1))[torch.arange(input_ids.shape[0]), last]


def test_of_a_language_model_the_position_that_it_picks_is_asked() -> None:
    tokens = torch.randint(1, 20, (30, 6), generator=torch.Generator().manual_seed(0))
    tokens[::2, 4:] = 0
    method = hesitant.SNGP(Picking(), num_inducing=64, norm_bound=None).eval()
    method.fit_covariance({"input_ids": tokens})
    module, prediction = graph(method, {"input_ids": tokens[:3]}), method.predict({"input_ids": tokens})
    with torch.no_grad():
        named = module(input_ids=tokens)
    torch.testing.assert_close(named["probs"], prediction.probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(named["logit_variance"], prediction.logit_variance, atol=1e-6, rtol=1e-3)
