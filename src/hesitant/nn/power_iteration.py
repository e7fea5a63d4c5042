"""Power iteration on stacks of linear operators: all layers of one shape advance together."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_INPUT = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}

_FEW_PLACES = 8
_LANCZOS_STEPS = 20  # after a power iteration: norms to within 1 %

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class StackedOperator(Protocol):
    """L linear operators of one shape, whose weights ``(L, ...)`` are given with each call."""

    def output_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Answers the shape of one operator's output."""

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """Answers A v of each operator, ``(L, *output_shape)``."""

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """Answers A^T u of each operator, ``(L, *input_shape)``."""


@dataclass(frozen=True)
class MatrixOperator:
    """Matrices ``(L, out, ...)``; whatever follows the first axis is flattened into one."""

    def output_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Answers ``(out,)``."""
        return (weight.shape[1],)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """Answers W v, ``(L, out)``."""
        # A row times a matrix: batched products with a single column take ten times as long on a CPU.
        return torch.bmm(v.unsqueeze(1), weight.flatten(2).mT).squeeze(1)

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """Answers W^T u, ``(L, in)``."""
        return torch.bmm(u.unsqueeze(1), weight.flatten(2)).squeeze(1)


@dataclass(frozen=True)
class ConvOperator:
    """Convolutions of images of one size, weights ``(L, Cout, Cin / groups, *kernel)``: one grouped convolution."""

    in_channels: int
    input_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: tuple[int, ...]  # before and after each axis, the last axis first, as F.pad takes it
    padding_mode: PaddingMode = "zeros"

    def output_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Answers ``(Cout, *output_size)``."""
        kernel = weight.shape[3:]
        axes = range(len(kernel))
        sizes = (
            (self._padded(axis) - self.dilation[axis] * (kernel[axis] - 1) - 1) // self.stride[axis] + 1
            for axis in axes
        )
        return (weight.shape[1], *sizes)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """Answers the convolution of v ``(L, Cin, *input_size)``, ``(L, Cout, *output_size)``."""
        length = len(weight)
        padded = self._pad(v.flatten(0, 1).unsqueeze(0))
        if self._has_few_places(weight):
            columns = F.unfold(padded, weight.shape[3:], self.dilation, 0, self.stride)  # (1, Cin * kernel, places)
            return (columns[0].T @ weight[0].flatten(1).T).T.reshape(1, *self.output_shape(weight))
        out = _CONV[len(self.input_size)](
            padded, weight.flatten(0, 1), None, self.stride, 0, self.dilation, self.groups * length
        )
        return out.view(length, -1, *out.shape[2:])

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """Answers the transposed convolution of u ``(L, Cout, *output_size)``, ``(L, Cin, *input_size)``."""
        length = len(weight)
        channels = length * self.in_channels
        size = [1, channels, *(self._padded(axis) for axis in range(len(self.input_size)))]
        if self._has_few_places(weight):
            columns = (u[0].flatten(1).T @ weight[0].flatten(1)).T.unsqueeze(0)  # (1, Cin * kernel, places)
            padded = F.fold(columns, tuple(size[2:]), weight.shape[3:], self.dilation, 0, self.stride)
        else:
            padded = _CONV_INPUT[len(self.input_size)](
                size,
                weight.flatten(0, 1),
                u.flatten(0, 1).unsqueeze(0),
                self.stride,
                0,
                self.dilation,
                self.groups * length,
            )
        if self.padding_mode == "zeros":
            unpadded = F.pad(padded, [-p for p in self.padding])
        else:
            zeros = padded.new_zeros(1, channels, *self.input_size)
            unpadded = torch.func.vjp(self._pad, zeros)[1](padded)[0]
        return unpadded.view(length, self.in_channels, *self.input_size)

    def _has_few_places(self, weight: Tensor) -> bool:
        """Answers whether one image convolution answers so few pixels that it takes a fifth of the time as a matrix."""
        one = len(weight) == 1 == self.groups and len(self.input_size) == 2
        return one and math.prod(self.output_shape(weight)[1:]) <= _FEW_PLACES

    def _padded(self, axis: int) -> int:
        last_first = 2 * (len(self.input_size) - 1 - axis)
        return self.input_size[axis] + self.padding[last_first] + self.padding[last_first + 1]

    def _pad(self, x: Tensor) -> Tensor:
        if not any(self.padding):
            return x
        return F.pad(x, list(self.padding), "constant" if self.padding_mode == "zeros" else self.padding_mode)


