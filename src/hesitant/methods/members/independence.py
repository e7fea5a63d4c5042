"""Whether the members of an ensemble were made apart: each with weights and random features of its own."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hesitant.nn import RandomFeatureGaussianProcess


def require_own_weights(members: list[nn.Module]) -> None:
    """Raises where a builder has made the same member again, or one whose weights wait for the first input.

    Raises:
        ValueError: It has.
    """
    for position, member in enumerate(members):
        lazy = next((name for name, weight in member.named_parameters() if is_lazy(weight)), None)
        if lazy is not None:
            raise ValueError(
                f"the builder left {lazy!r} without values until the first input, whose initialisation no seed"
                " would govern: give each layer its sizes, or run the model once before the builder returns it."
            )
        for earlier in range(position):
            _require_apart(members[earlier], member, earlier, position)


def _require_apart(first: nn.Module, member: nn.Module, earlier: int, position: int) -> None:
    for a, b in zip(_random_features(first), _random_features(member), strict=False):
        if _same(a, b):
            raise ValueError(
                f"the builder gave members {earlier} and {position} the same random features: leave SNGP's generator"
                " out, so that they are drawn from the global generators, which are seeded for each member."
            )
    pairs = list(zip(first.parameters(), member.parameters(), strict=False))
    trained = [(a, b) for a, b in pairs if a.requires_grad]
    if trained and all(_same(a, b) for a, b in trained):
        raise ValueError(
            f"the builder gave members {earlier} and {position} the same weights: expected it to draw them from the"
            " global generators, which are seeded for each member, without a seed or a generator of its own."
        )


def _random_features(model: nn.Module) -> list[Tensor]:
    layers = [module for module in model.modules() if isinstance(module, RandomFeatureGaussianProcess)]
    return [layer.random_weight for layer in layers if layer.random_weight is not None]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.device), b)
