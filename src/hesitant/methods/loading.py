"""Loads a method from the folder that ``save_pretrained`` wrote, executing nothing of it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from hesitant.methods.deep_ensemble import DeepEnsemble
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.gaussian_head import activation_named
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.saving import (
    CONFIG,
    DERIVED,
    Limits,
    SavedFolder,
    SavedModelError,
    SavedTensors,
    build,
    read_preprocessing,
    read_tensors,
    require_architecture,
)
from hesitant.methods.sngp import SNGP

__all__ = ["load"]

_METHODS: Final[dict[str, Any]] = {
    "SNGP": SNGP, "MCDropout": MCDropout, "DeepEnsemble": DeepEnsemble, "Deterministic": Deterministic,
}  # fmt: skip


def load(
    folder: str | Path,
    *,
    model: nn.Module | Sequence[nn.Module] | None = None,
    trust: str | Collection[str] = (),
    device: torch.device | str | None = None,
) -> Any:
    """Answers the method that ``save_pretrained`` saved in a folder, in eval mode."""
    saved = SavedFolder.at(folder)
    config = saved.config()
    tensors = read_tensors(saved, config["weights"])
    given = [] if model is None else [model] if isinstance(model, nn.Module) else list(model)
    builder = _Builder(
        saved.path / CONFIG,
        Limits(sum(tensor.numel() for tensor in tensors.tensors.values()), len(tensors.tensors)),
        (trust,) if isinstance(trust, str) else tuple(trust),
        given,
        torch.device("cpu" if device is None else device),
    )
    method = builder.method(config["method"])
    _put(method, tensors, config, builder.device)
    method.label_names = config["label_names"]
    method.preprocessing = read_preprocessing(config["preprocessing"], saved)
    return method.eval()


class _Builder:
    def __init__(
        self, where: Path, limits: Limits, trust: tuple[str, ...], given: list[nn.Module], device: torch.device
    ) -> None:
        self.where, self.limits, self.trust, self.given, self.device = where, limits, trust, given, device

    def method(self, node: Mapping[str, Any]) -> Any:
        kind = _METHODS[node["method"]]
        options = dict(node["options"])
        if kind is DeepEnsemble:
            return DeepEnsemble([self.part(member) for member in node["members"]], **options)
        inner = self.part(node["model"])
        if kind is not SNGP:
            return kind(inner, **options)
        options["activation"] = activation_named(options["activation"])
        # On the meta device: what is about to be replaced is not drawn.
        inner.get_submodule(options["classifier"]).to_empty(device="meta")
        with torch.device("meta"):
            return SNGP(inner, **options)

    def part(self, node: Mapping[str, Any]) -> nn.Module:
        if "method" in node:
            return self.method(node)
        architecture = require_architecture(node["architecture"], str(self.where))
        if self.given:
            network = self.given.pop(0)
        elif architecture["kind"] == "given":
            raise SavedModelError(
                f"{self.where} does not tell how to build the network, a {architecture.get('class')}: build it, and"
                " load with model=net."
            )
        else:
            network = build(architecture, self.limits, self.trust, str(self.where))
        return network.to(self.device)


def _put(method: Any, saved: SavedTensors, config: Mapping[str, Any], device: torch.device) -> None:
    """Puts the saved tensors into a method that is made for them."""
    everything = {name: tensor.to(device) for name, tensor in saved.tensors.items()}
    everything |= {alias: everything[name] for alias, name in saved.shared.items()}
    state = {name: tensor for name, tensor in everything.items() if not name.startswith(DERIVED)}
    method.load_state_dict(state, assign=True)
    for name, tensor in everything.items():
        if name.startswith(DERIVED):
            path, _, own = name.removeprefix(DERIVED).rpartition(".")
            method.get_submodule(path)._buffers[own] = tensor
    parameters = dict(method.named_parameters(remove_duplicate=False))
    for alias, name in saved.shared.items():
        if alias in parameters and name in parameters:
            path, _, own = alias.rpartition(".")
            method.get_submodule(path)._parameters[own] = parameters[name]
    frozen = set(config["weights"]["frozen"])
    for name, parameter in method.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name not in frozen)
