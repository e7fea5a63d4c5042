"""What a user is told before a bound changes their model, or where it holds for nothing."""

import math
import warnings
from collections.abc import Collection
from typing import NamedTuple

_LEAST_SHARE = 0.5  # of the product of all norms
_NAMED = 3  # layers that shrink most


class SpectralBoundWarning(UserWarning):
    """The bound is about to take more than half of a network's gain away, or holds for no layer at all."""


class Shrinkage(NamedTuple):
    """What the first projection of a layer is about to do."""

    sigma: float
    factor: float  # that its weight is multiplied by


class GainWatch:
    """Adds up what the first projections of all layers do, and warns once if they leave little of their gain."""

    def __init__(self) -> None:
        self._first: dict[str, Shrinkage] = {}  # by layer
        self._warned = False

    def waits_for(self, names: Collection[str]) -> bool:
        """Answers whether one of these layers has not been projected yet, and nothing was said."""
        return not self._warned and not self._first.keys() >= set(names)

    def add(self, norm_bound: float, shrinkages: dict[str, Shrinkage], num_unseen: int) -> None:
        """Adds what is about to be done, of which first projections count.

        Args:
            norm_bound: That holds for all of them.
            shrinkages: Of layers, by name.
            num_unseen: How many convolutions have seen no input, so that their norm is not known.
        """
        fresh = shrinkages.keys() - self._first.keys()
        self._first |= {name: shrinkages[name] for name in fresh}
        if fresh and math.prod(shrinkage.factor for shrinkage in self._first.values()) < _LEAST_SHARE:
            self._warned = True
            _warn_of_lost_gain(norm_bound, self._first, num_unseen)


def warn_of_no_bound(unbounded: dict[str, str]) -> None:
    """Warns that no weight of a model is bounded."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(unbounded.items())[:4])
    more = f"; and {len(unbounded) - 4} more" if len(unbounded) > 4 else ""
    warnings.warn(
        f"norm_bound bounds no weight of this model ({first}{more}): its features need not keep distances, so that the"
        " uncertainty may not grow with the distance to the training data. Pass norm_bound=None to say that this is"
        " meant.",
        SpectralBoundWarning,
        stacklevel=4,
    )


def _percent(share: float) -> str:
    return f"{share:.2g}" if share < 1e-4 else f"{100 * share:.2g} %"


def _warn_of_lost_gain(norm_bound: float, shrinkages: dict[str, Shrinkage], num_unseen: int) -> None:
    share = math.prod(shrinkage.factor for shrinkage in shrinkages.values())
    shrinking = sorted((s.factor, name, s.sigma) for name, s in shrinkages.items() if s.factor < 1)
    most = "; ".join(
        f"{name or 'the model'} from {sigma:.3g} to {sigma * f:.3g}" for f, name, sigma in shrinking[:_NAMED]
    )
    unseen = f" ({num_unseen} convolutions have seen no input and are not counted)" if num_unseen else ""
    warnings.warn(
        f"norm_bound={norm_bound} is about to shrink {len(shrinking)} of {len(shrinkages)} layers{unseen}. The product"
        " of their norms, the most by which layers one after another can stretch the difference of two inputs, falls"
        f" to {_percent(share)} of what it is; most of all {most}. A network that trains from scratch learns with it;"
        " pretrained weights lose what they know: leave norm_bound out (a layer's bound is then never below the norm"
        " that it came with), give a larger one, or choose layers by only= or exclude=.",
        SpectralBoundWarning,
        stacklevel=8,
    )
