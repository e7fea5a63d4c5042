"""Classifiers of torchvision, by the name that they are registered under, and arguments."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["build_torchvision", "torchvision_candidates"]

_REFUSED = ("weights", "pretrained", "progress", "backbone")  # what would fetch something


def torchvision_candidates(network: Any, num_classes: int | None) -> Iterator[dict[str, Any]]:
    """Gives what the network may have been made by: the builders of the file of its class, small ones first."""
    import torchvision

    for name in sorted(_classifiers(), key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)]):
        if torchvision.models.get_model_builder(name).__module__ == type(network).__module__:
            arguments = {} if num_classes is None else {"num_classes": num_classes}
            yield {"kind": "torchvision", "name": name, "arguments": arguments}


def build_torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a network without weights.

    Raises:
        ValueError: torchvision has no such name, or an argument would fetch something.
    """
    import torchvision

    if name not in _classifiers():
        raise ValueError(f"torchvision {torchvision.__version__} has no model {name[:80]!r}")
    for argument in arguments:
        if argument.startswith(_REFUSED):
            raise ValueError(f"the argument {argument[:80]!r} would fetch something")
    network: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return network


def _classifiers() -> list[str]:
    """Answers the names of those; models of other tasks fetch a backbone unless they are told not to."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)
