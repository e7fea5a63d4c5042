import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.nn.kernel_scale import UNIT
from hesitant.nn.linear_parametrization import LinearParametrization

D, C, M = 24, 5, 128
STEPS = 200


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(num=400, seed=1, width=D, spread=1.0, mean=0.0):
    return mean + spread * torch.randn(num, width, generator=seeded(seed))


def layer(**options):
    options = {"num_inducing": M, "kernel_scale": "median", "parametrization": "linear", **options}
    return RandomFeatureGaussianProcess(D, C, generator=seeded(), **options)


def decided(x=None, **options):
    gp = layer(**options)
    assert gp.decide(inputs() if x is None else x)
    return gp


# ---------------------------------------------------------------- what it is


def test_every_output_weight_has_its_beta():
    weights = torch.randn(M, C, generator=seeded(3), dtype=torch.float64)
    gp = decided(dtype=torch.float64)
    gp.set_output_weights(weights)
    torch.testing.assert_close(gp.output_weights, weights, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(gp.beta, weights, rtol=0.1)


@pytest.mark.parametrize("num_classes", [5, 200])
def test_an_answer_is_the_features_times_the_output_weights_however_many_classes(num_classes):
    gp = RandomFeatureGaussianProcess(
        D,
        num_classes,
        num_inducing=M,
        kernel_scale="median",
        parametrization="linear",
        bias=0.5,
        generator=seeded(),
        dtype=torch.float64,
    )
    x = inputs(12).double().view(3, 4, D).requires_grad_(True)
    assert gp.decide(inputs().double())
    expected = gp.features(x) @ gp.output_weights + 0.5
    torch.testing.assert_close(gp.mean(x), expected, rtol=1e-10, atol=1e-10)
    slope = torch.randn(expected.shape, generator=seeded(6), dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(y, (x, gp.beta), slope) for y in (gp.mean(x), expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spread", [1.0, 7.0])
def test_a_step_has_the_spread_of_the_inputs_and_the_bias_of_a_linear(spread):
    """The plain formula: the kernel of a step of SGD, averaged over the training data."""
    x = inputs(spread=spread, mean=2.0)
    gp = decided(x, dtype=torch.float64)
    gp.beta.requires_grad_(True)
    phi = gp.features(x.double())
    jacobian = phi @ gp.parametrization(torch.eye(M, dtype=torch.float64))  # (B, M) of a logit by its beta
    kernel = jacobian @ jacobian.T
    center = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    spread_of_a_linear = (center @ (x @ x.T).double() @ center).diagonal().sum()
    # The damped direction holds a share of the spread, too.
    assert float((center @ kernel @ center).diagonal().sum() / spread_of_a_linear) == pytest.approx(1, rel=0.05)
    assert float(kernel.mean()) == pytest.approx(1, rel=0.05)  # of the bias, which is the same for all


def test_small_inputs_learn_as_if_they_were_of_unit_variance():
    codes = [int(decided(inputs(spread=s)).parametrization.scale_code) for s in (1e-3, 1.0)]
    assert (codes[0] - codes[1]) * UNIT == pytest.approx(0, abs=0.05)  # of the logarithms


def test_deciding_changes_no_answer():
    gp, x = layer(dtype=torch.float64), inputs(50, spread=3.0).double()
    with torch.no_grad():
        gp.beta.copy_(torch.randn(M, C, generator=seeded(5), dtype=torch.float64))
    gp.scale.decide(x)
    before, scale = gp.mean(x), int(gp.parametrization.scale_code)
    gp.train()(x)
    assert int(gp.parametrization.scale_code) != scale
    torch.testing.assert_close(gp.mean(x), before, rtol=1e-8, atol=1e-8)


def test_the_posterior_is_that_of_the_standard_parametrization():
    x = inputs()
    linear, standard = decided(x), layer(parametrization="standard")
    standard.decide(x)
    with torch.no_grad():
        standard.beta.copy_(linear.output_weights)
    for gp in (linear, standard):
        gp.eval().update(x)
    first, second = linear.posterior(x), standard.posterior(x)
    assert torch.equal(first.variance, second.variance)
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.regularization_loss(), standard.regularization_loss(), rtol=1e-5, atol=0)


def test_the_penalty_is_of_the_output_weights():
    gp = decided(l2_penalty=0.3)
    torch.testing.assert_close(gp.regularization_loss(), 0.3 * gp.output_weights.square().sum())


# ---------------------------------------------------------------- how fast it learns


def nll_after(head, x, y, make_optimizer, steps):
    optimizer = make_optimizer(head.parameters())
    order = torch.randint(len(x), (steps, 64), generator=seeded(7))
    for rows in order:
        optimizer.zero_grad()
        F.cross_entropy(head(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.cross_entropy(head(x) if isinstance(head, nn.Linear) else head.mean(x), y))


OPTIMIZERS = {
    "AdamW 5e-5": lambda p: torch.optim.AdamW(p, lr=5e-5),
    "AdamW 1e-3": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "Adam 1e-2": lambda p: torch.optim.Adam(p, lr=1e-2),
    "SGD 1e-2": lambda p: torch.optim.SGD(p, lr=1e-2),
    "SGD .1, momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns_at_the_rate_of_the_linear_whatever_the_optimizer(name):
    width, classes = 128, 20
    g = seeded(11)
    x = torch.randn(1000, width, generator=g)  # of unit variance, as a pooler's
    y = (x @ torch.randn(width, classes, generator=g)).argmax(1)
    linear = nn.Linear(width, classes)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    gp = RandomFeatureGaussianProcess(
        width, classes, num_inducing=1024, kernel_scale="median", parametrization="linear",
        random_features="orthogonal", generator=seeded(),
    )  # fmt: skip
    plain, random = (nll_after(head, x, y, OPTIMIZERS[name], STEPS) for head in (linear, gp))
    assert random <= 1.1 * plain
    standard = copy.deepcopy(gp)
    standard.parametrization = None
    with torch.no_grad():
        standard.beta.zero_()
    assert nll_after(standard, x, y, OPTIMIZERS[name], STEPS) > random  # what it was without it


# ---------------------------------------------------------------- when it is decided


def test_inputs_that_are_all_alike_decide_nothing():
    gp = layer(kernel_scale=2.0)
    assert not gp.decide(torch.ones(6, D))
    assert not gp.decide(inputs(1))
    assert gp.is_open
    gp.update(torch.ones(6, D))  # of the covariance it has no part
    assert gp.decide(inputs())
    assert not gp.is_open


def test_it_is_decided_once():
    gp = decided()
    codes = [buffer.clone() for buffer in gp.parametrization.buffers()]
    gp.train()(9 * inputs(seed=4))
    assert all(map(torch.equal, codes, gp.parametrization.buffers()))


def test_it_travels_with_the_state_dict_and_through_averages_of_models():
    trained = layer()
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        trained.train()(inputs(seed=seed)).square().sum().backward()
        optimizer.step()
        average.update_parameters(trained)
    fresh = layer()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.mean(inputs()), trained.mean(inputs()))
    for mine, theirs in zip(average.module.parametrization.buffers(), trained.parametrization.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-6, atol=0)  # blended, in float32


def test_half_precision_keeps_it_whole():
    gp = decided()
    codes = [buffer.clone() for buffer in gp.parametrization.buffers()]
    assert all(map(torch.equal, codes, gp.half().parametrization.buffers()))
    assert bool(torch.isfinite(gp.mean(inputs().half())).all())


def test_a_mean_that_is_noise_is_not_damped():
    parametrization = LinearParametrization(D, 4 * M)
    features = torch.randn(8, 4 * M, generator=seeded(2)) / math.sqrt(4 * M)
    assert parametrization.decide(inputs(8), features)
    assert int(parametrization.damping_code) == 0


def test_a_parametrization_that_is_unknown_is_named():
    with pytest.raises(ValueError, match="parametrization='ntk' is not known: expected 'standard' or 'linear'"):
        layer(parametrization="ntk")
