"""Layers of torch.nn, one after another: what a small network is often made of."""

import inspect
from collections.abc import Mapping
from typing import Any, Final

from torch import nn

__all__ = ["build_torch", "torch_architecture"]

_LAYERS: Final[dict[str, type[nn.Module]]] = {
    kind.__name__: kind
    for kind in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
        nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU,
        nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Softplus,
        nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.MaxPool1d,
        nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    )
}  # fmt: skip
_SEQUENTIAL: Final = "Sequential"
_OF_MAKING: Final = ("self", "device", "dtype", "args", "kwargs", "_weight", "_freeze")


def torch_architecture(layer: nn.Module, linears: Mapping[nn.Module, tuple[int, int]]) -> dict[str, Any] | None:
    """Answers how a layer, or several in a ``Sequential``, are made; None if they are other code.

    Args:
        layer: Which.
        linears: What stands in the place of a Linear, with its inputs and outputs.
    """
    if layer in linears:
        in_features, out_features = linears[layer]
        return _stated("Linear", {"in_features": in_features, "out_features": out_features, "bias": True})
    if type(layer) is nn.Sequential:
        inner = [(name, torch_architecture(child, linears)) for name, child in layer.named_children()]
        if len(inner) != len(layer) or any(architecture is None for _, architecture in inner):
            return None
        return _stated(_SEQUENTIAL, {"layers": [list(pair) for pair in inner]})
    if _LAYERS.get(type(layer).__name__) is not type(layer):
        return None
    arguments = {}
    for name in inspect.signature(type(layer).__init__).parameters:
        if name in _OF_MAKING:
            continue
        if not hasattr(layer, name):
            return None
        value = getattr(layer, name)
        arguments[name] = value is not None if name == "bias" else value
    return _stated(type(layer).__name__, arguments)


def build_torch(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a layer, or several in a ``Sequential``.

    Raises:
        ValueError: There is no such layer.
    """
    if name == _SEQUENTIAL:
        network = nn.Sequential()
        for own, architecture in arguments["layers"]:
            network.add_module(own, build_torch(architecture["name"], architecture["arguments"]))
        return network
    if name not in _LAYERS:
        raise ValueError(f"{name[:80]!r} is no layer of torch.nn that is known here")
    as_given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    return _LAYERS[name](**as_given)


def _stated(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "torch", "name": name, "arguments": dict(arguments)}
