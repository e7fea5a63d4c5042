"""Fifteen corruptions of CIFAR-10's images at five strengths, with torch and Pillow, drawn from a seed.

After Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(CIFAR-10-C), with its parameters; not its files, so that figures compare within one run and not with those published.
What differs: their blurs are OpenCV's and ImageMagick's, here convolutions; frost has no photographs of ice but a
plasma fractal, as their fog is; elastic transforms interpolate bilinearly.
"""

import io
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

SIDE = 32
STRENGTHS = (1, 2, 3, 4, 5)
Corruption = Callable[[Tensor, int, torch.Generator], Tensor]


def corrupted(images: Tensor, name: str, strength: int, seed: int = 0) -> Tensor:
    """Answers images `(N, 3, 32, 32)`, uint8, corrupted: one of `CORRUPTIONS`, of strength 1 to 5."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * list(CORRUPTIONS).index(name) + strength)
    changed = CORRUPTIONS[name](images.float() / 255, strength - 1, generator)
    return (changed.clamp(0, 1) * 255).to(torch.uint8)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _uniform(shape: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _gaussian_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    return images + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * _normal(images, generator)


def _shot_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    photons = (500, 250, 100, 75, 50)[level]
    return torch.poisson(images * photons, generator=generator) / photons


def _impulse_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    struck = torch.rand(images.shape, generator=generator) < share
    salt = (torch.rand(images.shape, generator=generator) < 0.5).float()
    return torch.where(struck, salt, images)


def _filtered(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolves images with one kernel `(k, k)`, or each with its own `(N, k, k)`; borders are mirrored."""
    count, margin = len(images), kernels.shape[-1] // 2
    padded = pad(images, [margin] * 4, mode="reflect")
    if kernels.ndim == 2:
        return conv2d(padded.flatten(0, 1).unsqueeze(1), kernels[None, None]).view_as(images)
    weight = kernels.repeat_interleave(3, 0).unsqueeze(1)  # (3 N, 1, k, k)
    return conv2d(padded.view(1, 3 * count, *padded.shape[2:]), weight, groups=3 * count).view_as(images)


def _gaussian(sigma: float, radius: int) -> Tensor:
    offsets = torch.arange(-radius, radius + 1).float()
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def _defocus_blur(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    radius, alias = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    offsets = torch.arange(-3, 4).float()
    disk = ((offsets[:, None] ** 2 + offsets[None, :] ** 2) <= radius**2).float()
    kernel = conv2d((disk / disk.sum())[None, None], _gaussian(alias, 1)[None, None], padding=1)[0, 0]
    return _filtered(images, kernel / kernel.sum())


def _glass_blur(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    sigma, reach, rounds = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[level]
    blur = _gaussian(sigma, 2)
    shuffled = _filtered(images, blur)
    batch = torch.arange(len(images))
    for _ in range(rounds):
        for row in range(SIDE - reach, reach, -1):
            for column in range(SIDE - reach, reach, -1):
                down, right = torch.randint(-reach, reach, (2, len(images)), generator=generator)  # as published
                there = shuffled[batch, :, row + down, column + right]
                shuffled[batch, :, row + down, column + right] = shuffled[:, :, row, column]
                shuffled[:, :, row, column] = there
    return _filtered(shuffled, blur)


def _lines(radius: int, sigma: float, angles: Tensor) -> Tensor:
    """Answers kernels `(N, k, k)` of a one-sided Gaussian along a line of its own angle each."""
    offsets = torch.arange(-radius, radius + 1).float()
    steps = torch.arange(2 * radius + 1).float() / 2
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    x, y = angles.cos()[:, None] * steps, angles.sin()[:, None] * steps  # (N, steps)
    near_x = (1 - (x[..., None] - offsets).abs()).clamp(min=0)  # (N, steps, k)
    near_y = (1 - (y[..., None] - offsets).abs()).clamp(min=0)
    kernels = torch.einsum("s,nsi,nsj->nij", weights, near_y, near_x)
    return kernels / kernels.sum((1, 2), keepdim=True)


def _motion_blur(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[level]
    angles = _uniform((len(images),), generator, -math.pi / 4, math.pi / 4)
    return _filtered(images, _lines(radius, sigma, angles))


def _zoomed(images: Tensor, factor: float) -> Tensor:
    theta = torch.tensor([[1 / factor, 0.0, 0.0], [0.0, 1 / factor, 0.0]]).expand(len(images), 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _zoom_blur(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    factors = [1 + step / 100 for step in range((6, 11, 16, 21, 26)[level])]
    return (images + sum(_zoomed(images, factor) for factor in factors)) / (len(factors) + 1)


def _plasma(count: int, decay: float, generator: torch.Generator) -> Tensor:
    """Answers fractals `(N, 1, 32, 32)` in [0, 1]: noise of each size, larger sizes the stronger by `decay`."""
    total = torch.zeros(count, 1, SIDE, SIDE)
    for octave in range(6):
        noise = _uniform((count, 1, 2**octave, 2**octave), generator, -1, 1)
        total += interpolate(noise, size=(SIDE, SIDE), mode="bilinear", align_corners=False) / decay**octave
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low)


def _fog(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    amount, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[level]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * _plasma(len(images), decay, generator)) * brightest / (brightest + amount)


def _frost(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    kept, ice = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    return kept * images + ice * _plasma(len(images), 1.5, generator)


def _snow(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    mean, std, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    )[level]
    flakes = _zoomed(mean + std * torch.randn(len(images), 1, SIDE, SIDE, generator=generator), zoom)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1).expand(-1, 3, -1, -1)
    angles = _uniform((len(images),), generator, -3 * math.pi / 4, -math.pi / 4)
    flakes = _filtered(flakes.contiguous(), _lines(radius, sigma, angles))
    grey = images.mean(1, keepdim=True)
    whiter = kept * images + (1 - kept) * torch.maximum(images, grey * 1.5 + 0.5)
    return whiter + flakes + flakes.flip(2, 3)


def _brightness(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    value = images.amax(1, keepdim=True)  # of HSV: hue and saturation stay
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter)


def _contrast(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + mean


def _elastic_transform(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    alpha, sigma, corners = (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[level]
    count = len(images)
    identity = torch.eye(2, 3).expand(count, 2, 3)
    # Three corners of a square of two thirds move by so many pixels: in grid units, 2 for the side, about as much.
    theta = identity + _uniform((count, 2, 3), generator, -corners, corners) * 2
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    if alpha > 0:
        moves = _uniform((count, 2, SIDE, SIDE), generator, -1, 1)
        radius = min(max(1, round(3 * sigma * SIDE)), SIDE - 1)
        offsets = torch.arange(-radius, radius + 1).float()
        line = torch.exp(-(offsets**2) / (2 * (sigma * SIDE) ** 2))
        line = line / line.sum()
        padded = pad(moves, [radius] * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
        smooth = conv2d(conv2d(padded, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1)).view_as(moves)
        grid = grid + alpha * 2 * smooth.permute(0, 2, 3, 1)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _pixelate(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    size = int(SIDE * (0.95, 0.9, 0.85, 0.75, 0.65)[level])
    smaller = interpolate(images, size=(size, size), mode="area")
    return interpolate(smaller, size=(SIDE, SIDE), mode="nearest")


def _jpeg_compression(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    import numpy as np
    from PIL import Image

    answer = []
    for pixels in (images * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=(80, 65, 58, 50, 40)[level])
        answer.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(answer).permute(0, 3, 1, 2).float() / 255


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
