"""The networks of the literature: DeepResNet (two moons), MLP (MNIST), WideResNet (CIFAR)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "DeepResNet", "ResidualBlock", "WideBlock", "WideResNet"]


class DeepResNet(nn.Module):
    """Answers with the class logits of a residual network on feature vectors: the network of the SNGP tutorial.

    `h_0 = W_0 x` with `W_0` frozen, `h_k = h_{k-1} + dropout(relu(W_k h_{k-1} + b_k))`, `logits = classifier(h_depth)`.
    With its defaults it has 99,714 parameters, of which 99,330 are trained. Weights start as in Keras: Glorot uniform,
    biases at zero.

    Source: the TensorFlow tutorial "Uncertainty-aware Deep Learning with SNGP"; Liu et al. 2020, arXiv:2006.10108.

    Args:
        in_features: D, the size of an input.
        num_classes: C, the number of logits.
        width: size of the hidden vectors.
        depth: number of residual blocks.
        dropout: probability, in [0, 1), that a residual unit is dropped.
        generator: source of the initial weights; None draws from PyTorch's global generator, like every torch module.

    Raises:
        ValueError: if a size is not a positive integer, or `dropout` lies outside [0, 1).
    """

    def __init__(
        self,
        in_features: int = 2,
        num_classes: int = 2,
        *,
        width: int = 128,
        depth: int = 6,
        dropout: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _require_size(in_features=in_features, num_classes=num_classes, width=width, depth=depth)
        self.input_layer = _glorot_linear(in_features, width, generator).requires_grad_(False)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout=dropout, generator=generator) for _ in range(depth)))
        self.classifier = _glorot_linear(width, num_classes, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Answers with logits `(B, C)` for inputs `(B, D)`."""
        logits: Tensor = self.classifier(self.blocks(self.input_layer(x)))
        return logits


