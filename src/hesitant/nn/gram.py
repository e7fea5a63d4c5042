"""Sums of outer products of features, of which half is computed: the other half is its mirror image."""

from collections.abc import Iterator

from torch import Tensor

_BLOCKS = 8  # of columns: 36 of 64 blocks are computed
_NARROWEST = 64  # a block; narrower ones are slower than what they spare


def add_gram(total: Tensor, features: Tensor, weighted: Tensor, scale: float) -> None:
    """Adds ``scale * features^T weighted`` to the blocks of ``total`` on and above the diagonal.

    With the mirror image left out float64 takes as long as all of it in float32, whose rounding a small ridge would
    blow up: hence the sums are float64 throughout, whatever the ridge.

    Args:
        total: ``(M, M)``; blocks below the diagonal are left as they are, until :func:`mirror` fills them.
        features: ``(B, M)``, of the dtype of ``total``.
        weighted: The features, each row times a number.
        scale: Of the product.
    """
    for begin, end in _blocks(len(total)):
        total[begin:end, begin:].addmm_(features[:, begin:end].T, weighted[:, begin:], alpha=scale)


def mirror(total: Tensor) -> Tensor:
    """Puts what is above the diagonal of ``total`` ``(M, M)`` below it, too, and answers it."""
    for begin, end in _blocks(len(total)):
        total[end:, begin:end] = total[begin:end, end:].T
        square = total[begin:end, begin:end]  # computed whole, and symmetric but for rounding
        square.copy_(square.triu() + square.triu(1).T)
    return total


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    width = max(_NARROWEST, -(-size // _BLOCKS))
    for begin in range(0, size, width):
        yield begin, min(begin + width, size)
