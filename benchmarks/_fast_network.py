"""A small network that learns CIFAR-10 in minutes on a CPU, and the augmentation of training images.

In the manner of airbench (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498): a fixed
first layer that whitens patches of the training images, six narrow convolutions with BatchNorm and GELU, the largest
activation of each channel, SGD with Nesterov's momentum along a triangular schedule, few epochs. What differs, for the
sake of a CPU: the first layer steps by two pixels, so that all others work on 15 x 15 and less.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

KERNEL, STRIDE = 4, 2
NUM_KEPT = 32  # of the 48 directions of a patch, the strongest, each with its opposite
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images


class Augmented(nn.Module):
    """Normalises images `(B, 3, 32, 32)` of uint8 and asks a network; flips and shifts them first while training.

    A part of the model, so that every loop over plain tensors trains with it, drawn anew at each step.

    Args:
        network: what takes the normalised images.
        shift: the pixels by which an image is moved at most, in each direction, its border mirrored.
        augmix: whether images are mixed with changed ones first, one view and no consistency loss (Hendrycks et al.
            2020, arXiv:1912.02781), the changes drawn anew for every eight images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, shift: int = 2, augmix: bool = False) -> None:
        super().__init__()
        self.network, self.shift, self.augmix = network, shift, augmix
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Answers the network's logits."""
        training = self.training and torch.is_grad_enabled()
        if training and self.augmix:
            images = _mixed(images)
        normalised = (images.float() / 255 - self.mean) / self.std
        if training:
            normalised = self._changed(normalised)
        return self.network(normalised.contiguous(memory_format=torch.channels_last))

    def _changed(self, images: Tensor) -> Tensor:
        count, side, device = len(images), images.shape[-1], images.device
        images = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, images.flip(-1), images)
        padded = nn.functional.pad(images, [self.shift] * 4, mode="reflect")
        top, left = torch.randint(2 * self.shift + 1, (2, count, 1), device=device)
        offsets = torch.arange(side, device=device)
        rows, columns = top + offsets, left + offsets  # (B, side)
        batch = torch.arange(count, device=device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # (B, side, side, 3)
        return moved.permute(0, 3, 1, 2)


def _mixed(images: Tensor) -> Tensor:
    from torchvision.transforms.v2 import AugMix

    augmix = AugMix()
    return torch.cat([augmix(some) for some in images.split(8)])


class FastNetwork(nn.Module):
    """Six convolutions behind the whitening layer, dropout .1 and a Linear.

    Args:
        num_classes: C.
        widths: channels of the blocks, each of two convolutions and a halving.
        whitening: the first layer's filters, of `whitening`; None draws them, to be loaded afterwards.
    """

    def __init__(self, num_classes: int, widths: tuple[int, ...], whitening: Tensor | None) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 2 * NUM_KEPT, KERNEL, STRIDE, bias=False)
        self.whiten.weight.requires_grad = False
        if whitening is not None:
            self.whiten.weight.copy_(whitening)
        layers: list[nn.Module] = [nn.GELU()]
        channels = 2 * NUM_KEPT
        for width in widths:
            layers += [_convolution(channels, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
            layers += [_convolution(width, width), nn.BatchNorm2d(width), nn.GELU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(channels, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Answers logits `(B, C)` of normalised images."""
        return self.classifier(self.dropout(self.body(self.whiten(images)).amax((2, 3))))


def _convolution(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)


def whitening(images: Tensor, *, num_images: int = 5000, floor: float = 1e-2) -> Tensor:
    """Answers filters `(64, 3, 4, 4)` that make patches of the first images uncorrelated, of variance about 1.

    The second 32 are the opposites of the first, for what GELU takes off.
    """
    normalised = (images[:num_images].float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    patches = normalised.unfold(2, KERNEL, STRIDE).unfold(3, KERNEL, STRIDE)  # (N, 3, 15, 15, 4, 4)
    rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    filters = (vectors / (values + floor).sqrt()).T.flip(0)[:NUM_KEPT].reshape(-1, 3, KERNEL, KERNEL).float()
    return torch.cat([filters, -filters])


def triangular(optimizer: Optimizer, steps: int, peak: float = 0.2) -> LambdaLR:
    """Answers a schedule that rises to the full rate within a share of the steps, then falls to 0, step by step."""

    def share(step: int) -> float:
        done = (step + 1) / (steps + 1)
        return min(done / peak, (1 - done) / (1 - peak))

    return LambdaLR(optimizer, share)
