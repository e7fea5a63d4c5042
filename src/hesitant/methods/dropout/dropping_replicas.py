"""Doubles a model so that its dropout is active and all else is as in eval mode.

Attention reads the flag of the module around it, and code may ask ``self.training`` anywhere, so that the dropout
modules alone are not enough; nor are whole modules put into training mode, for the same flag guards noise, masking and
auxiliary outputs. So each place that reads the flag has its own answer, by what it reads it for.
"""

import re
import sys
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from hesitant.methods.dropout.training_reads import Use, read_at, use_in
from hesitant.methods.replica import Replicas
from hesitant.methods.wrapper import ModelWrapper
from hesitant.nn import RandomFeatureGaussianProcess

_ASKED: tuple[type[nn.Module], ...] = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def dropping_replicas(model: nn.Module, *, stochastic_depth: bool) -> Replicas:
    """Answers replicas of a model in which dropout takes part, and stochastic depth if asked for.

    A read of ``training`` is answered with True where the value goes to a dropout, to attention or to a rate of either,
    or guards a branch that does nothing else than drop; anywhere else with False. What keeps statistics (BatchNorm,
    spectral norms), draws other noise (RReLU) or is a method of this library is in eval mode.

    Raises:
        ValueError: On running, a branch of the model's code that is taken in training alone drops and does something
            else too.
    """
    flag = _Flag(stochastic_depth)

    def kind(module: nn.Module) -> type[nn.Module]:
        own: Any = type(module)
        if isinstance(module, (ModelWrapper, RandomFeatureGaussianProcess)):
            return own
        return _asking(own) if isinstance(module, _ASKED) or not _is_torchs(own) else own

    def training(module: nn.Module) -> Any:
        if isinstance(module, torch.jit.ScriptModule):
            return flag.of_scripted(module)
        if not isinstance(module, nn.modules.dropout._DropoutNd) and kind(module) is not type(module):
            return flag
        return isinstance(module, nn.modules.dropout._DropoutNd)

    return Replicas(model, training=training, kind=kind)


def dropout_layers(model: nn.Module) -> dict[str, float]:
    """Answers the rate of each dropout module of the model, by name."""
    return {
        name: module.p for name, module in model.named_modules() if isinstance(module, nn.modules.dropout._DropoutNd)
    }


class _Flag:
    """Stands where a module's mode stood, and answers each place in the code that reads it."""

    def __init__(self, stochastic_depth: bool) -> None:
        self._stochastic_depth = stochastic_depth
        self._known: dict[tuple[int, int, bool], tuple[CodeType, bool]] = {}  # keeps the code, whose address is the key

    def read(self, module: nn.Module, frame: FrameType) -> bool:
        """Answers the flag to what runs in a frame."""
        code = frame.f_code
        leaf = not module._modules and not module._parameters
        key = (id(code), frame.f_lasti, leaf)
        if key not in self._known:
            read = read_at(code, frame.f_lasti, leaf=leaf)
            self._known[key] = code, self._answer(read.use, type(module).__name__, read.place)
        return self._known[key][1]

    def of_scripted(self, module: torch.jit.ScriptModule) -> bool:
        """Answers the mode of a scripted module, whose code is within C++."""
        name = str(getattr(module, "original_name", ""))
        if re.fullmatch(r"(Feature)?(Alpha)?Dropout\dd?|(Feature)?(Alpha)?Dropout", name):
            return True
        return self._answer(use_in(str(getattr(module, "code", ""))), name, "its TorchScript")

    def _answer(self, use: Use, name: str, place: str) -> bool:
        if use is Use.BOTH:
            raise ValueError(
                f"{name} reads self.training for dropout and for something else, in {place}: MC dropout is the one"
                " without the other. Write the dropout apart: F.dropout(x, p, self.training), outside of that branch."
            )
        return use is Use.DROPOUT or (use is Use.LAYERS and self._stochastic_depth)


@lru_cache(maxsize=1024)
def _is_torchs(kind: type) -> bool:
    return all(base is object or base.__module__.startswith("torch.nn.") for base in kind.__mro__)


def _mode(module: nn.Module) -> bool:
    mode: Any = module.__dict__["training"]
    return mode.read(module, sys._getframe(1)) if type(mode) is _Flag else mode


def _set_mode(module: nn.Module, mode: bool) -> None:
    module.__dict__["training"] = mode


@lru_cache(maxsize=256)
def _asking(kind: Any) -> Any:
    """Answers a class like this one whose ``training`` depends on who reads it, or itself where there can be none.

    What was compiled is as it was written.
    """
    written: dict[str, Any] = {
        name: value._torchdynamo_orig_callable
        for base in reversed(kind.__mro__)
        for name, value in vars(base).items()
        if callable(value) and hasattr(value, "_torchdynamo_orig_callable")
    }
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    try:
        return type(kind)(kind.__name__, (kind,), {**names, **written, "training": property(_mode, _set_mode)})
    except TypeError:  # a class that will have no subclass
        return kind
