"""Each class its own covariance: the plain formula, and a low rank of it that never understates a variance."""

import copy
import io

import pytest
import torch
from torch import Tensor

from hesitant.nn import CovarianceError, RandomFeatureGaussianProcess, class_factor, class_sums
from hesitant.nn.class_factor import ClassFactor

C, M, D = 5, 40, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(rank: int | None = None, **options: object) -> RandomFeatureGaussianProcess:
    chosen = {"num_inducing": M, "likelihood": "softmax", "ridge_penalty": 0.1, "dtype": torch.float64, **options}
    return RandomFeatureGaussianProcess(D, C, covariance_rank=rank, generator=seeded(), **chosen).eval()  # type: ignore[arg-type]


X = torch.randn(300, D, generator=seeded(1), dtype=torch.float64)
NEW = 2 * torch.randn(64, D, generator=seeded(2), dtype=torch.float64)


@torch.no_grad()
def precisions(gp: RandomFeatureGaussianProcess, x: Tensor) -> Tensor:
    """The plain formula."""
    phi, p = gp.features(x), gp.mean(x).softmax(1)
    data = torch.stack([phi.T @ torch.diag(p[:, c] * (1 - p[:, c])) @ phi for c in range(C)])
    return data + gp.laplace.ridge_penalty * torch.eye(M, dtype=torch.float64)


@torch.no_grad()
def variances(gp: RandomFeatureGaussianProcess, x: Tensor, new: Tensor) -> Tensor:
    phi = gp.features(new)
    inverses = torch.linalg.inv(precisions(gp, x))
    return gp.laplace.ridge_penalty * torch.einsum("bm,cmn,bn->bc", phi, inverses, phi)


def fitted(rank: int | None = None, aim: bool = True, **options: object) -> RandomFeatureGaussianProcess:
    gp = layer(rank, **options)
    x = X.to(gp.beta.dtype)
    if aim:
        gp.laplace.aim(gp.features(x))
    gp.update(x)
    return gp


