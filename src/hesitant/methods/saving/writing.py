"""Writes a method into a folder."""

import importlib.metadata
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hesitant.methods.saving.architectures import Limits
from hesitant.methods.saving.committing import saving_into
from hesitant.methods.saving.describing import Architecture, described, networks_of
from hesitant.methods.saving.failure import ArchitectureWarning
from hesitant.methods.saving.folder import FORMAT, VERSION
from hesitant.methods.saving.preprocessing import write_preprocessing
from hesitant.methods.saving.tensors import DETECTOR, require_safetensors, tensors_of, write_tensors

__all__ = ["SavedDetector", "write"]

_LIBRARIES = ("hesitant", "torch", "timm", "torchvision", "transformers", "safetensors")


@dataclass(frozen=True)
class SavedDetector:
    """What is saved of a detector around a method.

    Attributes:
        says: JSON: which it is, and its options.
        tensors: What it was fitted to be, by name.
    """

    says: dict[str, Any]
    tensors: Mapping[str, Tensor]


def write(
    method: nn.Module,
    folder: Path,
    *,
    detector: SavedDetector | None,
    policy: Any,
    preprocessing: Any,
    label_names: Sequence[str] | None,
    architecture: Architecture | Sequence[Architecture] | None,
    max_shard_size: int | str,
) -> None:
    """Saves a method, and a detector around it; the arguments are those of ``save_pretrained``."""
    require_safetensors()
    saved = tensors_of(method)
    if detector is not None:
        saved.tensors.update({DETECTOR + name: tensor for name, tensor in detector.tensors.items()})
    told = described(method, architecture, Limits.of(saved))
    names = _names(label_names)
    frozen = [
        name for name, parameter in method.named_parameters(remove_duplicate=False) if not parameter.requires_grad
    ]
    with saving_into(folder) as new:
        files = write_tensors(folder, f"model-{new.token}", saved.tensors, max_shard_size)
        rules = _policy(policy)
        config = {
            "format": FORMAT,
            "format_version": VERSION,
            "model_type": FORMAT,  # of which transformers knows none, and says so
            "versions": _versions(),
            "method": told.node,
            "label_names": names,
            "preprocessing": write_preprocessing(preprocessing, folder, f"preprocessing-{new.token}"),
            "policy": rules,
            "weights": {"files": files, "shared": saved.shared, "strides": saved.strides, "frozen": frozen},
        }
        if detector is not None:
            config["detector"] = detector.says
        new.commit(config)
    if told.to_give:
        warnings.warn(
            f"{folder} does not tell how to build {len(told.to_give)} of {len(networks_of(method))} networks"
            f" ({told.to_give[0]}): give what it is at loading, hesitant.load(folder, model=net), or say here how it is"
            " built, architecture={'kind': 'class', 'name': 'package.module.Net', 'arguments': {...}}. To say that it"
            " will be given, architecture={'kind': 'given'}.",
            ArchitectureWarning,
            stacklevel=4,
        )


def _policy(policy: Any) -> Any:
    """Answers what a policy saves of itself, by which it is loaded."""
    if policy is None:
        return None
    if not callable(getattr(policy, "saved_content", None)):
        raise TypeError(f"policy is a {type(policy).__name__}: expected a hesitant.DeferralPolicy.")
    return policy.saved_content()


def _names(label_names: Sequence[str] | None) -> list[str] | None:
    if label_names is None:
        return None
    names = list(label_names)
    if isinstance(label_names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"label_names={label_names!r:.80} are no texts: expected one name for each class, in order.")
    return names


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
