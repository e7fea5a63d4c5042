import itertools
import math

import pytest
import torch

from hesitant.nn.random_features import draw_projection, median_kernel_scale


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def kernel_error(kind, seed, num_features=64, in_features=16):
    """Mean squared error of the kernel that cos and sin features of W estimate, for pairs at many distances."""
    x = torch.randn(60, in_features, generator=seeded(100)) / 3
    y = torch.randn(60, in_features, generator=seeded(101)) / 3
    projected = (x - y) @ draw_projection(kind, num_features, in_features, 1.0, seeded(seed)).T
    exact = torch.exp(-(x - y).square().sum(1) / 2)
    return float((projected.cos().mean(1) - exact).square().mean())


@pytest.mark.parametrize("num_features", [5, 16, 40])
def test_orthogonal_blocks_are_exactly_orthogonal_and_differ(num_features):
    weight = draw_projection("orthogonal", num_features, 16, 1.0, seeded()).double()
    assert weight.shape == (num_features, 16)
    blocks = weight.split(16)
    for block in blocks:
        unit = block / block.norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit @ unit.T, torch.eye(len(block), dtype=torch.float64), atol=1e-6, rtol=0)
    for first, second in itertools.pairwise(blocks):
        unit = [block / block.norm(dim=1, keepdim=True) for block in (first, second)]
        # edward2 repeats one block: then some row of the second would be a row of the first.
        assert (unit[0] @ unit[1].T).abs().max() < 0.95


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_rows_are_distributed_as_gaussian_vectors(kind):
    weight = draw_projection(kind, 6000, 4, 0.5, seeded())
    torch.testing.assert_close(weight.mean(0), torch.zeros(4), atol=0.03, rtol=0)
    torch.testing.assert_close(weight.T.cov(), 0.25 * torch.eye(4), atol=0.02, rtol=0)
    lengths = weight.norm(dim=1) / 0.5
    assert abs(float(lengths.square().var()) - 2 * 4) < 0.8  # chi-squared of 4 degrees of freedom


def test_orthogonal_features_estimate_the_kernel_with_less_error():
    gaussian = sum(kernel_error("gaussian", seed) for seed in range(20))
    orthogonal = sum(kernel_error("orthogonal", seed) for seed in range(20))
    assert orthogonal < 0.8 * gaussian


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("shape", [(16, 32), (32, 32), (70, 32)])
def test_the_projection_lies_in_memory_as_safetensors_wants_it(kind, shape):
    assert draw_projection(kind, *shape, 1.0, seeded()).is_contiguous()


def test_the_generator_alone_decides():
    before = torch.get_rng_state()
    for kind in ("gaussian", "orthogonal"):
        assert torch.equal(*(draw_projection(kind, 9, 4, 1.0, seeded(3)) for _ in range(2)))
        assert not torch.equal(*(draw_projection(kind, 9, 4, 1.0, seeded(seed)) for seed in (3, 4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"random_features='sobol' is not known: expected 'gaussian' or 'orthogonal'"):
        draw_projection("sobol", 4, 4, 1.0, None)


def test_median_pair_has_the_kernel_exp_of_minus_a_half():
    x = torch.randn(41, 200, generator=seeded())
    scale = median_kernel_scale(x)
    kernel = torch.exp(-torch.pdist(x.double()).square() / (2 * scale))
    assert abs(float(kernel.median()) - math.exp(-0.5)) < 1e-3


def test_median_scales_with_the_square_and_knows_no_order():
    x = torch.randn(40, 3, generator=seeded())
    torch.testing.assert_close(median_kernel_scale(3 * x), 9 * median_kernel_scale(x), rtol=1e-6, atol=0)
    torch.testing.assert_close(median_kernel_scale(x[torch.randperm(40, generator=seeded())]), median_kernel_scale(x))
    assert median_kernel_scale(torch.randn(5000, 3, generator=seeded())) > 0


@pytest.mark.parametrize("x", [torch.ones(7, 3), torch.ones(1, 3), torch.zeros(0, 3), torch.full((4, 3), math.nan)])
def test_no_distance_has_no_median(x):
    assert median_kernel_scale(x) is None
