"""Builds the network that JSON says, within limits, for weights that are there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from hesitant.methods.saving.architectures.of_timm import build_timm
from hesitant.methods.saving.architectures.of_torch import build_torch
from hesitant.methods.saving.architectures.of_torchvision import build_torchvision
from hesitant.methods.saving.architectures.of_transformers import build_transformers
from hesitant.methods.saving.architectures.own import build_own, require_trust
from hesitant.methods.saving.failure import SavedModelError
from hesitant.methods.saving.tensors import SavedTensors
from hesitant.methods.saving.undrawn import Undrawn

__all__ = ["KINDS", "Limits", "build", "require_architecture"]

KINDS: Final = ("torch", "timm", "torchvision", "transformers", "class", "given")

_SPARE_NUMBERS: Final = 2**26  # in buffers that are not saved, or made on the way: a mask of 8,192 positions squared
_SPARE_TENSORS: Final = 2_000
_SPARE_CALLS: Final = 50_000  # of torch: a list of rates, one for each layer, is read number by number
_SPARE_NETWORKS: Final = 100  # that have none
_LARGEST_INTEGER: Final = 2**20  # of an argument, for smaller models: a base of rotary positions is a million
_DEEPEST: Final = 40


@dataclass(frozen=True)
class Limits:
    """What the arguments of an architecture may ask for, told by the weights that are to go into it.

    Attributes:
        numbers: In all tensors that were saved.
        tensors: How many names these have.
    """

    numbers: int
    tensors: int

    @staticmethod
    def of(saved: SavedTensors) -> "Limits":
        """Answers those of tensors that were saved."""
        numbers = sum(tensor.numel() for tensor in saved.tensors.values())
        return Limits(numbers, len(saved.tensors) + len(saved.shared))

    def undrawn(self) -> Undrawn:
        """Answers what a network is built under."""
        return Undrawn(
            4 * self.numbers + _SPARE_NUMBERS, 8 * self.tensors + _SPARE_TENSORS, 100 * self.tensors + _SPARE_CALLS
        )

    def require_few(self, networks: int) -> None:
        """Refuses more networks than there are tensors for."""
        if networks > self.tensors + _SPARE_NETWORKS:
            raise ValueError(f"it has {networks} networks, too many for {self.tensors} tensors")

    def require_modest(self, part: Any, depth: int = 0) -> None:
        """Refuses an integer that no such model has, for it would be counted up to before a tensor is made."""
        if depth > _DEEPEST:
            raise ValueError("its arguments are nested too deeply")
        if isinstance(part, int) and not -(2**63) <= part <= max(_LARGEST_INTEGER, self.numbers):
            raise ValueError(f"its arguments hold {str(part)[:40]}, too large for a model of {self.numbers} numbers")
        for value in part.values() if isinstance(part, Mapping) else part if isinstance(part, (list, tuple)) else ():
            self.require_modest(value, depth + 1)


def require_architecture(architecture: Any, where: str) -> dict[str, Any]:
    """Answers the architecture, if it has the form of one.

    Raises:
        SavedModelError: It has not.
    """
    form = isinstance(architecture, Mapping) and architecture.get("kind") in KINDS
    form = form and all(isinstance(architecture.get(name, ""), str) for name in ("head", "outline", "class"))
    if form and architecture["kind"] != "given":
        arguments = architecture.get("arguments")
        form = isinstance(architecture.get("name"), str) and isinstance(arguments, Mapping)
    if not form:
        raise SavedModelError(
            f"{where} is {str(architecture)[:80]!r}, expected {{'kind': ..., 'name': ..., 'arguments': {{...}}}} with a"
            f" kind of {', '.join(KINDS[:-1])}."
        )
    return dict(architecture)


def build(architecture: Mapping[str, Any], limits: Limits, trust: Collection[str], where: str) -> nn.Module:
    """Builds a network whose weights are whatever they are, in eval mode.

    Nothing is fetched, and no code runs but that of the libraries, and of what is trusted. No generator of the process
    is drawn from.

    Args:
        architecture: As :func:`require_architecture` answers it, and not to be given.
        limits: By its weights.
        trust: The import paths that may be imported.
        where: What names the architecture, for errors.

    Raises:
        SavedModelError: It cannot be built.
    """
    kind, name, arguments = architecture["kind"], architecture["name"], dict(architecture["arguments"])
    if kind == "class":
        require_trust(name, trust, where)
    try:
        limits.require_modest(architecture)
        with limits.undrawn():
            if kind == "torch":
                network = build_torch(name, arguments)
            elif kind == "timm":
                network = build_timm(name, arguments)
            elif kind == "torchvision":
                network = build_torchvision(name, arguments)
            elif kind == "transformers":
                network = build_transformers(name, arguments, architecture.get("attention"))
            else:
                network = build_own(name, arguments)
    except SavedModelError:
        raise
    except ImportError as error:
        library = kind if kind != "class" else name.partition(".")[0]
        raise SavedModelError(
            f"{where} is a network of {library}, which cannot be imported ({error}): install it,"
            f" {f'hesitant[{kind}]' if kind in ('timm', 'transformers') else library}, or load with model=net."
        ) from error
    except Exception as error:  # whatever another library's code raises of arguments that are not its own
        raise SavedModelError(
            f"{where}, {kind} {name[:80]!r}, cannot be built ({' '.join(str(error).split())[:300]}): load with"
            " model=net, a network that you have built."
        ) from error
    return network.eval()