@torch.no_grad()
def test_each_class_has_the_variance_of_the_plain_formula() -> None:
    gp = fitted()
    torch.testing.assert_close(gp.precision, precisions(gp, X), rtol=1e-12, atol=1e-12)
    posterior = gp.posterior(NEW)
    expected = variances(gp, X, NEW)
    torch.testing.assert_close(posterior.variance, expected, rtol=1e-9, atol=0)
    assert float((expected[:, 0] - expected[:, 1]).abs().max()) > 0.01  # they are not alike
    torch.testing.assert_close(gp(NEW), posterior.mean / torch.sqrt(1 + torch.pi / 8 * expected))
    assert gp.laplace.overstatement is not None
    assert torch.equal(gp.laplace.overstatement, torch.ones(C, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("aim", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_low_rank_never_understates_and_overstates_within_its_bound(rank: int, ridge: float, aim: bool) -> None:
    gp = fitted(rank, aim, ridge_penalty=ridge)
    exact, answer = variances(gp, X, NEW), gp.posterior(NEW).variance
    assert gp.laplace.overstatement is not None
    assert bool((answer >= exact * (1 - 1e-9)).all())
    assert bool((answer <= exact * gp.laplace.overstatement * (1 + 1e-9)).all())
    assert bool((answer <= gp.features(NEW).square().sum(1, keepdim=True) * (1 + 1e-9)).all())  # the prior's


@torch.no_grad()
def test_a_larger_rank_errs_less_and_aimed_directions_less_than_random_ones() -> None:
    def error(rank: int, aim: bool) -> float:
        gp = fitted(rank, aim, kernel_scale=16.0)
        return float((gp.posterior(NEW).variance / variances(gp, X, NEW) - 1).median())

    aimed, drawn = ([error(rank, aim) for rank in (2, 5, 10, 20)] for aim in (True, False))
    assert aimed == sorted(aimed, reverse=True)
    assert drawn == sorted(drawn, reverse=True)
    assert all(one < other for one, other in zip(aimed, drawn, strict=True))
    assert aimed[-1] < 1e-3


@torch.no_grad()
def test_a_rank_that_holds_all_the_data_is_exact() -> None:
    gp = layer(20)
    gp.update(X[:20])
    torch.testing.assert_close(gp.posterior(NEW).variance, variances(gp, X[:20], NEW), rtol=1e-8, atol=0)
    torch.testing.assert_close(gp.precision, precisions(gp, X[:20]), rtol=1e-8, atol=1e-8)
    assert gp.laplace.overstatement is not None
    assert float(gp.laplace.overstatement.max()) < 1 + 1e-8


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, 4])
def test_data_added_and_taken_out_again(rank: int | None) -> None:
    gp = fitted(rank)
    before, variance = gp.laplace.data_precision, gp.posterior(NEW).variance
    gp.update(NEW)
    if rank is None:  # of low rank a single direction may be told less well
        assert bool((gp.posterior(NEW).variance < variance).all())
    assert float(gp.posterior(NEW).variance.mean()) < float(variance.mean())
    gp.downdate(NEW)
    assert float((gp.laplace.data_precision - before).abs().max()) <= 1e-12 * float(before.abs().max())
    gp.laplace.remove(3 * before, 1)
    with pytest.raises(CovarianceError, match="negative eigenvalue"):
        gp.posterior(NEW)


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, 4])
def test_covariance_and_draws_are_those_of_each_class(rank: int | None) -> None:
    gp = fitted(rank)
    new, posterior = NEW[:6], gp.posterior(NEW[:6])
    covariance = gp.covariance(new)
    assert covariance.shape == (C, 6, 6)
    torch.testing.assert_close(covariance.diagonal(dim1=1, dim2=2).T, posterior.variance)
    drawn = gp.sample(new, 20_000, seeded(5))  # (S, B, C)
    torch.testing.assert_close(drawn.mean(0), posterior.mean, rtol=0, atol=0.05)
    for c in range(C):
        torch.testing.assert_close(drawn[..., c].T.cov(), covariance[c], rtol=0, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_float32_answers_as_float64(rank: int | None, ridge: float) -> None:
    double, single = fitted(rank, ridge_penalty=ridge), fitted(rank, ridge_penalty=ridge)
    double.posterior(NEW)
    single.posterior(NEW)
    single.float()
    answer = single.posterior(NEW.float()).variance
    assert answer.dtype == torch.float32
    phi = single.features(NEW.float()).double()  # rounded: a small ridge makes much of it
    factor = double.laplace.factor
    assert isinstance(factor, ClassFactor)
    torch.testing.assert_close(answer.double(), factor.variance(phi), rtol=1e-3, atol=0)
    assert single.laplace.data_precision.dtype == torch.float64


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, 4])
def test_a_state_dict_and_a_copy_hold_it(rank: int | None) -> None:
    gp = fitted(rank)
    expected = gp.posterior(NEW).variance
    content = io.BytesIO()
    torch.save(gp.state_dict(), content)
    content.seek(0)
    again = layer(rank)
    again.load_state_dict(torch.load(content, weights_only=True))
    assert again.covariance_state == "fitted"
    assert torch.equal(again.posterior(NEW).variance, expected)
    assert torch.equal(copy.deepcopy(gp).posterior(NEW).variance, expected)


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, 4])
def test_it_is_exported(rank: int | None) -> None:
    gp = fitted(rank, dtype=torch.float32)
    new = NEW.float()
    gp.factorize()
    program = torch.export.export(gp, (new,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(new[:7]), gp(new[:7]))


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, 4])
def test_few_classes_at_a_time_give_what_all_give(rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(rank)
    expected = whole.posterior(NEW).variance
    monkeypatch.setattr(class_sums, "_NUMBERS_AT_ONCE", 2 * 300 * 5)  # two classes of these sums, one of the factor
    monkeypatch.setattr(class_factor, "_COLUMNS_AT_ONCE", 2 * (rank or M))
    gp = fitted(rank)
    torch.testing.assert_close(gp.laplace.data_precision, whole.laplace.data_precision, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gp.posterior(NEW).variance, expected, rtol=1e-9, atol=0)


@torch.no_grad()
def test_sequences_and_no_inputs() -> None:
    gp = fitted(4)
    assert torch.equal(gp.posterior(NEW.view(16, 4, D)).variance.view(64, C), gp.posterior(NEW).variance)
    assert gp.posterior(NEW[:0]).variance.shape == (0, C)


@torch.no_grad()
def test_a_running_covariance_of_each_class_fades() -> None:
    for rank in (None, 4):
        gp = layer(rank, momentum=0.5)
        gp.update(X[:100])
        first = gp.laplace.data_precision
        gp.update(X[100:200])
        torch.testing.assert_close(gp.laplace.data_precision, 0.5 * first + gp.contribution(X[100:200])[0])


def test_directions_stay_while_a_covariance_is_fitted() -> None:
    gp = fitted(4)
    directions = gp.laplace.directions
    gp.laplace.aim(gp.features(NEW))
    assert gp.laplace.directions is directions
    gp.reset_covariance()
    gp.laplace.aim(gp.features(NEW))
    assert gp.laplace.directions is not None
    assert directions is not None
    assert not torch.equal(gp.laplace.directions, directions)
    torch.testing.assert_close(gp.laplace.directions.T @ gp.laplace.directions, torch.eye(4, dtype=torch.float64))
