"""A model's double: the same weights, but modes and attributes of its own, so that a call has nothing to change."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = frozenset({bool, int, float, str, type(None), torch.Tensor, nn.Parameter, torch.dtype, torch.device, type})


def in_eval_mode(model: nn.Module) -> nn.Module:
    """Answers the model itself if all of it is in eval mode, else a replica that is.

    No mode is ever changed, so that none has to be put back: who reads or calls the model meanwhile, from another
    thread or from within, meets it as it is.
    """
    return replica(model) if any(module.training for module in model.modules()) else model


def replica(model: nn.Module, *, training: Callable[[nn.Module], bool] = lambda module: False) -> nn.Module:
    """Answers a model that shares every parameter and buffer with this one, and nothing else that a call may write to.

    Modes and attributes are its own, and so are the lists, dicts and sets among these: what a forward keeps there goes
    with the replica, as does a buffer that it replaces; one that it writes to in place is the model's. Hooks are the
    model's. Where code was compiled, the replica runs it as it was written. The manner of
    ``torch.nn.parallel.replicate``; it costs some microseconds a module.

    Args:
        model: What is doubled.
        training: The mode of each module of the replica, told from the module.
    """
    doubles: dict[int, nn.Module] = {}
    own: list[tuple[nn.Module, nn.Module]] = []
    compiled: list[nn.Module] = []
    for module in model.modules():
        if id(module) in doubles:
            continue
        if "_orig_mod" in module._modules:  # its code was compiled for the modes of the module within it
            compiled.append(module)
        elif isinstance(module, torch.jit.ScriptModule):
            scripted = copy.deepcopy(module)  # its modes are within C++, where nothing less tells modules apart
            for before, after in zip(module.modules(), scripted.modules(), strict=True):
                doubles[id(before)] = after
                for name, tensor in (*before.named_parameters(recurse=False), *before.named_buffers(recurse=False)):
                    setattr(after, name, tensor)
                after.training = training(before)
        else:
            double = object.__new__(type(module))
            doubles[id(module)] = double
            own.append((module, double))
    for module in reversed(compiled):
        doubles[id(module)] = doubles[id(module._modules["_orig_mod"])]
    for module, double in own:
        state = module.__dict__.copy()
        for name, value in module.__dict__.items():
            if name not in _OF_EVERY_MODULE and type(value) not in _PLAIN:
                state[name] = _own(value, doubles)
        state["_parameters"], state["_buffers"] = module._parameters.copy(), module._buffers.copy()
        state["_modules"] = {name: None if m is None else doubles[id(m)] for name, m in module._modules.items()}
        state["_compiled_call_impl"] = None
        state["training"] = training(module)
        object.__setattr__(double, "__dict__", state)
    return doubles[id(model)]


def _own(value: Any, doubles: dict[int, nn.Module]) -> Any:
    """Answers an attribute of the replica's own: a container copied, a module of the model's its double."""
    kind = type(value)
    if id(value) in doubles:
        return doubles[id(value)]
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, entry in value.items():
            copied[key] = _own(entry, doubles)
        return copied
    if kind is list:
        return [_own(entry, doubles) for entry in value]
    if kind is tuple:
        return tuple(_own(entry, doubles) for entry in value)
    if kind is set:
        return set(value)
    if kind is types.MethodType and id(value.__self__) in doubles:
        return types.MethodType(value.__func__, doubles[id(value.__self__)])
    if isinstance(value, functools.partial):
        arguments = (_own(argument, doubles) for argument in value.args)
        keywords = {name: _own(argument, doubles) for name, argument in value.keywords.items()}
        return functools.partial(_own(value.func, doubles), *arguments, **keywords)
    return value
