"""Two moons: the two-dimensional data of the SNGP tutorial, with its out-of-domain points and its grid."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Class 0 and class 1 are drawn apart by these, so that there is a gap for the boundary to lie in.
CLASS_SHIFTS = ((-0.1, 0.2), (0.1, -0.2))
OOD_MEAN = (2.5, -1.75)
OOD_STD = 0.1
# The grid's extent, as matplotlib takes it: left, right, bottom, top.
GRID_EXTENT = (-3.5, 3.5, -2.5, 2.5)


class TwoMoons(NamedTuple):
    """Points and their classes, in shuffled order; `TensorDataset(*two_moons(...))` trains on them.

    Attributes:
        inputs: points `(N, 2)`, float32.
        targets: classes `(N,)`, 0 or 1, int64.
    """

    inputs: Tensor
    targets: Tensor


def two_moons(num_points: int = 1000, *, noise: float = 0.1, generator: torch.Generator) -> TwoMoons:
    """Answers with points on two interleaved half circles, half of them (rounded down) in class 0.

    Class 0 lies on `(cos t, sin t) + (-0.1, 0.2)`, class 1 on `(1 - cos t, 1/2 - sin t) + (0.1, -0.2)`, with t evenly
    spaced over [0, pi], plus normal noise. Source: scikit-learn's `make_moons`, and the shifts of the TensorFlow
    tutorial "Uncertainty-aware Deep Learning with SNGP".

    Args:
        num_points: N, two or more.
        noise: standard deviation of the normal noise on each coordinate, 0 or more.
        generator: source of the noise and of the order; the answer lies on its device.

    Raises:
        ValueError: if `num_points` is below 2, or `noise` is negative or not finite.
    """
    if num_points < 2:
        raise ValueError(f"num_points={num_points} leaves a class empty: ask for 2 or more.")
    if not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"noise={noise} is not a standard deviation: give a finite number, 0 or more.")
    device = generator.device
    num_outer = num_points // 2
    outer = torch.linspace(0, math.pi, num_outer, device=device)
    inner = torch.linspace(0, math.pi, num_points - num_outer, device=device)
    inputs = torch.cat(
        [
            torch.stack([outer.cos(), outer.sin()], dim=1) + torch.tensor(CLASS_SHIFTS[0], device=device),
            torch.stack([1 - inner.cos(), 0.5 - inner.sin()], dim=1) + torch.tensor(CLASS_SHIFTS[1], device=device),
        ]
    )  # (N, 2)
    inputs += noise * torch.randn(inputs.shape, generator=generator, device=device)
    targets = (torch.arange(num_points, device=device) >= num_outer).long()
    order = torch.randperm(num_points, generator=generator, device=device)
    return TwoMoons(inputs[order], targets[order])


def two_moons_ood(num_points: int = 500, *, generator: torch.Generator) -> Tensor:
    """Answers with out-of-domain points `(N, 2)`, float32: a small cloud N((2.5, -1.75), 0.01 I) away from both moons.

    Args:
        num_points: N, one or more.
        generator: source of the points; the answer lies on its device.

    Raises:
        ValueError: if `num_points` is below 1.
    """
    if num_points < 1:
        raise ValueError(f"num_points={num_points} asks for no point: ask for 1 or more.")
    device = generator.device
    return torch.tensor(OOD_MEAN, device=device) + OOD_STD * torch.randn(
        num_points, 2, generator=generator, device=device
    )


def two_moons_grid(resolution: int = 100) -> Tensor:
    """Answers with the points `(resolution**2, 2)`, float32, of a regular grid over [-3.5, 3.5] x [-2.5, 2.5].

    Rows of constant second coordinate follow one another from the bottom up, so that values on the grid are a picture
    as `values.reshape(resolution, resolution)` with its origin at the lower left.

    Args:
        resolution: points along each side, two or more.

    Raises:
        ValueError: if `resolution` is below 2.
    """
    if resolution < 2:
        raise ValueError(f"resolution={resolution} does not span the grid: ask for 2 or more points a side.")
    left, right, bottom, top = GRID_EXTENT
    x, y = torch.meshgrid(
        torch.linspace(left, right, resolution), torch.linspace(bottom, top, resolution), indexing="xy"
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)
