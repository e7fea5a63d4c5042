import itertools

import pytest
import torch
import torch.nn.functional as F

from hesitant.nn.power_iteration import (
    ConvOperator,
    MatrixOperator,
    largest_singular_value,
    normalize,
    power_iteration,
    same_padding,
)

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def as_matrix(operator, weight, input_shape):
    """One operator written out: column by column, as F.pad and F.convNd have it."""
    columns = torch.eye(torch.Size(input_shape).numel(), dtype=torch.float64).view(-1, *input_shape)
    if any(operator.padding):
        mode = "constant" if operator.padding_mode == "zeros" else operator.padding_mode
        columns = F.pad(columns, list(operator.padding), mode)
    conv = CONV[len(operator.input_size)]
    return conv(columns, weight, None, operator.stride, 0, operator.dilation, operator.groups).flatten(1).T


def check(operator, weight):
    """The operator, its adjoint and its norm, for each of the stack, against the dense matrix of each."""
    input_shape = (operator.in_channels, *operator.input_size)
    matrices = torch.stack([as_matrix(operator, each, input_shape) for each in weight])
    shape = operator.output_shape(weight)
    v, u = randn(len(weight), *input_shape), randn(len(weight), *shape, seed=1)
    image = operator.apply(weight, v)
    assert image.shape[1:] == shape
    torch.testing.assert_close(image.flatten(1), torch.einsum("lij,lj->li", matrices, v.flatten(1)))
    back = operator.adjoint(weight, u)
    torch.testing.assert_close(back.flatten(1), torch.einsum("lij,li->lj", matrices, u.flatten(1)))
    norms = torch.linalg.matrix_norm(matrices, ord=2)
    torch.testing.assert_close(largest_singular_value(operator, weight, u), norms, rtol=1e-6, atol=0)
    sigma, _, _ = power_iteration(operator, weight, normalize(u), 300)
    assert (sigma <= norms * (1 + 1e-9)).all()
    torch.testing.assert_close(sigma, norms, rtol=2e-2, atol=0)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_conv2d_is_its_matrix(stride, dilation):
    weight = randn(2, 4, 2, 3, 2)  # L, Cout, Cin / groups, kernel
    for padding, size, groups in ((0, (6, 7), 1), (0, (8, 5), 2), (1, (8, 5), 1), (2, (6, 7), 2)):
        operator = ConvOperator(2 * groups, size, (stride,) * 2, (dilation,) * 2, groups, (padding,) * 4)
        check(operator, weight)
        check(operator, weight[:1])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_modes_are_their_matrix(mode, dims):
    size = (5, 4, 3)[:dims]
    weight = randn(2, 3, 2, *(3,) * dims)
    check(ConvOperator(2, size, (1,) * dims, (1,) * dims, 1, (1, 1) * dims, mode), weight)
    check(ConvOperator(2, size, (2,) * dims, (1,) * dims, 1, (2, 1) * dims, mode), weight)
    check(ConvOperator(2, size, (2,) * dims, (1,) * dims, 1, (2, 1) * dims, mode), weight[:1])


@pytest.mark.parametrize("dims", [1, 3])
def test_conv1d_and_conv3d_are_their_matrix(dims):
    size = (5, 6, 5)[:dims]
    weight = randn(2, 4, 1, *(2,) * dims)
    padding = (1, 0, 2, 1, 0, 1)[: 2 * dims]
    for stride, dilation in itertools.product((1, 2, 3), (1, 2)):
        check(ConvOperator(2, size, (stride,) * dims, (dilation,) * dims, 2, padding), weight)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 7, 5), (2, 4, 3, 2, 2), (2, 1, 6), (2, 6, 1)])
def test_matrices(shape):
    weight, operator = randn(*shape), MatrixOperator()
    norms = torch.linalg.matrix_norm(weight.flatten(2), ord=2)
    u = randn(*shape[:2], seed=1)
    assert operator.output_shape(weight) == (shape[1],)
    torch.testing.assert_close(largest_singular_value(operator, weight, u), norms, rtol=1e-9, atol=0)
    sigma, u, v = power_iteration(operator, weight, u, 500)
    torch.testing.assert_close(sigma, norms, rtol=1e-3, atol=0)
    torch.testing.assert_close(operator.adjoint(weight, u).flatten(1), sigma.unsqueeze(1) * v, atol=0.05, rtol=0.05)


def test_a_large_matrix_where_the_power_iteration_crawls():
    weight = randn(1, 300, 300)
    exact = torch.linalg.matrix_norm(weight, ord=2)
    operator = MatrixOperator()
    torch.testing.assert_close(largest_singular_value(operator, weight, randn(1, 300)), exact, rtol=1e-6, atol=0)


def test_stacked_equals_one_by_one():
    weight = randn(3, 4, 2, 3, 3)
    operator = ConvOperator(2, (6, 6), (2, 2), (1, 1), 1, (1, 1, 1, 1))
    u = randn(3, *operator.output_shape(weight))
    together = power_iteration(operator, weight, u, 3)
    for i in range(3):
        alone = power_iteration(operator, weight[i : i + 1], u[i : i + 1], 3)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


def test_zero_operators_have_norm_zero():
    conv = ConvOperator(2, (5, 5), (1, 1), (1, 1), 1, (1, 1, 1, 1))
    for operator, weight in ((MatrixOperator(), torch.zeros(2, 3, 4)), (conv, torch.zeros(2, 3, 2, 3, 3))):
        u = torch.randn(2, *operator.output_shape(weight), generator=seeded())
        sigma, u, v = power_iteration(operator, weight, u, 5)
        assert torch.equal(sigma, torch.zeros(2))
        assert torch.isfinite(u).all()
        assert torch.isfinite(v).all()
        assert torch.equal(largest_singular_value(operator, weight, u), torch.zeros(2))


def test_same_padding_gives_tensorflows_size():
    for kernel, stride, size in itertools.product((1, 2, 3, 5), (1, 2, 3), (5, 6)):
        before, after = same_padding((size,), (kernel,), (stride,))
        assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
        assert before <= after <= before + 1
        assert same_padding((size, 9), (kernel, 3), (stride, 1)) == (1, 1, before, after)