def same_padding(size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Answers TensorFlow's SAME padding, the last axis first; the odd pixel is at the end."""
    padding: list[int] = []
    for n, k, s in zip(reversed(size), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        padding += [total // 2, total - total // 2]
    return tuple(padding)


def normalize(x: Tensor) -> Tensor:
    """Answers each row of x ``(L, ...)`` at unit norm; zero stays zero."""
    return _normalized(x)[0]


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Answers x ``(L, ...)`` at unit norm, and the norms ``(L,)``."""
    norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return x / norm.clamp(min=1e-6), norm.flatten()


def power_iteration(
    operator: StackedOperator, weight: Tensor, u: Tensor, num_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Advances the singular vectors and answers ``(sigma (L,), u, v)``: an estimate of each norm, from below.

    ``v <- A^T u / |A^T u|``, ``u <- A v / |A v|``, ``sigma = <u, A v>``. Source: Miyato et al., "Spectral
    Normalization for Generative Adversarial Networks", ICLR 2018, algorithm 1; for convolutions Gouk et al.,
    "Regularisation of Neural Networks by Enforcing Lipschitz Continuity", 2021, section 3.2.
    """
    for _ in range(num_iterations):
        v = normalize(operator.adjoint(weight, u))
        u, sigma = _normalized(operator.apply(weight, v))
    return sigma, u, v


def recovering_iteration(
    operator: StackedOperator, weight: Tensor, u: Tensor, num_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers what :func:`power_iteration` does, but keeps u where the weights are zero, as some layers begin with.

    It would be zero there, from where it never comes back.
    """
    sigma, after, v = power_iteration(operator, weight, u, num_iterations)
    return sigma, torch.where((sigma > 1e-6).view(-1, *[1] * (u.ndim - 1)), after, u), v


def converged_norm(
    operator: StackedOperator, weight: Tensor, u: Tensor, num_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers what :func:`recovering_iteration` does, the norms to within 1 %, from below."""
    # A direction that has outgrown the one that u has converged to may be all but absent from u.
    noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(0))
    start = normalize(u + normalize(noise.to(u)))
    sigma, u, v = recovering_iteration(operator, weight, start, num_iterations)
    # Where many norms lie close together the power iteration crawls; one layer at a time, to spare memory.
    exact = [
        largest_singular_value(operator, weight[i : i + 1], u[i : i + 1], _LANCZOS_STEPS) for i in range(len(weight))
    ]
    return torch.maximum(sigma, torch.cat(exact)), u, v


def first_vector(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Answers the unit vector from which the power iteration of a layer begins: always the same one."""
    digest = hashlib.blake2b(f"{seed} {name} {shape}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return normalize(torch.randn(1, *shape, generator=generator))[0]


def largest_singular_value(operator: StackedOperator, weight: Tensor, u: Tensor, num_steps: int = 60) -> Tensor:
    """Answers the norm of each operator ``(L,)`` to rounding, also where the power iteration crawls.

    Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation, from u ``(L, *output_shape)``; it keeps
    ``2 num_steps`` vectors. Source: Golub and Kahan, 1965; Golub and Van Loan, "Matrix Computations", section 10.4.
    """
    length = len(weight)
    lefts, rights = [normalize(u)], [torch.zeros_like(operator.adjoint(weight, u))]
    rows, columns = lefts[0].shape[1:].numel(), rights[0].shape[1:].numel()
    steps = min(num_steps, rows, columns)
    bidiagonal = weight.new_zeros(length, steps + 1, steps)
    for step in range(steps):
        right, bidiagonal[:, step, step] = _direction(operator.adjoint(weight, lefts[-1]), rights, bidiagonal)
        rights.append(right)
        left, bidiagonal[:, step + 1, step] = _direction(operator.apply(weight, right), lefts, bidiagonal)
        lefts.append(left)
    return torch.linalg.matrix_norm(bidiagonal, ord=2)


def _direction(x: Tensor, basis: list[Tensor], bidiagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Answers what of x ``(L, ...)`` is orthogonal to the basis, at unit norm, and its norm ``(L,)``.

    Both are zero where only rounding is left: the Krylov space ends there, and noise does not belong to it.
    """
    vectors = torch.stack(basis, dim=1).flatten(2)  # (L, k, n)
    flat = x.flatten(1).unsqueeze(2)
    for _ in range(2):
        flat = flat - vectors.mT @ (vectors @ flat)
    norm = flat.flatten(1).norm(dim=1)
    scale = torch.maximum(bidiagonal.flatten(1).amax(1), x.flatten(1).norm(dim=1))
    norm = torch.where(norm > 1e4 * torch.finfo(x.dtype).eps * scale, norm, torch.zeros_like(norm))
    unit = flat.squeeze(2) / torch.where(norm > 0, norm, torch.full_like(norm, torch.inf)).unsqueeze(1)
    return unit.view_as(x), norm
