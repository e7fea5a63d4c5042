"""What is remembered of bounded layers between two projections, and by a state dict."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.nn.initial_norms import SIZES_KEPT, InitialNorms
from hesitant.nn.layer_group import LayerGroup


class LayerMemory:
    """By layer: singular vectors, which weights they belong to, the size of its input, and the norm it came with.

    Attributes:
        vectors: The left singular vectors by output size, the latest last.
        checksums: Of the weights as the last projection left them.
        input_sizes: Of convolutions, as their hooks note them.
        initial: The norms that the layers came with.
    """

    def __init__(self) -> None:
        self.vectors: dict[str, dict[tuple[int, ...], Tensor]] = {}
        self.checksums: dict[str, Tensor] = {}
        self.input_sizes: dict[str, tuple[int, ...]] = {}
        self.initial = InitialNorms()

    def size(self, name: str) -> tuple[int, ...]:
        """Answers what the norm of a layer depends on beside its weight."""
        return self.input_sizes.get(name, ())

    def keep(self, groups: Iterable[LayerGroup], layers: Mapping[str, nn.Module]) -> None:
        """Takes vectors and checksums over from groups; those of weights that were replaced are forgotten."""
        for group in groups:
            shape = tuple(group.u.shape[1:])
            for name, weight, u, checksum in zip(group.names, group.weights, group.u, group.checksum, strict=True):
                if name not in layers or layers[name].weight is not weight:
                    self.vectors.pop(name, None)  # another weight stands there: its vectors are warmed up anew
                    self.checksums.pop(name, None)
                    continue
                known = self.vectors.setdefault(name, {})
                known.pop(shape, None)
                known[shape] = u.clone()
                if len(known) > SIZES_KEPT:
                    known.pop(next(iter(known)))
                self.checksums[name] = checksum.clone()

    def tensors(self) -> dict[str, Tensor]:
        """Answers what a state dict keeps."""
        return {
            **{f"u.{name}": next(reversed(known.values())) for name, known in self.vectors.items()},
            **{f"checksum.{name}": checksum for name, checksum in self.checksums.items()},
            **{f"input_size.{name}": torch.tensor(size) for name, size in self.input_sizes.items()},
            **{f"initial_norm.{name}": rows for name, rows in self.initial.tensors().items()},
        }

    def load(self, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Takes what :meth:`tensors` answered out of a state dict, and answers the rest of it."""
        rest: dict[str, Any] = {}
        for key, value in state_dict.items():
            kind, _, name = key.removeprefix(prefix).partition(".") if key.startswith(prefix) else ("", "", "")
            if kind == "u":
                self.vectors[name] = {tuple(value.shape): value.clone()}
            elif kind == "checksum":
                self.checksums[name] = value.clone()
            elif kind == "input_size":
                self.input_sizes[name] = tuple(value.tolist())
            elif kind == "initial_norm":
                self.initial.load(name, value)
            else:
                rest[key] = value
        return rest
