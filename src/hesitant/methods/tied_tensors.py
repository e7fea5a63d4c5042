"""Tensors that a model has under several names (tied weights) stand once in the state dict of a method around it.

safetensors, and so Hugging Face's Trainer, write no tensor twice and refuse a state dict that has one so. Loading takes
a state dict with all names or with one of each.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn


def name_tied_tensors_once(method: nn.Module) -> None:
    """Leaves further names of a tensor out of the method's state dicts."""
    method.register_state_dict_post_hook(_first_names_alone)


def with_all_names(method: nn.Module, state_dict: Any, prefix: str) -> None:
    """Puts the further names of a tensor into a state dict that is being loaded, where they are left out."""
    for names in _tied(method):
        given = next((prefix + name for name in names if prefix + name in state_dict), None)
        if given is not None:
            for name in names:
                state_dict.setdefault(prefix + name, state_dict[given])


def _first_names_alone(method: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
    for names in _tied(method):
        present = [prefix + name for name in names if prefix + name in state_dict]
        for name in present[1:]:
            del state_dict[name]


def _tied(method: nn.Module) -> Iterator[list[str]]:
    """Gives the names of each parameter and buffer that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in method.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    for name, buffer in method.named_buffers(remove_duplicate=False):
        names.setdefault(id(buffer), []).append(name)
    return (several for several in names.values() if len(several) > 1)
