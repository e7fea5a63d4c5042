"""A model's double: the same weights, but modes and attributes of its own, so that a call has nothing to change."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hesitant.methods.operation_calls import address

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_SIMPLE = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device, type})
_TENSORS = frozenset({torch.Tensor, nn.Parameter})


def in_eval_mode(model: nn.Module) -> nn.Module:
    """Answers the model itself if all of it is in eval mode, else a replica that is.

    No mode is ever changed, so that none has to be put back: who reads or calls the model meanwhile, from another
    thread or from within, meets it as it is.
    """
    waiting: list[nn.Module | None] = [model]  # modules() would take five times as long, of every call
    for module in waiting:
        if module is not None:
            if module.training:
                return replica(model)
            if module._modules:
                waiting += module._modules.values()
    return model


def replica(model: nn.Module, *, training: Callable[[nn.Module], Any] = lambda module: False) -> nn.Module:
    """Answers a model that shares every parameter and buffer with this one, and nothing else that a call may write to.

    Modes and attributes are its own, and so are the lists, dicts and sets among these: what a forward keeps there goes
    with the replica, as does a buffer that it replaces; one that it writes to in place is the model's. Hooks are the
    model's. Where code was compiled, the replica runs it as it was written. The manner of
    ``torch.nn.parallel.replicate``; it costs some microseconds a module.

    Args:
        model: What is doubled.
        training: The mode of each module of the replica, told from the module.
    """
    return Replicas(model, training=training).fresh()


class Replicas:
    """Replicas of one model, one after another: each begins as the model was, and ends where the next begins.

    Args:
        model: What is doubled.
        training: The mode of each module, told from the module.
        kind: The class of each module, told from the module: its own, or one that derives from it.

    Attributes:
        num_weights: Numbers in the parameters, outside of scripted modules.
        scripted: Whether any module is scripted.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        training: Callable[[nn.Module], Any] = lambda module: False,
        kind: Callable[[nn.Module], type[nn.Module]] = type,
    ) -> None:
        self._doubles: dict[int, nn.Module] = {}
        self._states: list[tuple[nn.Module, dict[str, Any], list[str]]] = []
        self._extra: list[Any] = []  # attributes that are tensors, or may hold some
        self._own_tensors: set[int] = set()
        self._copied: set[int] = set()
        self.num_weights = 0
        self.scripted = False
        doubles = self._doubles
        compiled: list[nn.Module] = []
        for module in model.modules():
            if id(module) in doubles:
                continue
            if "_orig_mod" in module._modules:  # its code was compiled for the modes of the module within it
                compiled.append(module)
            elif isinstance(module, torch.jit.ScriptModule):
                self._double_scripted(module, training)
                self.scripted = True
            else:
                double: nn.Module = object.__new__(kind(module))
                doubles[id(module)] = double
                state = module.__dict__.copy()
                state["_compiled_call_impl"] = None
                state["training"] = training(module)
                own = [name for name in state.keys() - _OF_EVERY_MODULE if type(state[name]) not in _SIMPLE]
                self._extra += [state[name] for name in own]
                held = [name for name in own if type(state[name]) not in _TENSORS]
                self._states.append((double, state, held))
                for weight in state["_parameters"].values():
                    self.num_weights += 0 if weight is None else weight.numel()
        for module in reversed(compiled):
            doubles[id(module)] = doubles[id(module._modules["_orig_mod"])]
        for _, state, _ in self._states:
            modules = state["_modules"]
            state["_modules"] = {name: None if m is None else doubles[id(m)] for name, m in modules.items()}
        self._model = doubles[id(model)]

    @functools.cached_property
    def memory(self) -> set[int]:
        """The addresses of the model's tensors: its parameters and buffers, and those in its attributes."""
        found: list[Any] = []
        for _, state, _ in self._states:
            found += state["_parameters"].values()
            found += state["_buffers"].values()
        for value in self._extra:
            found += (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
        found += [p for m in self._doubles.values() if isinstance(m, torch.jit.ScriptModule) for p in m.parameters()]
        return {address(tensor) for tensor in found if isinstance(tensor, torch.Tensor)}

    @property
    def copies(self) -> set[int]:
        """The addresses of what the replica has of its own."""
        return self._copied

    def have_their_own(self, written: set[int]) -> None:
        """From now on each replica has copies of its own of what lies at these addresses, for it writes there."""
        self._own_tensors |= written

    def fresh(self) -> nn.Module:
        """Answers the next replica; the one before is at an end."""
        copies: dict[int, Any] = {}
        for double, state, held in self._states:
            now = double.__dict__
            now.clear()
            now.update(state)
            now["_parameters"], now["_buffers"] = state["_parameters"].copy(), state["_buffers"].copy()
            now["_modules"] = state["_modules"].copy()
            for name in held:
                now[name] = self._own(state[name], copies)
            if self._own_tensors:
                for name, value in now.items():
                    if isinstance(value, torch.Tensor):
                        now[name] = self._own(value, copies)
                for kind in ("_buffers", "_parameters"):
                    now[kind] = {name: self._own(tensor, copies) for name, tensor in now[kind].items()}
        self._copied = {address(tensor) for tensor in copies.values()}
        return self._model

    # ---------------------------------------------------------------- inside

    def _double_scripted(self, module: torch.jit.ScriptModule, training: Callable[[nn.Module], Any]) -> None:
        scripted = copy.deepcopy(module)  # its modes are within C++, where nothing less tells modules apart
        for before, after in zip(module.modules(), scripted.modules(), strict=True):
            self._doubles[id(before)] = after
            for name, tensor in (*before.named_parameters(recurse=False), *before.named_buffers(recurse=False)):
                setattr(after, name, tensor)
            after.training = bool(training(before))

    def _own(self, value: Any, copies: dict[int, Any]) -> Any:
        """Answers an attribute of the replica's own: a container copied, a module of the model's its double."""
        kind = type(value)
        if id(value) in self._doubles:
            return self._doubles[id(value)]
        if isinstance(value, torch.Tensor):
            if not self._own_tensors or address(value) not in self._own_tensors:
                return value
            if id(value) not in copies:
                own = value.detach().clone()
                copies[id(value)] = nn.Parameter(own, value.requires_grad) if kind is nn.Parameter else own
            return copies[id(value)]
        if isinstance(value, dict):
            copied = copy.copy(value)
            for key, entry in value.items():
                copied[key] = self._own(entry, copies)
            return copied
        if kind is list:
            return [self._own(entry, copies) for entry in value]
        if kind is tuple:
            return tuple(self._own(entry, copies) for entry in value)
        if kind is set:
            return set(value)
        if kind is types.MethodType and id(value.__self__) in self._doubles:
            return types.MethodType(value.__func__, self._doubles[id(value.__self__)])
        if isinstance(value, functools.partial):
            arguments = (self._own(argument, copies) for argument in value.args)
            keywords = {name: self._own(argument, copies) for name, argument in value.keywords.items()}
            return functools.partial(self._own(value.func, copies), *arguments, **keywords)
        return value
