import copy
import io
import math
import pickle
import sys
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hesitant.nn import CovarianceError, RandomFeatureGaussianProcess

D = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(num, seed=1, dtype=torch.float32, width=D):
    return torch.randn(num, width, generator=seeded(seed), dtype=torch.float64).to(dtype)


def layer(out_features=2, num_inducing=32, seed=0, **options):
    return RandomFeatureGaussianProcess(D, out_features, num_inducing=num_inducing, generator=seeded(seed), **options)


def fitted(num=40, **options):
    gp = layer(**options)
    gp.update(inputs(num, dtype=gp.beta.dtype))
    return gp.eval()


def dual_variance(gp, x, data):
    """The textbook posterior k(x, x) - k(x, X) (K + ridge W^-1)^-1 k(X, x) of the kernel phi phi^T."""
    with torch.no_grad():
        phi_x, phi = gp.features(x), gp.features(data)
        logits = gp.mean(data)[:, 0]
    weights = {
        "gaussian": torch.ones_like(logits),
        "binary_logistic": logits.sigmoid() * (1 - logits.sigmoid()),
        "poisson": logits.exp(),
    }[gp.likelihood]
    kernel = phi @ phi.T + torch.diag(gp.laplace.ridge_penalty / weights)
    cross = phi_x @ phi.T
    return phi_x.square().sum(1) - (cross * torch.linalg.solve(kernel, cross.T).T).sum(1)


