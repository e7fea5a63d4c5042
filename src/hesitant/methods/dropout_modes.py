"""Puts a model into the state in which its dropout is active and all else is as in eval mode, and puts it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.spectral_norm import SpectralNorm

from hesitant.methods.wrapper import ModelWrapper
from hesitant.nn import RandomFeatureGaussianProcess

_STOCHASTIC_DEPTH = ("DropPath", "StochasticDepth")  # how timm, torchvision and all models of transformers call it
_DROPS_WHOLE_LAYERS = "layerdrop"  # the rate at which the encoders of transformers leave layers out
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


@contextmanager
def dropout_active(model: nn.Module, *, stochastic_depth: bool) -> Iterator[None]:
    """Puts all modules into training mode but those that would do something else than drop, and restores everything.

    Attention reads the flag of the module around it, and code may ask ``self.training`` anywhere, so that the dropout
    modules alone are not enough. What keeps statistics (BatchNorm, spectral norms), draws other noise (RReLU) or is a
    method of this library stays in eval mode, and so does stochastic depth unless asked for. Modes, buffers and
    attributes are afterwards as before, also after an error.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.layout == torch.strided
    ]
    attributes = list(_set_aside(model, stochastic_depth))
    try:
        for module, _ in modes:
            module.training = not _stays_in_eval(module, stochastic_depth)
        for module, name, _, value in attributes:
            setattr(module, name, value)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, before, _ in attributes:
            setattr(module, name, before)
        for module, name, buffer, content in buffers:
            if not torch.equal(buffer, content):
                buffer.copy_(content)
            module._buffers[name] = buffer


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Puts the modules' own attributes back, and what dicts and lists among them hold: tables kept for later calls."""
    own = [(module, dict(module.__dict__)) for module in model.modules()]
    held = [
        (container, container.copy())
        for _, attributes in own
        for name, container in attributes.items()
        if isinstance(container, (dict, list)) and (name not in _OF_EVERY_MODULE or name == "_buffers")
    ]
    try:
        yield
    finally:
        for module, attributes in own:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for container, content in held:
            container.clear()
            if isinstance(container, dict):
                container.update(content)
            else:
                container.extend(content)


def dropout_layers(model: nn.Module) -> dict[str, float]:
    """Answers the rate of each dropout module of the model, by name."""
    return {
        name: module.p for name, module in model.named_modules() if isinstance(module, nn.modules.dropout._DropoutNd)
    }


def _stays_in_eval(module: nn.Module, stochastic_depth: bool) -> bool:
    if isinstance(module, (_NormBase, nn.RReLU, ModelWrapper, RandomFeatureGaussianProcess)):
        return True
    if "running_mean" in module._buffers or type(module).__module__ == "torch.nn.utils.parametrizations":
        return True
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    return type(module).__name__.endswith(_STOCHASTIC_DEPTH) and not stochastic_depth


def _set_aside(model: nn.Module, stochastic_depth: bool) -> Iterator[tuple[nn.Module, str, Any, Any]]:
    """Gives the attributes that would do something else in training mode: module, name, value, value meanwhile."""
    for module in model.modules():
        if not stochastic_depth and isinstance(module.__dict__.get(_DROPS_WHOLE_LAYERS), float):
            yield module, _DROPS_WHOLE_LAYERS, module.__dict__[_DROPS_WHOLE_LAYERS], 0.0
        if module.__dict__.get("gradient_checkpointing") is True:
            yield module, "gradient_checkpointing", True, False