class ResidualBlock(nn.Module):
    """Answers with `h + dropout(relu(W h + b))`: one block of DeepResNet.

    Args:
        width: size of the vectors that come in and go out.
        dropout: probability, in [0, 1), that a unit of the branch is dropped.
        generator: source of the initial weights.

    Raises:
        ValueError: if `width` is not a positive integer, or `dropout` lies outside [0, 1).
    """

    def __init__(self, width: int, *, dropout: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__()
        _require_size(width=width)
        self.linear = _glorot_linear(width, width, generator)
        self.dropout = _dropout("dropout", dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Answers with hidden vectors `(B, width)` for hidden vectors `(B, width)`."""
        branch: Tensor = self.dropout(F.relu(self.linear(hidden)))
        return hidden + branch


class MLP(nn.Module):
    """Answers with the class logits of a fully connected ReLU network, with dropout before its weight layers.

    The two classic Monte Carlo dropout networks for MNIST are `MLP(784, 10, hidden=(500, 250), dropout=0.2,
    dropout_input=0.2)` (Keras; it adds a softmax, here the logits come out) and `MLP(784, 10)` (PyTorch). In both
    recipes dropout is always on; here it is on in training, and `MCDropout` turns it on to predict. Weights start
    Glorot uniform, biases at zero.

    Args:
        in_features: D, the size of an input once flattened.
        num_classes: C, the number of logits.
        hidden: sizes of the hidden layers; an empty one makes a linear classifier.
        dropout: probability, in [0, 1), that a hidden unit is dropped.
        dropout_input: probability, in [0, 1), that an input is dropped.
        generator: source of the initial weights; None draws from PyTorch's global generator, like every torch module.

    Raises:
        ValueError: if a size is not a positive integer, or a probability lies outside [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (512, 256),
        dropout: float = 0.5,
        dropout_input: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _require_size(in_features=in_features, num_classes=num_classes)
        self.in_features = in_features
        layers: list[nn.Module] = [_dropout("dropout_input", dropout_input)]
        width = in_features
        for index, size in enumerate(hidden):
            _require_size(**{f"hidden[{index}]": size})
            layers += [_glorot_linear(width, size, generator), nn.ReLU(), _dropout("dropout", dropout)]
            width = size
        self.layers = nn.Sequential(*layers)
        self.classifier = _glorot_linear(width, num_classes, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Answers with logits `(B, C)` for inputs `(B, D)`, or of any shape `(B, ...)` that flattens to it.

        Raises:
            ValueError: if an input does not have `in_features` numbers.
        """
        flat = x.flatten(1)  # (B, D)
        if flat.shape[1] != self.in_features:
            raise ValueError(
                f"x of shape {tuple(x.shape)} has {flat.shape[1]} numbers an input, but this MLP was made with "
                f"in_features={self.in_features}: pass inputs of that size, or make the MLP with the other one."
            )
        logits: Tensor = self.classifier(self.layers(flat))
        return logits


class WideResNet(nn.Module):
    """Answers with the class logits of a wide residual network for small images, 32 x 32 as a rule.

    Pre-activation blocks, `(depth - 4) / 6` in each of three groups of `16, 32, 64` times `widen` channels, dropout
    between a block's two convolutions; WRN-28-10 with ten classes has 36,479,194 parameters. Convolutions start He
    normal (fan out), the classifier Glorot uniform with a bias of zero.

    Source: Zagoruyko and Komodakis 2016, "Wide Residual Networks", arXiv:1605.07146.

    Args:
        depth: number of layers as the paper counts them: 6 n + 4, 10 at the least.
        widen: factor on the channels of the three groups.
        num_classes: C, the number of logits.
        dropout: probability, in [0, 1), that a channel's value is dropped between a block's convolutions.
        in_channels: channels of an image.
        generator: source of the initial weights; None draws from PyTorch's global generator, like every torch module.

    Raises:
        ValueError: if `depth` is not 6 n + 4, a size is not a positive integer, or `dropout` lies outside [0, 1).
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        num_classes: int = 10,
        dropout: float = 0.0,
        *,
        in_channels: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _require_size(widen=widen, num_classes=num_classes, in_channels=in_channels)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(
                f"depth={depth} is not 6 n + 4 with n >= 1: choose 10, 16, 22, 28, 40 or another such number."
            )
        blocks_per_group = (depth - 4) // 6
        self.stem = _he_conv(in_channels, 16, kernel_size=3, generator=generator)
        blocks: list[nn.Module] = []
        channels = 16
        for group, stride in enumerate((1, 2, 2)):
            width = 16 * 2**group * widen
            for index in range(blocks_per_group):
                block_stride = stride if index == 0 else 1
                blocks.append(WideBlock(channels, width, stride=block_stride, dropout=dropout, generator=generator))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = _glorot_linear(channels, num_classes, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Answers with logits `(B, C)` for images `(B, in_channels, H, W)`."""
        hidden = F.relu(self.norm(self.blocks(self.stem(x))))  # (B, 64 widen, H / 4, W / 4)
        logits: Tensor = self.classifier(hidden.mean(dim=(2, 3)))
        return logits


class WideBlock(nn.Module):
    """Answers with `shortcut + conv(dropout(relu(norm(conv(relu(norm(h)))))))`: one block of WideResNet.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the activated input; elsewhere it is the input.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the first convolution.
        dropout: probability, in [0, 1), of the dropout between the convolutions.
        generator: source of the initial weights.

    Raises:
        ValueError: if a size is not a positive integer, or `dropout` lies outside [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _require_size(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _he_conv(in_channels, out_channels, kernel_size=3, stride=stride, generator=generator)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = _dropout("dropout", dropout)
        self.conv2 = _he_conv(out_channels, out_channels, kernel_size=3, generator=generator)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _he_conv(in_channels, out_channels, kernel_size=1, stride=stride, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """Answers with `(B, out_channels, H / stride, W / stride)` for `(B, in_channels, H, W)`."""
        activated = F.relu(self.norm1(hidden))
        skipped: Tensor = hidden if self.shortcut is None else self.shortcut(activated)
        branch: Tensor = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(activated)))))
        return skipped + branch


def _glorot_linear(in_features: int, out_features: int, generator: torch.Generator | None) -> nn.Linear:
    # Made on no device first: nn.Linear's own initialisation would draw from the global generator, to be overwritten.
    linear = nn.Linear(in_features, out_features, device="meta").to_empty(device=_device(generator))
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def _he_conv(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, generator: torch.Generator | None
) -> nn.Conv2d:
    # Half the kernel keeps the size at stride 1. Biases would be undone by the BatchNorm that follows.
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False, device="meta"
    ).to_empty(device=_device(generator))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    return conv


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.get_default_device() if generator is None else generator.device


def _dropout(name: str, probability: float) -> nn.Module:
    if not 0 <= probability < 1:
        raise ValueError(f"{name}={probability} is not a probability in [0, 1): 0 turns dropout off.")
    # No module at all where nothing is dropped, so that MCDropout finds no dropout in a model that has none.
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def _require_size(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"{name}={size!r} is not a positive integer: give the size that the data or the layer has."
            )