def train_step(gp, x):
    """One step of an optimizer on what the layer answers."""
    optimizer = torch.optim.SGD(gp.parameters(), 0.01)
    gp.train()(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


# ---------------------------------------------------------------- against the exact answer


@pytest.mark.parametrize(
    ("num_inducing", "ridge", "likelihood"),
    [
        (48, 1.0, "gaussian"),
        (48, 1e-3, "binary_logistic"),
        (48, 1e-6, "poisson"),
        (600, 1.0, "gaussian"),
        (600, 1.0, "binary_logistic"),
        (600, 1e-3, "poisson"),
        (600, 1e-6, "gaussian"),
    ],
)
def test_variance_is_the_exact_posterior_of_the_same_kernel(num_inducing, ridge, likelihood):
    gp = layer(1, num_inducing, ridge_penalty=ridge, likelihood=likelihood, dtype=torch.float64)
    data = inputs(60, dtype=torch.float64)
    x = torch.cat([data[:20], inputs(20, 2, torch.float64), 4 * inputs(20, 3, torch.float64)])
    gp.update(data[:25])
    gp.update(data[25:])
    variance = gp.posterior(x).variance[:, 0]
    exact = dual_variance(gp, x, data)
    torch.testing.assert_close(variance, exact, rtol=1e-6, atol=1e-9 if ridge < 1e-3 else 1e-12)
    if ridge == 1 and num_inducing == 600:
        assert gp.laplace.factor.gains is not None  # the low-rank factor is what was compared


def test_float32_keeps_its_tolerance_relative_to_the_variance():
    gp = layer(num_inducing=600, kernel_scale=20.0)
    exact = copy.deepcopy(gp).double()
    data = inputs(500)
    for each in (gp, exact):
        each.update(data.to(each.beta.dtype))
    x = torch.cat([data[:50], 3 * inputs(50, 2)])
    expected = exact.posterior(x.double()).variance
    error = (gp.posterior(x).variance.double() - expected).abs() / expected
    assert gp.laplace.factor.gains is not None
    assert error.max() < 1e-3  # 1e-4 from the factor, the rest from features in float32 at a condition number of 500


def test_variance_meets_the_rbf_kernels_as_features_grow():
    data, x = inputs(30, dtype=torch.float64), inputs(40, 2, torch.float64)

    def kernel(a, b):
        return torch.exp(-torch.cdist(a, b).square() / 2)

    solved = torch.linalg.solve(kernel(data, data) + torch.eye(30), kernel(data, x))
    exact = 1 - (kernel(x, data) * solved.T).sum(1)
    errors = []
    for num_inducing in (64, 1024):
        squared = 0.0
        for seed in range(6):
            gp = layer(num_inducing=num_inducing, seed=seed, dtype=torch.float64)
            gp.update(data)
            squared += float((gp.posterior(x).variance[:, 0] - exact).square().mean())
        errors.append(math.sqrt(squared / 6))
    # 16 times the features: a quarter of the error.
    assert 2.5 < errors[0] / errors[1] < 6.5
    assert errors[1] < 0.04


def test_orthogonal_features_estimate_the_kernel_better():
    x = inputs(60, dtype=torch.float64, width=16) / 3
    exact = torch.exp(-torch.cdist(x, x).square() / 2)
    error = {}
    for kind in ("gaussian", "orthogonal"):
        total = 0.0
        for seed in range(10):
            options = {"num_inducing": 256, "random_features": kind, "generator": seeded(seed), "dtype": torch.float64}
            phi = RandomFeatureGaussianProcess(16, 2, **options).features(x)
            total += float((phi @ phi.T - exact).square().mean())
        error[kind] = total
    assert error["orthogonal"] < 0.9 * error["gaussian"]


def test_kernel_scale_is_the_squared_length_scale():
    x = inputs(20, dtype=torch.float64)
    gp = layer(num_inducing=4000, kernel_scale=4.0, dtype=torch.float64)
    phi = gp.features(x)
    torch.testing.assert_close(phi @ phi.T, torch.exp(-torch.cdist(x, x).square() / 8), atol=0.08, rtol=0)


def test_linear_kernel_is_bayesian_linear_regression():
    gp = layer(kernel="linear", ridge_penalty=0.3, bias=0.5, scale_random_features=False, dtype=torch.float64)
    data, x = inputs(20, dtype=torch.float64), inputs(5, 2, torch.float64)
    gp.update(data)
    precision = 0.3 * torch.eye(D, dtype=torch.float64) + data.T @ data
    torch.testing.assert_close(gp.precision, precision)
    torch.testing.assert_close(gp.covariance(x), 0.3 * x @ torch.linalg.solve(precision, x.T))
    torch.testing.assert_close(gp.mean(x), x @ gp.beta + 0.5)
    assert gp.num_inducing == D


def test_linear_features_are_scaled_as_the_reference_scales_them():
    gp = layer(kernel="linear", num_inducing=50, kernel_scale=4.0, dtype=torch.float64)
    x = inputs(5, dtype=torch.float64)
    torch.testing.assert_close(gp.features(x), x / 2 * math.sqrt(2 / 50))


@pytest.mark.parametrize("normalize_input", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("activation", [torch.cos, torch.relu])
def test_logits_are_the_formula(normalize_input, scaled, activation):
    gp = layer(
        normalize_input=normalize_input,
        scale_random_features=scaled,
        activation=activation,
        kernel_scale=2.0,
        random_features_std=0.3,
        bias=-0.7,
        dtype=torch.float64,
    )
    x = inputs(7, dtype=torch.float64)
    normal = nn.functional.layer_norm(x, (D,)) if normalize_input else x
    phi = activation(normal / math.sqrt(2.0) @ gp.random_weight.T + gp.random_phase)
    phi = phi * math.sqrt(2 / 32) if scaled else phi
    torch.testing.assert_close(gp.features(x), phi)
    torch.testing.assert_close(gp(x), phi @ gp.beta - 0.7)
    assert (gp.layer_norm is not None) == normalize_input


# ---------------------------------------------------------------- what data does


def test_adding_data_never_adds_variance():
    gp, x = layer(dtype=torch.float64), torch.cat([inputs(50, 2, torch.float64), 5 * inputs(50, 3, torch.float64)])
    before = gp.features(x).square().sum(1)  # the prior's
    for seed in range(5):
        gp.update(inputs(6, 10 + seed, torch.float64))
        after = gp.posterior(x).variance[:, 0]
        assert (after <= before * (1 + 1e-12)).all()
        before = after


def test_a_permutation_of_the_batch_permutes_the_answer():
    gp, x, order = fitted(), inputs(30, 2), torch.randperm(30, generator=seeded())
    for answer in (gp, lambda x: gp.posterior(x).variance, gp.mean):
        torch.testing.assert_close(answer(x[order]), answer(x)[order])
    torch.testing.assert_close(gp.covariance(x[order]), gp.covariance(x)[order][:, order], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["gaussian", "binary_logistic", "poisson"])
def test_batches_split_anyhow_give_one_precision(likelihood):
    whole, data = layer(1, likelihood=likelihood), inputs(40)
    whole.update(data)
    for sizes in (1, [7, 20, 13], 40, [3, 37]):
        parts = layer(1, likelihood=likelihood)
        for part in data.split(sizes):
            parts.update(part)
        torch.testing.assert_close(parts.precision, whole.precision, rtol=0, atol=1e-6)
        assert float(parts.laplace.num_seen) == 40


def test_more_axes_are_more_inputs():
    flat, deep = layer(), layer()
    x = inputs(24)
    flat.update(x)
    deep.update(x.view(2, 3, 4, D))
    torch.testing.assert_close(deep.precision, flat.precision)
    flat.eval()
    deep.eval()
    torch.testing.assert_close(deep(x.view(4, 6, D)), flat(x).view(4, 6, 2))
    assert deep.posterior(x.view(4, 6, D)).variance.shape == (4, 6, 2)
    assert deep.sample(x.view(4, 6, D), 5, seeded()).shape == (5, 4, 6, 2)


def test_downdate_undoes_update():
    gp = fitted()
    x, before = inputs(10, 5), gp.precision.clone()
    variance = gp.posterior(x).variance
    gp.update(x)
    assert (gp.posterior(x).variance < variance).all()
    gp.downdate(x)
    torch.testing.assert_close(gp.precision, before, rtol=0, atol=1e-12)
    torch.testing.assert_close(gp.posterior(x).variance, variance)


def test_what_cannot_be_taken_out_is_an_error():
    x = inputs(10)
    with pytest.raises(CovarianceError, match=r"downdate: the covariance is not fitted"):
        layer().downdate(x)
    gp = fitted(num=5)
    with pytest.raises(CovarianceError, match=r"10 inputs cannot be taken out of the 5 that were added"):
        gp.downdate(x)
    train_step(gp, x)
    with pytest.raises(CovarianceError, match=r"stale"):
        gp.downdate(x[:5])
    running = layer(momentum=0.9)
    running(x)
    with pytest.raises(CovarianceError, match=r"momentum=0.9"):
        running.downdate(x)
    other = layer(activation=torch.relu, scale_random_features=False)
    other.update(0.01 * x)
    other.downdate(100 * x)
    with pytest.raises(CovarianceError, match=r"negative eigenvalue .*|data was taken out"):
        other.posterior(x)


def test_variance_of_many_inputs_never_makes_their_covariance():
    gp = fitted(num_inducing=4)
    x = inputs(200_000)  # B x B would be 160 GB
    assert gp.posterior(x).variance.shape == (200_000, 2)
    assert gp(x).shape == (200_000, 2)


# ---------------------------------------------------------------- numerics


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("num_inducing", "ridge"), [(16, 1e-12), (400, 1.0), (400, 1e-12)])
def test_variance_is_never_negative(dtype, num_inducing, ridge):
    gp = layer(num_inducing=num_inducing, ridge_penalty=ridge).to(dtype)
    data = inputs(5, dtype=dtype).repeat(40, 1)  # a singular data precision
    gp.update(data)
    gp.eval()
    for x in (data, inputs(50, 2, dtype), 100 * inputs(50, 3, dtype)):
        variance = gp.posterior(x).variance
        assert torch.isfinite(variance).all()
        assert (variance >= 0).all()
        assert variance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(gp(x)).all()
        assert gp(x).dtype == dtype


def test_autocast_changes_no_precision_and_no_variance():
    plain, mixed, x = layer(), layer(), inputs(20, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.update(inputs(40))
        assert mixed.features(x).dtype == torch.float32
        mixed.eval()
        variance, covariance = mixed.posterior(x).variance, mixed.covariance(x)
        draws, logits = mixed.sample(x, 3, seeded()), mixed(x)
    plain.update(inputs(40))
    plain.eval()
    assert mixed.precision.dtype == torch.float64
    assert torch.equal(mixed.precision, plain.precision)
    assert torch.equal(variance, plain.posterior(x).variance)
    assert torch.equal(covariance, plain.covariance(x))
    assert torch.equal(draws, plain.sample(x, 3, seeded()))
    assert torch.equal(logits, plain(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_module_keeps_features_and_precision(dtype):
    gp, half = fitted(), fitted().to(dtype)
    assert half.beta.dtype == dtype
    assert torch.equal(half.random_weight, gp.random_weight)
    assert torch.equal(half.random_phase, gp.random_phase)
    assert torch.equal(half.precision, gp.precision)
    x = inputs(10, 2).to(dtype)
    assert torch.equal(half.features(x), gp.features(x.float()))
    torch.testing.assert_close(half.posterior(x).variance, gp.posterior(x.float()).variance)
    torch.testing.assert_close(half(x).float(), gp(x.float()), atol=0.05, rtol=0.02)


def test_casts_there_and_back_keep_the_variance():
    data = inputs(3000, dtype=torch.float64)
    gp = layer(num_inducing=600, kernel_scale=100.0, dtype=torch.float64)
    gp.update(data)
    x = data[:50]
    variance = gp.posterior(x).variance
    assert gp.laplace.factor.gains is not None  # low-rank in float64; in float32 it would cancel
    for cast in (gp.float, gp.double, gp.half, gp.float):
        cast()
        dtype = torch.promote_types(gp.beta.dtype, torch.float32)
        torch.testing.assert_close(gp.posterior(x.to(dtype)).variance.double(), variance, rtol=2e-4, atol=0)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("num_inducing", [32, 600])
def test_draws_are_joint_over_inputs(num_inducing):
    gp = fitted(num_inducing=num_inducing, num=10, dtype=torch.float64)
    x = torch.cat([inputs(3, 2, torch.float64), inputs(3, 2, torch.float64) + 0.1])
    with torch.no_grad():
        draws = gp.sample(x, 6000, seeded())
        covariance, posterior = gp.covariance(x), gp.posterior(x)
    torch.testing.assert_close(covariance.diagonal(), posterior.variance[:, 0])
    torch.testing.assert_close(draws.mean(0), posterior.mean, atol=0.06, rtol=0)
    for c in range(2):
        torch.testing.assert_close(draws[:, :, c].T.cov(), covariance, atol=0.08, rtol=0)
    across = ((draws - posterior.mean)[:, :, 0] * (draws - posterior.mean)[:, :, 1]).mean(0)
    assert across.abs().max() < 0.08  # classes are independent


def test_generators_reproduce_and_the_global_one_is_left_alone():
    before = torch.get_rng_state()
    first, second = fitted(random_features="orthogonal"), fitted(random_features="orthogonal")
    x = inputs(5, 2)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(first.sample(x, 4, seeded()), second.sample(x, 4, seeded()))
    assert not torch.equal(first.sample(x, 4, seeded()), second.sample(x, 4, seeded(1)))
    first.train()(x).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- what trains


def test_kernel_scale_and_bias_train_where_asked():
    gp = layer(train_kernel_scale=True, train_bias=True, normalize_input=True, kernel_scale=2.0)
    optimizer = torch.optim.SGD(gp.parameters(), 0.1)
    names = {"beta", "scale.log_change", "output_bias", "layer_norm.weight", "layer_norm.bias"}
    assert {name for name, _ in gp.named_parameters()} == names
    start = {name: p.detach().clone() for name, p in gp.named_parameters()}
    gp(inputs(20)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gp.parameters())
    optimizer.step()
    assert all(not torch.equal(p, start[name]) for name, p in gp.named_parameters())
    assert gp.kernel_scale != 2.0


def test_nothing_else_trains():
    gp = layer(kernel_scale=2.0)
    assert [name for name, _ in gp.named_parameters()] == ["beta"]
    assert gp.kernel_scale == pytest.approx(2.0)


def test_median_scale_is_set_by_the_first_batch_once():
    gp, x = layer(kernel_scale="median"), inputs(30)
    assert math.isnan(gp.kernel_scale)
    gp(x)
    expected = float(torch.pdist(x.double()).square().median())
    assert gp.kernel_scale == pytest.approx(expected, rel=1e-6)
    gp(10 * x)
    assert gp.kernel_scale == pytest.approx(expected, rel=1e-6)
    fresh = layer(kernel_scale="median", seed=1)
    fresh.load_state_dict(gp.state_dict())
    fresh(10 * x)
    assert fresh.kernel_scale == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"at least two different inputs"):
        layer(kernel_scale="median").update(x[:1])


def test_l2_penalty():
    gp = layer(l2_penalty=0.3)
    torch.testing.assert_close(gp.regularization_loss(), 0.3 * gp.beta.square().sum())


# ---------------------------------------------------------------- the running covariance


def test_momentum_counts_training_batches_alone():
    gp, batches = layer(momentum=0.8), [inputs(8, seed) for seed in range(5)]
    for batch in batches:
        gp(batch)
    phi = [gp.features(batch).detach().double() for batch in batches]
    window = sum(0.8 ** (4 - i) * each.T @ each for i, each in enumerate(phi))
    expected = torch.eye(32, dtype=torch.float64) + window
    torch.testing.assert_close(gp.precision, expected, rtol=1e-5, atol=1e-6)
    assert gp.covariance_state == "fitted"
    gp.eval()(batches[0])
    torch.testing.assert_close(gp.precision, expected, rtol=1e-5, atol=1e-6)


def test_momentum_one_is_the_exact_sum():
    running, exact = layer(momentum=1.0), layer()
    for seed in range(3):
        running(inputs(8, seed))
        exact.update(inputs(8, seed))
    assert torch.equal(running.precision, exact.precision)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_a_batch_once(reentrant):
    gp, x = layer(momentum=0.9), inputs(8).requires_grad_()
    checkpoint(gp, x, use_reentrant=reentrant).sum().backward()
    assert float(gp.laplace.num_seen) == 8
    exact = fitted().train()
    checkpoint(exact, x, use_reentrant=reentrant).sum().backward()
    torch.optim.SGD(exact.parameters(), 0.1).step()
    assert exact.covariance_state == "stale"


# ---------------------------------------------------------------- never silently stale


def test_a_training_step_makes_the_covariance_stale():
    gp, x = fitted(), inputs(8)
    with torch.no_grad():
        gp.train()(x)
    gp(x).sum().backward()  # a forward alone moves nothing
    assert gp.covariance_state == "fitted"
    torch.optim.SGD(gp.parameters(), 0.1).step()
    assert gp.covariance_state == "stale"
    for ask in (gp.posterior, gp.covariance, lambda x: gp.sample(x, 2), lambda _: gp.factorize()):
        with pytest.raises(CovarianceError, match=r"stale: the weights have moved.*Call fit_covariance\(data\)"):
            ask(x)
    with pytest.raises(CovarianceError, match=r"update: the weights have moved.*Call reset_covariance\(\) first"):
        gp.update(x)
    gp.reset_covariance()
    assert gp.covariance_state == "none"
    gp.update(x)
    assert gp.covariance_state == "fitted"


def test_the_steps_of_another_model_move_nothing():
    gp, other, x = fitted(), nn.Linear(D, 1), inputs(8, 2)
    expected = gp(x)
    other(x).sum().backward()
    torch.optim.SGD(other.parameters(), 0.1).step()
    assert torch.equal(gp(x), expected)
    assert gp.covariance_state == "fitted"


def test_a_step_that_autograd_is_not_told_of_is_seen():
    """Fine-tuning in eval mode, with a fused optimizer: no version counter moves, and there is no training forward."""
    gp, x = fitted(), inputs(8, 2)
    optimizer = torch.optim.AdamW(gp.parameters(), fused=True)
    gp(x).square().sum().backward()
    assert gp.covariance_state == "fitted"
    optimizer.step()
    assert gp.covariance_state == "stale"


@pytest.mark.parametrize(
    "write",
    [
        lambda beta: beta.mul_(1.1),
        lambda beta: beta.copy_(beta.flip(0)),
        lambda beta: setattr(beta, "data", beta.data * 1.1),
    ],
)
def test_weights_written_in_place_do_not_answer_with_the_old_covariance(write):
    gp, x = fitted(), inputs(8, 2)
    gp(x)
    with torch.no_grad():
        write(gp.beta)
    with pytest.warns(UserWarning, match="stale: the weights have moved"):
        assert torch.equal(gp(x), gp.mean(x))
    for ask in (gp.posterior, gp.covariance, lambda x: gp.sample(x, 2), lambda _: gp.factorize()):
        with pytest.raises(CovarianceError, match="stale"):
            ask(x)
    assert gp.covariance_state == "stale"
    with pytest.raises(CovarianceError, match="update: the weights have moved"):
        gp.update(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda gp: pickle.loads(pickle.dumps(gp))])
def test_a_copy_or_a_state_dict_of_moved_weights_is_stale(copied):
    gp = fitted()
    with torch.no_grad():
        gp.beta.mul_(1.1)
    assert copied(gp).covariance_state == "stale"
    gp = fitted()
    with torch.no_grad():
        gp.beta.mul_(1.1)
    other = layer()
    other.load_state_dict(gp.state_dict())
    assert other.covariance_state == "stale"
    gp = fitted()
    gp.train()(inputs(4)).sum().backward()
    assert copied(gp).covariance_state == "fitted"
    assert gp.to(torch.float64).covariance_state == "fitted"  # no step has been


def test_weights_lent_for_one_call_change_nothing_for_good():
    gp, x = fitted(), inputs(8, 2)
    expected = gp(x)
    others = {name: 2 * parameter for name, parameter in gp.named_parameters()}
    with pytest.warns(UserWarning, match="stale"):
        torch.func.functional_call(gp, others, (x,))
    assert torch.equal(gp(x), expected)
    assert gp.covariance_state == "fitted"


def test_compiled_code_is_told_of_a_step():
    gp, x = fitted(), inputs(8, 2)
    gp.factorize()
    torch._dynamo.reset()  # other tests may have compiled as many forwards as torch keeps
    compiled = torch.compile(gp, backend="eager")
    with torch.no_grad():
        expected = compiled(x)
    optimizer = torch.optim.AdamW(gp.parameters(), fused=True)
    gp(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad(), pytest.warns(UserWarning, match="stale"):
        after = compiled(x)
    assert torch.equal(after, gp.mean(x))
    assert not torch.equal(after, expected)


def test_a_covariance_fitted_apart_is_that_of_updates():
    updated, apart, data = layer(), fitted(seed=0), inputs(40, 6)
    updated.update(data)
    total, count = torch.zeros_like(apart.precision), 0
    variance = apart.posterior(data).variance
    for batch in data.split(15):
        product, number = apart.contribution(batch)
        total += product
        count += number
    assert torch.equal(apart.posterior(data).variance, variance)  # as before, until it is done
    with torch.no_grad():
        apart.beta.mul_(1.0)  # moved, as far as anyone can tell
    apart.replace_covariance(total, count)
    torch.testing.assert_close(apart.precision, updated.precision, rtol=0, atol=1e-12)
    assert apart.covariance_state == "fitted"
    assert apart.laplace.factor is not None
    torch.testing.assert_close(apart(data), updated.eval()(data))


def test_readers_get_the_old_covariance_or_the_new_one():
    gp, x = fitted(num_inducing=300), inputs(4, 2)
    sums, answers, wrong, done = [], [], [], threading.Event()
    for seed in (3, 4):
        sums.append(gp.contribution(3 * inputs(60, seed)))
        gp.replace_covariance(*sums[-1])
        answers.append(gp(x))
    assert not torch.allclose(*answers)

    def read():
        with torch.no_grad():
            while not done.is_set():
                try:
                    answer = gp(x)
                    if not any(torch.equal(answer, known) for known in answers):
                        wrong.append(answer)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for turn in range(20):
            gp.laplace.replace(*sums[turn % 2])  # with no factor yet: the readers make it
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert wrong == []


def test_none_and_stale_answer_plain_logits_and_warn_once():
    x = inputs(8)
    gp = layer().eval()
    with pytest.warns(UserWarning, match=r"not fitted: evaluation answers plain logits.*fit_covariance\(data\)"):
        assert torch.equal(gp(x), gp.mean(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(gp(x), gp.mean(x))
        gp.update(x)
        assert not torch.equal(gp(x), gp.mean(x))
        train_step(gp, x)
        gp.eval()
    with pytest.warns(UserWarning, match=r"stale: the weights have moved"):
        gp(x)
    for ask in (layer().posterior, layer().covariance, lambda x: layer().sample(x, 2)):
        with pytest.raises(CovarianceError, match=r"not fitted. Call fit_covariance\(data\)"):
            ask(x)


def test_loaded_weights_make_it_stale_unless_they_bring_their_covariance():
    gp, other, x = fitted(), fitted(seed=3), inputs(8, 2)
    weights = {name: t for name, t in other.state_dict().items() if not name.startswith("laplace.")}
    gp.load_state_dict(weights, strict=False)
    assert gp.covariance_state == "stale"
    gp.load_state_dict(other.state_dict())
    assert gp.covariance_state == "fitted"
    assert torch.equal(gp(x), other(x))


def test_eval_logits_are_the_mean_field_ones():
    x = inputs(8, 2)
    for factor in (None, 0.3, math.pi / 8):
        gp = fitted(mean_field_factor=factor)
        expected = gp.posterior(x).mean_field_logits(factor)
        assert torch.equal(gp(x), expected)
    assert torch.equal(fitted(mean_field_factor=None)(x), gp.mean(x))
    poisson = fitted(out_features=1, likelihood="poisson")
    posterior = poisson.posterior(x)
    torch.testing.assert_close(poisson(x), posterior.mean * torch.exp(math.pi / 16 * posterior.variance))


# ---------------------------------------------------------------- as a citizen of torch


@pytest.mark.parametrize("num_inducing", [32, 600])
def test_state_dict_and_deepcopy_carry_everything(num_inducing):
    gp = fitted(num_inducing=num_inducing, kernel_scale="median", normalize_input=True)
    x = inputs(8, 2)
    gp(x)
    fresh = layer(num_inducing=num_inducing, kernel_scale="median", normalize_input=True, seed=5)
    file = io.BytesIO()
    torch.save(gp.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(gp)
    for same in (fresh.eval(), twin):
        assert same.covariance_state == "fitted"
        assert torch.equal(same(x), gp(x))
        assert torch.equal(same.covariance(x), gp.covariance(x))
    twin.update(x)
    twin.train()(x)
    assert gp.covariance_state == "fitted"
    assert torch.equal(fresh(x), gp(x))


def test_a_meta_layer_takes_an_assigned_checkpoint():
    gp, x = fitted(), inputs(8, 2)
    bare = layer(seed=4, device="meta").eval()
    bare.load_state_dict(gp.state_dict(), assign=True)
    assert torch.equal(bare(x), gp(x))


def test_a_linears_checkpoint_does_not_load_into_it():
    for options in ({}, {"kernel": "linear"}):
        gp = layer(**options)
        with pytest.raises(RuntimeError, match=r'Missing key.*"beta"'):
            gp.load_state_dict(nn.Linear(D, 2).state_dict())
        result = gp.load_state_dict(nn.Linear(D, 2).state_dict(), strict=False)
        assert set(result.unexpected_keys) == {"weight", "bias"}


def test_a_factor_made_in_inference_mode_serves_gradients():
    gp, x = fitted(), inputs(8, 2).requires_grad_()
    with torch.inference_mode():
        gp(inputs(8))
    gp(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    gp.update(inputs(8))


def test_gradients_of_the_variance_are_right():
    gp = fitted(dtype=torch.float64)
    x = inputs(3, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gp.posterior(x).variance[:, 0], x)
    assert torch.autograd.gradcheck(gp, x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_agrees(backend):
    gp, x = fitted(), inputs(8, 2)
    compiled = torch.compile(gp, backend=backend)
    torch.testing.assert_close(compiled(x), gp(x))
    gp.update(x)
    torch.testing.assert_close(compiled(x), gp(x))  # not with the factor of before
    train, plain = layer(momentum=0.9), layer(momentum=0.9)
    torch.testing.assert_close(torch.compile(train, backend=backend)(x), plain(x))
    assert torch.equal(train.precision, plain.precision)
    gp.train()
    compiled(x).sum().backward()
    torch.optim.SGD(gp.parameters(), 0.1).step()
    gp.eval()
    with pytest.warns(UserWarning, match="stale"):
        torch.testing.assert_close(compiled(x), gp.mean(x))


# torch 2.6 cannot be asked whether it exports: there the refusal is dynamo's own.
OLD = not hasattr(torch.compiler, "is_exporting")
EXPORT_ERROR: type[Exception] = torch._dynamo.exc.Unsupported if OLD else CovarianceError


@pytest.mark.filterwarnings("ignore:.*get_attr")  # torch 2.6, of tensors that are no buffers
@pytest.mark.parametrize("num_inducing", [32, 600])
def test_exported_agrees_at_any_batch_size(num_inducing):
    gp, x = fitted(num_inducing=num_inducing), inputs(8, 2)
    with pytest.raises(
        EXPORT_ERROR, match=None if OLD else r"export: the covariance is not factored yet. Call factorize\(\)"
    ):
        torch.export.export(gp, (x,))
    gp.factorize()
    program = torch.export.export(gp, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for num in (8, 3):
        torch.testing.assert_close(program.module()(x[:num]), gp(x[:num]))


def test_unfitted_export_is_an_error():
    with pytest.raises(
        EXPORT_ERROR, match=None if OLD else r"export: the covariance is not fitted. Call fit_covariance"
    ):
        torch.export.export(layer().eval(), (inputs(4),))


# ---------------------------------------------------------------- never wrong in silence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inducing": 0}, r"num_inducing=0 must be at least 1"),
        ({"out_features": 0}, r"out_features=0 must be at least 1"),
        ({"kernel": "matern"}, r"kernel='matern' is not known: expected 'gaussian' or 'linear'"),
        ({"kernel_scale": 0.0}, r"kernel_scale=0.0 must be a positive number, 'median' or 'running_median'"),
        ({"kernel_scale": "mean"}, r"kernel_scale='mean' must be a positive number, 'median' or 'running_median'"),
        ({"kernel_scale": math.nan}, r"kernel_scale=nan must be"),
        ({"kernel_scale": math.inf}, r"kernel_scale=inf must be"),
        ({"random_features": "sobol"}, r"random_features='sobol' is not known"),
        ({"likelihood": "probit"}, r"likelihood='probit' is not known: expected 'gaussian'"),
        ({"likelihood": "softmax", "out_features": 1}, r"likelihood='softmax' needs several logits"),
        ({"covariance_rank": 4}, r"covariance_rank=4 needs likelihood='softmax'"),
        ({"likelihood": "softmax", "covariance_rank": 17}, r"must lie in 1 to 16, half of the random features"),
        ({"likelihood": "poisson"}, r"likelihood='poisson' needs out_features=1, and got out_features=2"),
        ({"likelihood": "binary_logistic"}, r"likelihood='binary_logistic' needs out_features=1.*'gaussian'"),
        ({"ridge_penalty": 0.0}, r"ridge_penalty=0.0 must be a positive number"),
        ({"momentum": 2.0}, r"momentum=2.0 must be None"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_batch_that_is_not_finite_is_refused_whole(momentum):
    gp = layer(momentum=momentum)
    gp.update(inputs(4))
    before, x = gp.precision.clone(), inputs(8)
    for bad in (math.nan, math.inf, -math.inf):
        x[3, 1] = bad
        with pytest.raises(ValueError, match=r"x holds NaN or Inf \(batch of shape \(8, 3\)\): nothing was added"):
            gp.update(x)
        if momentum:
            with pytest.raises(ValueError, match="NaN or Inf"):
                gp(x)
        assert torch.equal(gp.precision, before)


@pytest.mark.parametrize(("likelihood", "bias"), [("poisson", 800.0), ("binary_logistic", math.nan)])
def test_data_weights_that_are_not_finite_are_refused(likelihood, bias):
    gp = layer(1, likelihood=likelihood, bias=bias)
    with pytest.raises(ValueError, match=rf"the logits reach .*likelihood='{likelihood}' are not finite.*nothing was"):
        gp.update(inputs(4))
    assert gp.covariance_state == "none"


def test_bad_inputs_are_named():
    gp = fitted()
    for ask in (gp, gp.update, gp.downdate, gp.posterior, gp.covariance, gp.mean):
        with pytest.raises(ValueError, match=r"x has shape \(4, 5\): expected \(\.\.\., 3\), the in_features"):
            ask(torch.zeros(4, 5))
        with pytest.raises(ValueError, match=r"x has dtype torch.int64: expected a floating type"):
            ask(torch.zeros(4, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"x is float64 and this layer float32: call x.float\(\)"):
            ask(torch.zeros(4, 3, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"x has shape \(3,\): expected a batch; call x.unsqueeze\(0\)"):
            ask(torch.zeros(3))
    with pytest.raises(ValueError, match=r"x has shape \(0, 3\): an empty batch says nothing"):
        gp.update(torch.zeros(0, 3))
    assert gp(torch.zeros(0, 3)).shape == (0, 2)
    with pytest.raises(ValueError, match=r"num_samples=0 must be at least 1"):
        gp.sample(inputs(4), 0)
    with pytest.raises(CovarianceError, match="not fitted"):
        layer().posterior(inputs(4))
