"""Loads a method from the folder that ``save_pretrained`` wrote, executing nothing of it."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesitant.methods.deep_ensemble import DeepEnsemble
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.rebuilding import Rebuilder
from hesitant.methods.saving import (
    CONFIG,
    DERIVED,
    DETECTOR,
    EXTRA,
    ArchitectureWarning,
    Limits,
    SavedDetector,
    SavedFolder,
    SavedModelError,
    SavedTensors,
    naming,
    read_preprocessing,
    read_tensors,
    require_config,
)
from hesitant.methods.sngp import SNGP

__all__ = ["Loaded", "load", "load_with_detector", "load_within", "saved_policy", "saves_detector"]

_TRIES = 5

Loaded = SNGP | MCDropout | DeepEnsemble | Deterministic


def load(
    folder: str | Path,
    *,
    model: nn.Module | Sequence[nn.Module] | None = None,
    trust: str | Collection[str] = (),
    device: torch.device | str | None = None,
) -> Loaded:
    """Answers the method that ``save_pretrained`` saved in a folder, in eval mode, with every tensor as it was.

    On the machine that saved it, its predictions have the same bits. Nothing of the folder is executed, and nothing is
    fetched: networks of timm, torchvision and transformers, and layers of torch, are built by these libraries from a
    name and numbers; an own class is imported if it is trusted by name; anything else has to be given. Every file is
    looked at as if anyone had made it, and must have the SHA-256 that ``config.json`` says; who can change that file,
    too, can change the weights.

    ``label_names`` and ``preprocessing`` are attributes of what is answered. The policy that was saved with it is
    ``hesitant.DeferralPolicy.load(folder)``. A detector around a method is loaded by
    ``hesitant.detection.FeatureDetector.from_pretrained(folder)``.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import hesitant
        >>> model = hesitant.MCDropout(torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     loaded = hesitant.load(folder)
        >>> x = torch.ones(4, 2)
        >>> torch.equal(loaded.predict(x).probs, model.predict(x).probs)
        True

    Args:
        folder: That ``save_pretrained`` wrote.
        model: The network, where the folder does not tell how to build it, or in place of what it tells: as it was
            before a method was around it. It is taken over, and its weights are replaced. Of an ensemble a list: one
            for each network, or for each that has to be given.
        trust: The import paths, ``"package.module.Class"``, that the folder may name.
        device: Where the model is to be; None is the CPU.

    Raises:
        SavedModelError: The folder holds no model of hesitant, or one that is damaged, changed, incomplete or of a
            later version, or it asks for a network that is not given, or for code that is not trusted.
        ImportError: safetensors is not installed.
    """
    return load_within(folder, None, model=model, trust=trust, device=device)


def load_within(
    folder: str | Path,
    root: Path | None,
    *,
    model: nn.Module | Sequence[nn.Module] | None,
    trust: str | Collection[str],
    device: torch.device | str | None,
) -> Loaded:
    """Answers what :func:`load` does, for a folder whose files may be links to others within ``root``."""
    method, detector = load_with_detector(folder, root, model=model, trust=trust, device=device)
    if detector is not None:
        raise SavedModelError(
            f"{folder} holds a FeatureDetector around a method, and would not detect as it does without it: load it by"
            " hesitant.detection.FeatureDetector.from_pretrained(folder), whose attribute method is the method."
        )
    return method


def load_with_detector(
    folder: str | Path,
    root: Path | None,
    *,
    model: nn.Module | Sequence[nn.Module] | None,
    trust: str | Collection[str],
    device: torch.device | str | None,
) -> tuple[Loaded, SavedDetector | None]:
    """Answers the method, and what the folder says of a detector around it, where there is one."""
    device = torch.empty(0, device=device or "cpu").device  # of a device that is not there, torch says so
    saved = SavedFolder.at(folder, root)
    config, tensors, preprocessing = _read(saved)
    where = saved.path / CONFIG
    trusted = (trust,) if isinstance(trust, str) else tuple(trust)
    given = None if model is None else [model] if isinstance(model, nn.Module) else list(model)
    rebuilder = Rebuilder(where, Limits.of(tensors), trusted, given, device, config["versions"])
    method = rebuilder.rebuilt(config["method"])
    with naming(f"{where}: the weights do not fit the network", "load with model=net, the network that was saved."):
        detector = _taken_out(tensors, config.get("detector"), device)
        _put(method, tensors, device)
        _freeze(method, set(config["weights"]["frozen"]))
        _require_temperatures(method, config["method"])
    method.label_names = config["label_names"]
    method.preprocessing = preprocessing
    for doubt in rebuilder.doubts:
        warnings.warn(doubt, ArchitectureWarning, stacklevel=4)
    return method.eval(), detector


def saves_detector(folder: str | Path) -> bool:
    """Answers whether a folder holds a detector around its method."""
    return "detector" in require_config(SavedFolder.at(folder))


def saved_policy(folder: str | Path) -> Any:
    """Answers the JSON of the policy that a folder was saved with, or None."""
    return require_config(SavedFolder.at(folder))["policy"]


def _read(saved: SavedFolder) -> tuple[dict[str, Any], SavedTensors, Any]:
    """Answers the config, tensors and preprocessing of one save; who saves meanwhile takes those before it away."""
    for _ in range(_TRIES):
        config = require_config(saved)
        try:
            tensors = read_tensors(saved, config["weights"])
            return config, tensors, read_preprocessing(config["preprocessing"], saved)
        except (SavedModelError, FileNotFoundError):
            if require_config(saved) == config:
                raise
    raise SavedModelError(f"{saved.path} is saved into again and again while it is read: load it when that is done.")


def _taken_out(saved: SavedTensors, says: Any, device: torch.device) -> SavedDetector | None:
    """Answers the detector, and takes its tensors out of the method's."""
    names = [name for name in saved.tensors if name.startswith(DETECTOR)]
    tensors = {name.removeprefix(DETECTOR): saved.tensors.pop(name).to(device) for name in names}
    if says is None and tensors:
        raise ValueError(f"there is no detector that {names[:5]} are of")
    return None if says is None else SavedDetector(says, tensors)


def _put(method: Any, saved: SavedTensors, device: torch.device) -> None:
    """Puts the saved tensors into a method that is made for them, in place of its own."""
    everything = {name: tensor.to(device) for name, tensor in saved.tensors.items()}
    for alias, name in saved.shared.items():
        everything[alias] = everything[name]
    state = {name: tensor for name, tensor in everything.items() if not name.startswith((DERIVED, EXTRA))}
    extras: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in everything.items():
        if name.startswith(EXTRA):
            path, _, own = name.removeprefix(EXTRA).rpartition("/")
            extras.setdefault(path, {})[own] = tensor
    _require_fit(method, state)
    method.load_state_dict(state, assign=True)
    modules = dict(method.named_modules(remove_duplicate=False))
    for name, tensor in everything.items():
        if name.startswith(DERIVED):
            path, _, own = name.removeprefix(DERIVED).rpartition(".")
            buffer = modules[path]._buffers.get(own) if path in modules else None
            if buffer is not None and buffer.shape == tensor.shape:  # another version may make others of its own
                modules[path]._buffers[own] = tensor
    for path, module in modules.items():
        if isinstance(module, (SNGP, MCDropout, DeepEnsemble, Deterministic)):
            module.take_saved_extras(extras.pop(path, {}))
        if isinstance(module, SNGP):
            module.gp.expect_no_step()
    if extras:
        raise ValueError(f"there is no method at {sorted(extras)}")
    _share(method, modules, saved.shared)
    unset = [name for name, t in [*method.named_parameters(), *method.named_buffers()] if t.is_meta]
    if unset:
        raise ValueError(f"{unset[:5]} are missing")


def _require_fit(method: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Tells what does not fit by name, before anything is put anywhere."""
    wrong = []
    for name, tensor in method.state_dict().items():
        there = "nothing" if name not in state else tuple(state[name].shape)
        grows = name.endswith("neighbors.inputs") and there != "nothing"  # training inputs, as many as were kept
        if there != tuple(tensor.shape) and not grows:
            wrong.append(f"{name} is {tuple(tensor.shape)} in the network and {there} in the file")
    if wrong:
        raise ValueError("; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""))


def _share(method: nn.Module, modules: Mapping[str, nn.Module], shared: Mapping[str, str]) -> None:
    """Lets parameters that were one be one again, and not only have the same numbers."""
    parameters = dict(method.named_parameters(remove_duplicate=False))
    buffers = dict(method.named_buffers(remove_duplicate=False))
    for alias, name in shared.items():
        path, _, own = alias.rpartition(".")
        if alias in parameters and name in parameters:
            setattr(modules[path], own, parameters[name])  # of which recurrent layers take note
        elif alias in buffers and name in buffers:
            modules[path]._buffers[own] = buffers[name]


def _freeze(method: nn.Module, frozen: set[str]) -> None:
    parameters = dict(method.named_parameters(remove_duplicate=False))
    unknown = sorted(frozen - parameters.keys())
    if unknown:
        raise ValueError(f"there are no parameters {unknown[:5]}")
    for name, parameter in parameters.items():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(name not in frozen)


def _require_temperatures(method: Any, node: Mapping[str, Any]) -> None:
    """Makes sure that what config.json says to a reader is what the tensors say."""
    if "method" not in node:
        return
    if method.temperature != node["options"]["temperature"]:
        raise ValueError(
            f"its temperature is {method.temperature}, and {node['options']['temperature']!r} in the config"
        )
    inner = zip(method.members, node["members"], strict=True) if "members" in node else [(method.model, node["model"])]
    for part, of_part in inner:
        _require_temperatures(part, of_part)
