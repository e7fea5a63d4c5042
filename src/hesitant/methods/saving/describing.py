"""What a method is made of, as JSON: its options, and of the networks within how each is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hesitant.methods.saving.architectures import Head, Limits, tell

__all__ = ["Architecture", "Described", "described", "networks_of"]

Architecture = Mapping[str, Any]


@dataclass(frozen=True)
class Described:
    """A method as JSON.

    Attributes:
        node: ``{"method": ..., "options": ..., "model": node}``, or ``"members": [node, ...]``, or of a plain network
            ``{"architecture": ...}``.
        to_give: Of each network that has to be given at loading, in their order: which it is, and why.
    """

    node: dict[str, Any]
    to_give: list[str]


def described(
    method: nn.Module, architecture: Architecture | Sequence[Architecture] | None, limits: Limits
) -> Described:
    """Answers a method as JSON.

    Args:
        method: A method, with methods or networks in it.
        architecture: What the user says of the networks: one for all, or one for each.
        limits: By the weights.

    Raises:
        ValueError: What the user says does not fit.
        TypeError: A method cannot be saved.
    """
    networks = networks_of(method)
    if architecture is None or isinstance(architecture, (Mapping, str)):
        stated: list[Any] = [architecture] * len(networks)
    else:
        stated = list(architecture)
        if len(stated) != len(networks):
            raise ValueError(
                f"architecture has {len(stated)} entries, expected one for each of {len(networks)} networks."
            )
    to_give: list[str] = []
    waiting = iter(stated)

    def node_of(part: nn.Module, path: str, head: Head | None) -> dict[str, Any]:
        own = _method(part)
        if own is None:
            said = next(waiting)
            told = tell(part, head, said, limits)
            if told.why_given is not None:
                to_give.append(f"{path.rstrip('.')}: {told.why_given}")
            return {"architecture": told.architecture}
        node: dict[str, Any] = {"method": type(part).__name__, "options": own.saved_options()}
        members = part._modules.get("members")
        if isinstance(members, nn.ModuleList):
            node["members"] = [node_of(m, f"{path}members.{i}.", None) for i, m in enumerate(members)]
        else:
            node["model"] = node_of(own.model, f"{path}model.", own.saved_head())
        return node

    return Described(node_of(method, "", None), to_give)


def networks_of(part: nn.Module) -> list[nn.Module]:
    """Answers the networks within a method, in the order of its members."""
    if _method(part) is None:
        return [part]
    members = part._modules.get("members")
    inner = list(members) if isinstance(members, nn.ModuleList) else [part._modules["model"]]
    return [network for each in inner if each is not None for network in networks_of(each)]


def _method(part: nn.Module) -> Any:
    """Answers the part if it is a method, and None of a network."""
    if not hasattr(type(part), "saved_options"):
        return None
    if not type(part).__module__.startswith("hesitant.methods."):
        raise TypeError(
            f"{type(part).__qualname__} is a class of your own around a method: the methods of hesitant alone can be"
            " saved. Save the method that it is made of, or its state dict."
        )
    return part
