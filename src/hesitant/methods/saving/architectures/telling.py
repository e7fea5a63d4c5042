"""Tells how a network can be built again, and makes sure of it: what looks alike is built and compared."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hesitant.methods.saving.architectures.building import Limits, build, require_architecture
from hesitant.methods.saving.architectures.of_timm import timm_candidates
from hesitant.methods.saving.architectures.of_torch import torch_architecture
from hesitant.methods.saving.architectures.of_torchvision import torchvision_candidates
from hesitant.methods.saving.architectures.of_transformers import transformers_candidates
from hesitant.methods.saving.architectures.own import path_of
from hesitant.methods.saving.failure import SavedModelError
from hesitant.methods.saving.outline import difference, outline_digest

__all__ = ["Head", "Told", "tell"]


@dataclass(frozen=True)
class Head:
    """The classifier of a network in whose place something else stands.

    Attributes:
        name: Of the Linear.
        in_features: Its inputs.
        out_features: Its outputs.
        paths: All names of what stands there.
    """

    name: str
    in_features: int
    out_features: int
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """What is known of a network.

    Attributes:
        architecture: JSON, with the digest of its outline.
        why_given: Why it has to be given at loading; None if it need not be.
    """

    architecture: dict[str, Any]
    why_given: str | None = field(default=None)


def tell(network: nn.Module, head: Head | None, stated: Mapping[str, Any] | None, limits: Limits) -> Told:
    """Answers how a network is built.

    Args:
        network: Which.
        head: Its classifier, if something else stands there.
        stated: What a user says of it; None has it told.
        limits: By its weights.

    Raises:
        ValueError: What the user says makes another network.
    """
    without = () if head is None else head.paths
    known: dict[str, Any] = {"outline": outline_digest(network, without)}
    if head is not None:
        known["head"] = head.name
    own = path_of(type(network)) or type(network).__qualname__
    to_be_given = {"kind": "given", "class": own, **known}
    if stated is not None:
        architecture = _plain(require_architecture(stated, "architecture"))
        if architecture is not None and architecture["kind"] == "given":
            return Told(to_be_given)
        if architecture is None:
            raise ValueError("architecture holds something that is no JSON: numbers, texts, lists and dicts alone.")
        wrong = _wrong(network, head, architecture, limits, attributes=False)
        if wrong is not None:
            raise ValueError(f"architecture makes another network than the one that is saved: {wrong}.")
        return Told({**architecture, **known})
    why: str | None = None
    for candidate in _candidates(network, head):
        architecture = _plain(candidate)
        wrong = "its arguments are no JSON" if architecture is None else _wrong(network, head, architecture, limits)
        if architecture is not None and wrong is None:
            return Told({**architecture, **known})
        why = why or f"{candidate['kind']} {candidate['name']} looks like it, but {wrong}"
    kind = type(network).__qualname__
    why = why or f"a {kind} is no network of timm, torchvision or transformers, and no Sequential of layers"
    return Told(to_be_given, why)


def _candidates(network: Any, head: Head | None) -> Iterator[dict[str, Any]]:
    library = type(network).__module__.partition(".")[0]
    in_place = {} if head is None else {network.get_submodule(head.paths[0]): (head.in_features, head.out_features)}
    layers = torch_architecture(network, in_place)
    if layers is not None:
        yield layers
    elif library == "timm":
        yield from timm_candidates(network)
    elif library == "transformers" and callable(getattr(getattr(network, "config", None), "to_dict", None)):
        yield from transformers_candidates(network)
    elif library == "torchvision":
        last = [module for module in network.modules() if isinstance(module, nn.Linear)]
        outputs = head.out_features if head is not None else last[-1].out_features if last else None
        yield from torchvision_candidates(network, outputs)


def _plain(architecture: Mapping[str, Any]) -> dict[str, Any] | None:
    """Answers it as it will be read: tuples are lists by then, and keys texts."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(architecture, allow_nan=False))
        return plain
    except (TypeError, ValueError):
        return None


def _wrong(
    network: nn.Module, head: Head | None, architecture: Mapping[str, Any], limits: Limits, *, attributes: bool = True
) -> str | None:
    """Answers why an architecture does not make this network; None if it does."""
    trust: Collection[str] = (architecture["name"],)  # it is what the user runs already
    try:
        with torch.device("meta"):
            built = build(architecture, limits, trust, "architecture")
    except SavedModelError:
        try:  # of what reads numbers while it is built, there is none on the meta device
            built = build(architecture, limits, trust, "architecture")
        except SavedModelError as error:
            return str(error).rstrip(".")
    if head is not None:
        linear = dict(built.named_modules()).get(head.name)
        if not isinstance(linear, nn.Linear):
            return f"{head.name} is a {type(linear).__name__} there, expected a Linear"
        if (linear.in_features, linear.out_features) != (head.in_features, head.out_features):
            return (
                f"{head.name} has {linear.in_features} inputs and {linear.out_features} outputs there, expected"
                f" {head.in_features} and {head.out_features}"
            )
    return difference(network, built, () if head is None else head.paths, attributes=attributes)
