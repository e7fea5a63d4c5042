"""Networks of timm, by name and arguments."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["build_timm", "timm_candidates"]

# What create_model takes to fetch or to unpickle something, or to build another thing than a network.
_REFUSED = ("pretrained", "checkpoint", "cache_dir", "url", "file", "hf_hub", "hf-hub", "features_only")


def timm_candidates(network: Any) -> Iterator[dict[str, Any]]:
    """Gives what the network may have been made by: timm keeps its name, and the arguments since 1.0.20 or so."""
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    name, tag = config.get("architecture"), config.get("tag")
    if not name:
        return
    arguments = {**getattr(network, "_model_args", {}), "num_classes": network.num_classes}
    channels = getattr(network, "in_chans", None)
    for full in (f"{name}.{tag}", name) if tag else (name,):
        yield {"kind": "timm", "name": full, "arguments": arguments}
        if isinstance(channels, int):
            yield {"kind": "timm", "name": full, "arguments": {**arguments, "in_chans": channels}}


def build_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a network without weights.

    Raises:
        ValueError: timm has no such name, or an argument would fetch or unpickle something.
    """
    import timm

    if ":" in name or "/" in name or not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no model {name[:80]!r}")
    for argument in arguments:
        if argument.startswith(_REFUSED):
            raise ValueError(f"the argument {argument[:80]!r} would fetch or unpickle something")
    network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return network
