"""The linear maps whose norms are bounded: a matrix, and a convolution as it is applied, each with its adjoint."""

from dataclasses import dataclass
from typing import Any

from keras import ops


class Matrix:
    """A kernel as the matrix of all its axes but the last by the last: ``v -> v W``."""

    # Power iterations from a cold start, which underestimates a norm by up to a half.
    warm_up = 100

    def __init__(self, kernel_shape: tuple[int, ...]) -> None:
        rows = 1
        for size in kernel_shape[:-1]:
            rows *= size
        self.input_shape, self.output_shape = (1, rows), (1, kernel_shape[-1])

    def forward(self, kernel: Any, v: Any) -> Any:
        """Answers ``v W``, ``(1, out)``."""
        return ops.matmul(v, ops.reshape(kernel, (-1, kernel.shape[-1])))

    def adjoint(self, kernel: Any, u: Any) -> Any:
        """Answers ``u W^T``, ``(1, in)``."""
        return ops.matmul(u, ops.transpose(ops.reshape(kernel, (-1, kernel.shape[-1]))))


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution at one input size, channels last, with kernels ``(kh, kw, in / groups, out)``.

    Its adjoint is written with a convolution as well: what the backends call a transposed convolution pads each in its
    own way.

    Attributes:
        size: Height and width of the input.
        channels: Of the input, and of the output.
        kernel_size: kh and kw.
        strides: Of both axes.
        dilation: Of both axes.
        same: Whether it pads so that each stride begins with an input, the odd one at the end; otherwise nothing.
        groups: How many convolutions beside each other it is.
    """

    size: tuple[int, int]
    channels: tuple[int, int]
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    same: bool
    groups: int
    warm_up: int = 30  # fewer than a matrix': an iteration costs two convolutions

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of v."""
        return (1, *self.size, self.channels[0])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of u."""
        return (1, *(self._out(axis) for axis in (0, 1)), self.channels[1])

    def forward(self, kernel: Any, v: Any) -> Any:
        """Answers the convolution of v."""
        padded = ops.pad(v, ((0, 0), *(self._padding(axis) for axis in (0, 1)), (0, 0)))
        return self._convolved(padded, kernel, self.strides)

    def adjoint(self, kernel: Any, u: Any) -> Any:
        """Answers the adjoint at u, whose product with any v is that of u with the convolution of v."""
        spread = self._with_zeros_between(u)  # (1, h', w', out)
        borders, cuts = [], []
        for axis in (0, 1):
            before, after = self._padding(axis)
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
            padded = self.size[axis] + before + after
            lacking = padded - (spread.shape[1 + axis] + reach)  # a stride may leave the last inputs unread
            borders.append((reach, reach + max(lacking, 0)))
            cuts.append(slice(before, before + self.size[axis]))
        spread = ops.pad(spread, ((0, 0), *borders, (0, 0)))
        full = self._convolved(spread, self._turned(kernel), (1, 1))
        return full[:, cuts[0], cuts[1], :]

    def _convolved(self, x: Any, kernel: Any, strides: tuple[int, int]) -> Any:
        return ops.conv(
            x, kernel, strides=strides, padding="valid", data_format="channels_last", dilation_rate=self.dilation
        )

    def _turned(self, kernel: Any) -> Any:
        """Answers the kernel turned by half a turn, with its channels exchanged within each group."""
        height, width, of_group, channels = kernel.shape
        kernel = ops.reshape(
            ops.flip(kernel, axis=(0, 1)), (height, width, of_group, self.groups, channels // self.groups)
        )
        return ops.reshape(
            ops.transpose(kernel, (0, 1, 4, 3, 2)), (height, width, channels // self.groups, of_group * self.groups)
        )

    def _with_zeros_between(self, u: Any) -> Any:
        _, height, width, channels = self.output_shape
        down, across = self.strides
        spread = ops.reshape(u, (1, height, 1, width, 1, channels))
        spread = ops.pad(spread, ((0, 0), (0, 0), (0, down - 1), (0, 0), (0, across - 1), (0, 0)))
        spread = ops.reshape(spread, (1, height * down, width * across, channels))
        return spread[:, : (height - 1) * down + 1, : (width - 1) * across + 1, :]

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1

    def _out(self, axis: int) -> int:
        if self.same:
            return -(-self.size[axis] // self.strides[axis])
        return (self.size[axis] - self._reach(axis)) // self.strides[axis] + 1

    def _padding(self, axis: int) -> tuple[int, int]:
        if not self.same:
            return 0, 0
        total = max((self._out(axis) - 1) * self.strides[axis] + self._reach(axis) - self.size[axis], 0)
        return total // 2, total - total // 2
