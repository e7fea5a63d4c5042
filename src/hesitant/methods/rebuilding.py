"""Makes a method again of what ``config.json`` says of it, with networks whose weights are still to come."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from hesitant.methods.deep_ensemble import DeepEnsemble
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.gaussian_head import activation_named, complete_options
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.saving import (
    Limits,
    SavedModelError,
    build,
    naming,
    outline_digest,
    require_architecture,
)
from hesitant.methods.sngp import SNGP
from hesitant.methods.temperature import Tempered

__all__ = ["Rebuilder"]

_METHODS: Final[dict[str, Any]] = {method.__name__: method for method in (SNGP, MCDropout, DeepEnsemble, Deterministic)}
_NOT_SAVED: Final = ("self", "model", "members", "example_input", "generator", "gp_options")
_DEEPEST: Final = 20


class Rebuilder:
    """Makes methods.

    Args:
        where: The config, for errors.
        limits: By the weights.
        trust: The import paths that may be imported.
        given: The networks that the user gives; None gives none.
        device: Where networks go.
        versions: Of the libraries that the networks were saved with.

    Attributes:
        doubts: What is to be said of networks that may answer differently from those that were saved.
    """

    def __init__(
        self,
        where: Path,
        limits: Limits,
        trust: tuple[str, ...],
        given: list[nn.Module] | None,
        device: torch.device,
        versions: Mapping[str, Any],
    ) -> None:
        self._where, self._limits, self._trust, self._device = where, limits, trust, device
        self._versions, self._given = versions, given
        self.doubts: list[str] = []

    def rebuilt(self, node: Any) -> Any:
        """Answers the method that a node of the config is of.

        Raises:
            SavedModelError: The node is none, or a network cannot be built, or another number is given.
        """
        architectures = self._architectures(node, 0)
        if "method" not in node:
            raise self._changed("it is of a network without a method")
        try:
            self._limits.require_few(len(architectures))
        except ValueError as error:
            raise self._changed(str(error)) from None
        self._networks = iter(self._chosen(architectures))
        return self._part(node)

    def _architectures(self, node: Any, depth: int) -> list[dict[str, Any]]:
        """Answers those of all networks, in order; nothing is built before all is looked at."""
        if depth > _DEEPEST or not isinstance(node, dict):
            raise self._changed("its methods are nested too deeply" if depth > _DEEPEST else "a method in it is none")
        if node.keys() == {"architecture"}:
            return [require_architecture(node["architecture"], str(self._where))]
        name, options = node.get("method"), node.get("options")
        inner = "members" if name == "DeepEnsemble" else "model"
        if (
            not isinstance(name, str)
            or name not in _METHODS
            or not isinstance(options, dict)
            or node.keys() != {"method", "options", inner}
        ):
            raise self._changed(f"it has no method {str(name)[:40]!r} with options and a {inner}")
        expected = _options_of(_METHODS[name])
        if options.keys() != expected:
            raise self._changed(
                f"of the options of {name} it lacks {sorted(expected - options.keys())} and has"
                f" {str(sorted(options.keys() - expected))[:200]} besides"
            )
        parts = node[inner] if inner == "members" else [node[inner]]
        if not isinstance(parts, list) or not parts:
            raise self._changed("an ensemble in it has no members")
        return [architecture for part in parts for architecture in self._architectures(part, depth + 1)]

    def _chosen(self, architectures: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], nn.Module | None]]:
        """Answers each architecture with the network that is given for it, if one is."""
        unknown = [architecture for architecture in architectures if architecture["kind"] == "given"]
        given = list(self._given or [])
        if self._given is None and unknown:
            classes = sorted({str(architecture.get("class", "network"))[:80] for architecture in unknown})
            many = f", a list of {len(unknown)}" if len(unknown) > 1 else ""
            raise SavedModelError(
                f"{self._where} does not tell how to build {', '.join(classes)}: build it as it was before a method was"
                f" around it, and load with model=net{many}."
            )
        if self._given is None:
            return [(architecture, None) for architecture in architectures]
        if len(given) not in (len(architectures), len(unknown)):
            raise SavedModelError(
                f"{self._where} is of {len(architectures)} networks, {len(unknown)} of which have to be given, and"
                f" model= gives {len(given)}."
            )
        for place, network in enumerate(given):
            if not isinstance(network, nn.Module) or isinstance(network, Tempered):
                raise TypeError(
                    f"model[{place}] is a {type(network).__name__}: expected a torch.nn.Module as it was before a"
                    " method was around it."
                )
        everywhere = len(given) == len(architectures)
        waiting = iter(given)
        return [
            (architecture, next(waiting) if everywhere or architecture["kind"] == "given" else None)
            for architecture in architectures
        ]

    def _part(self, node: Mapping[str, Any]) -> Any:
        if "architecture" in node:
            return self._network()
        method, options = _METHODS[node["method"]], dict(node["options"])
        parts = [self._part(part) for part in node.get("members", [node.get("model")])]
        with naming(f"{self._where}: {node['method']} cannot be made of its options", "save the model again."):
            if method is DeepEnsemble:
                return DeepEnsemble(parts, **options)
            if method is not SNGP:
                return method(parts[0], **options)
            linear = dict(parts[0].named_modules(remove_duplicate=False)).get(options["classifier"])
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"there is no Linear {str(options['classifier'])[:80]!r} in the network")
            options["activation"] = activation_named(options["activation"])
            # What is replaced by what was saved is neither drawn nor given memory.
            linear.to_empty(device="meta")
            with torch.device("meta"):
                return SNGP(parts[0], **options)

    def _network(self) -> nn.Module:
        architecture, network = next(self._networks)
        built = network is None
        if network is None:
            network = build(architecture, self._limits, self._trust, str(self._where))
        saved = architecture.get("outline")
        if saved is not None and saved != outline_digest(network, _heads(network, architecture)):
            of = self._versions.get(architecture["kind"]) if built else None
            self.doubts.append(
                f"{self._where}: the network that {'is built' if built else 'is given'} is made of other layers, or of"
                f" layers with other settings, than the one that was saved{f' with version {of}' if of else ''}: it may"
                " answer differently. "
                + ("Install that version." if of else "Build it as it was built when it was trained.")
            )
        return network.to(self._device)

    def _changed(self, what: str) -> SavedModelError:
        return SavedModelError(f"{self._where} was changed, or is of another version: {what}. Save the model again.")


def _options_of(method: Any) -> set[str]:
    own = set(inspect.signature(method.__init__).parameters) - set(_NOT_SAVED)
    return own | complete_options({}).keys() if method is SNGP else own


def _heads(network: nn.Module, architecture: Mapping[str, Any]) -> list[str]:
    """Answers the names of the classifier, which is not among what is compared: something else stood there."""
    head = dict(network.named_modules(remove_duplicate=False)).get(architecture.get("head", ""))
    if "head" not in architecture or head is None:
        return []
    return [path for path, module in network.named_modules(remove_duplicate=False) if module is head]
