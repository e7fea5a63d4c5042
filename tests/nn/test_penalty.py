"""Whether a loss holds a layer's penalty is told from what it was made of."""

import pytest
import torch
from torch import Tensor

from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.nn.penalty import holds_penalty


def layer() -> RandomFeatureGaussianProcess:
    generator = torch.Generator().manual_seed(0)
    return RandomFeatureGaussianProcess(4, 3, num_inducing=8, l2_penalty=0.1, generator=generator)


def loss_of(gp: RandomFeatureGaussianProcess) -> Tensor:
    return gp(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))).square().mean()


@pytest.mark.parametrize("made", [lambda a, b: a + b, lambda a, b: b + a, lambda a, b: (a.double() + 2 * b) / 4])
def test_a_penalty_is_found_in_what_it_was_added_to(made):
    gp = layer()
    assert holds_penalty(made(loss_of(gp), gp.regularization_loss()), gp)
    assert not holds_penalty(loss_of(gp), gp)
    assert not holds_penalty(loss_of(gp).detach(), gp)


def test_the_penalty_of_another_layer_is_another():
    one, other = layer(), layer()
    both = loss_of(one) + loss_of(other) + other.regularization_loss()
    assert holds_penalty(both, other)
    assert not holds_penalty(both, one)


def test_its_gradient_is_that_of_the_formula():
    gp = layer()
    gp.regularization_loss().backward()
    torch.testing.assert_close(gp.beta.grad, 2 * 0.1 * gp.beta.detach())
