"""The frozen projections of random Fourier features, and the kernel scale that the data asks for."""

import math
from typing import Literal

import torch
from torch import Tensor

RandomFeatureKind = Literal["gaussian", "orthogonal"]

_MEDIAN_INPUTS = 512  # pairs grow with the square; a median of 130,000 distances no longer moves


def draw_projection(
    kind: RandomFeatureKind, num_features: int, in_features: int, std: float, generator: torch.Generator | None
) -> Tensor:
    """Draws the frozen projection W, ``(M, D)``, whose rows are distributed as N(0, std^2 I).

    ``"orthogonal"`` makes the rows of each block of D exactly orthogonal, with the norms of Gaussian vectors: the same
    kernel, estimated with less variance (Yu et al., "Orthogonal Random Features", NeurIPS 2016, section 3).

    Raises:
        ValueError: The kind is unknown.
    """
    if kind == "gaussian":
        return std * torch.randn(num_features, in_features, generator=generator)
    if kind != "orthogonal":
        raise ValueError(f"random_features={kind!r} is not known: expected 'gaussian' or 'orthogonal'.")
    num_blocks = math.ceil(num_features / in_features)
    gaussian = torch.randn(num_blocks, in_features, in_features, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    # With the signs of R's diagonal taken out, Q is uniform over the orthogonal group (Mezzadri 2007).
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    norms = torch.randn(num_blocks, in_features, in_features, generator=generator, dtype=torch.float64).norm(dim=-1)
    rows = (q * norms.unsqueeze(-1)).flatten(0, 1)[:num_features]  # (M, D)
    return (std * rows).float().contiguous()  # safetensors writes no other


def median_kernel_scale(x: Tensor) -> Tensor | None:
    """Answers the kernel scale of the median heuristic, the median squared distance between inputs ``(..., D)``.

    At that scale the kernel exp(-|d|^2 / (2 scale)) is exp(-1/2) for the median pair, whatever the width of the
    features. None: there are no two different inputs. Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012,
    section 8.
    """
    x = x.detach().reshape(-1, x.shape[-1]).double()
    x = x[torch.isfinite(x).all(1)]
    x = x[:: max(1, len(x) // _MEDIAN_INPUTS)][:_MEDIAN_INPUTS]
    squared = torch.pdist(x).square()
    squared = squared[(squared > 0) & torch.isfinite(squared)]
    return squared.median() if squared.numel() else None
