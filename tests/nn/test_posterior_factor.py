import pytest
import torch

from hesitant.nn import CovarianceError
from hesitant.nn.posterior_factor import PosteriorFactor


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features_of(num_data, num_features, seed=0, decay=1.0):
    """Rows whose directions matter less and less: smooth kernels give such spectra."""
    spread = decay ** torch.arange(num_features, dtype=torch.float64)
    return torch.randn(num_data, num_features, generator=seeded(seed), dtype=torch.float64) * spread


def exact_covariance(data_precision, ridge, prior):
    # No inverse of an ill-conditioned matrix in the oracle either: float64 eigenvalues, clamped.
    values, vectors = torch.linalg.eigh(data_precision)
    return vectors @ torch.diag(ridge / (values.clamp(min=0) + prior)) @ vectors.T


CASES = {  # M, rows, decay, ridge, prior, dtype, kind
    "few": (40, 100, 1.0, 1.0, 1.0, torch.float64, "cholesky"),
    "well_conditioned": (300, 1000, 1.0, 1.0, 1.0, torch.float64, "cholesky"),
    "well_conditioned_float32": (1030, 2000, 1.0, 1.0, 1.0, torch.float32, "cholesky"),
    "decayed_prior": (300, 1000, 1.0, 1.0, 0.3, torch.float64, "cholesky"),
    "small_ridge": (300, 100, 0.9, 1e-6, 1e-6, torch.float64, "eigenvectors"),
    "small_ridge_float32": (300, 100, 0.9, 1e-3, 1e-3, torch.float32, "cholesky"),
    "tiny_ridge_float32": (300, 100, 0.9, 1e-8, 1e-8, torch.float32, "eigenvectors"),
    "low_rank": (300, 100, 0.9, 1.0, 1.0, torch.float64, "low_rank"),
    "low_rank_decayed_prior": (300, 100, 0.9, 1.0, 0.3, torch.float64, "low_rank"),
    "low_rank_float32": (300, 100, 0.9, 1.0, 1.0, torch.float32, "low_rank"),
}
TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-9}


@pytest.fixture(params=CASES)
def case(request):
    num_features, rows, decay, ridge, prior, dtype, kind = CASES[request.param]
    phi = features_of(rows, num_features, decay=decay)
    data_precision = phi.T @ phi
    factor = PosteriorFactor.of(data_precision, ridge, prior, dtype)
    assert (factor.gains is not None, factor.triangular) == (kind == "low_rank", kind == "cholesky")
    return factor, phi, exact_covariance(data_precision, ridge, prior), dtype


def test_variance_agrees_relative_to_itself_on_the_data_and_off_it(case):
    factor, phi, exact, dtype = case
    for x in (phi, features_of(50, phi.shape[1], seed=5)):
        expected = torch.einsum("bm,mn,bn->b", x, exact, x)
        variance = factor.variance(x.to(dtype)).double()
        assert ((variance - expected).abs() / expected).max() < TOLERANCE[dtype]


def test_covariance_has_the_variance_on_its_diagonal(case):
    factor, phi, exact, dtype = case
    covariance = factor.covariance(phi.to(dtype)).double()
    expected = phi @ exact @ phi.T
    root = expected.diagonal().sqrt()
    assert ((covariance - expected).abs() / (root * root.unsqueeze(1))).max() < 3 * TOLERANCE[dtype]


def test_weight_noise_is_a_root_of_the_covariance(case):
    factor, phi, exact, dtype = case
    size = phi.shape[1]
    root = factor.weight_noise(torch.eye(size, dtype=dtype)).double()  # noise of unit vectors answers the root itself
    assert (root @ root.T - exact).abs().max() < 3 * TOLERANCE[dtype] * exact.abs().max()


def test_no_data_gives_the_prior():
    for size in (10, 400):
        factor = PosteriorFactor.of(torch.zeros(size, size, dtype=torch.float64), 0.3, 0.3, torch.float64)
        x = features_of(5, size)
        torch.testing.assert_close(factor.variance(x), x.square().sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ridge", [1e-12, 1e-300, 1e-6, 1e6])
def test_never_negative_nor_nan(ridge, dtype):
    phi = features_of(4, 300).repeat(50, 1)  # duplicated inputs: rank 4
    factor = PosteriorFactor.of(phi.T @ phi, ridge, ridge, dtype)
    for x in (phi, features_of(20, 300, seed=2), torch.zeros(2, 300)):
        variance = factor.variance(x.to(dtype))
        assert torch.isfinite(variance).all()
        assert (variance >= 0).all()


def test_a_near_singular_precision_is_solved():
    phi = features_of(4, 300).repeat(50, 1)
    factor = PosteriorFactor.of(phi.T @ phi, 1e-12, 1e-12, torch.float64)
    fresh = features_of(20, 300, seed=2)
    span = torch.linalg.svd(phi[:4], full_matrices=False).Vh
    expected = (fresh - fresh @ span.T @ span).square().sum(1)  # the prior's, in the directions never seen
    torch.testing.assert_close(factor.variance(fresh), expected, rtol=1e-3, atol=0)
    assert factor.variance(phi).max() < 1e-9


def test_more_taken_out_than_added_is_refused_though_the_precision_is_positive():
    data_precision = torch.eye(300, dtype=torch.float64)
    data_precision[7, 7] = -1e-3
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(CovarianceError, match=r"negative eigenvalue, -0\.001"):
            PosteriorFactor.of(data_precision, 2.0, 2.0, dtype)


@pytest.mark.parametrize("case", CASES)
def test_no_unit_vector_has_less_than_the_least_variance(case):
    num_features, rows, decay, ridge, prior, dtype, _ = CASES[case]
    phi = features_of(rows, num_features, decay=decay)
    factor = PosteriorFactor.of(phi.T @ phi, ridge, prior, dtype)
    least = torch.linalg.eigvalsh(exact_covariance(phi.T @ phi, ridge, prior))[0]
    assert float(factor.least_variance) <= float(least) * (1 + 1e-6)


def test_a_negative_eigenvalue_is_refused():
    with pytest.raises(CovarianceError, match=r"negative eigenvalue, -1.*Call reset_covariance\(\)"):
        PosteriorFactor.of(-torch.eye(3, dtype=torch.float64), 2.0, 2.0, torch.float64)
