"""A loss that a model answers itself has the penalty in training mode, and nowhere else."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesitant import SNGP

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
Named = namedtuple("Named", ["loss", "logits"])


@dataclass
class Answer:
    loss: Any
    logits: Any


KINDS = {
    "an object": lambda loss, logits: Answer(loss, logits),
    "a dict": lambda loss, logits: {"loss": loss, "logits": logits},
    "a tuple": lambda loss, logits: (loss, logits),
    "a named tuple": lambda loss, logits: Named(loss, logits),
}


class WithLoss(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.head = kind, nn.Linear(4, 3)

    def forward(self, x: Any, labels: Any = None) -> Any:
        logits = self.head(x)
        return logits if labels is None else KINDS[self.kind](F.cross_entropy(logits, labels), logits)


def loss_in(output: Any) -> Any:
    if isinstance(output, dict):
        return output["loss"]
    return output.loss if hasattr(output, "loss") else output[0]


def method(kind: str, l2_penalty: float) -> SNGP:
    generator = torch.Generator().manual_seed(0)
    return SNGP(WithLoss(kind), num_inducing=16, kernel_scale=2.0, l2_penalty=l2_penalty, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_model_has_the_penalty(kind: str) -> None:
    penalized, plain = method(kind, 0.3), method(kind, 0.0)
    output = penalized.train()(X, labels=Y)
    assert type(output) is type(KINDS[kind](0, 0))
    excess = loss_in(output) - loss_in(plain.train()(X, labels=Y))
    torch.testing.assert_close(excess, penalized.regularization_loss())
    loss_in(output).backward()
    assert penalized.gp.beta.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_has_it(kind: str) -> None:
    penalized, plain = method(kind, 0.3), method(kind, 0.0)
    for each in (penalized, plain):
        each.train()(X, labels=Y)  # decides the units of beta
    with torch.no_grad():
        assert torch.equal(loss_in(penalized(X, labels=Y)), loss_in(plain(X, labels=Y)))
    assert torch.equal(penalized(X), plain(X))
    for each in (penalized, plain):
        each.fit_covariance(X)
        each.eval()
    if kind != "a tuple":  # whose first is taken for the logits, which is why the Trainer's models answer objects
        assert torch.equal(loss_in(penalized(X, labels=Y)), loss_in(plain(X, labels=Y)))
