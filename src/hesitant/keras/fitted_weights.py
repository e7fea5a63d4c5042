"""Which weights a covariance was fitted with, and whether they have moved since."""

from collections.abc import Iterable
from typing import Any

from hesitant.keras.concrete import array_of
from keras import ops


class FittedWeights:
    """The weights of a model as they are now; in no file, so that of a loaded model nothing is known."""

    def __init__(self, weights: Iterable[Any], num_seen: int) -> None:
        self._then = [(weight, _sum(weight)) for weight in weights]
        self._num_seen = num_seen

    def have_moved(self, num_seen: int) -> bool:
        """Answers whether they are others, while the covariance, of so many inputs, is what it was."""
        return num_seen == self._num_seen and any(_sum(weight) != then for weight, then in self._then)


def _sum(weight: Any) -> float:
    return float(array_of(ops.sum(ops.cast(weight, "float32"))))
