"""The norms that layers came with, before any training step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SIZES_KEPT = 8  # of the inputs of a convolution, so that inputs of any length do not fill the memory

_LEAST_BOUND = 6.0
# Norms are known to within 1 %: a bound of exactly the norm could shrink weights that nothing has moved, by rounding.
_MARGIN = 1.01


class InitialNorms:
    """The norms that layers came with, by name and by the size of their input: that of a matrix is ``()``."""

    def __init__(self) -> None:
        self._norms: dict[str, dict[tuple[int, ...], float]] = {}
        self.revision = 0  # of what was known before, and no more

    def knows(self, name: str, size: tuple[int, ...]) -> bool:
        """Answers whether the norm of a layer is known at this size."""
        return size in self._norms.get(name, ())

    def bound(self, name: str, size: tuple[int, ...]) -> float:
        """Answers the larger of 6 and the norm that the layer came with."""
        return max(_LEAST_BOUND, _MARGIN * self._norms[name][size])

    def first(self, name: str) -> tuple[tuple[int, ...], float] | None:
        """Answers the size at which a layer was seen first, and its norm there."""
        return next(iter(self._norms.get(name, {}).items()), None)

    def note(self, name: str, size: tuple[int, ...], norm: float) -> None:
        """Notes a norm. The first size of a layer is never dropped, for the weights that it was taken from are gone."""
        known = self._norms.setdefault(name, {})
        known[size] = norm
        if len(known) > SIZES_KEPT:
            del known[list(known)[1]]

    def forget(self, name: str) -> None:
        """Forgets a layer's norms: other weights have been loaded into it."""
        if self._norms.pop(name, None) is not None:
            self.revision += 1

    def tensors(self) -> dict[str, Tensor]:
        """Answers what a state dict keeps: of each layer the rows (norm, *size), the first size first, float64."""
        return {
            name: torch.tensor([[norm, *size] for size, norm in known.items()], dtype=torch.float64)
            for name, known in self._norms.items()
        }

    def load(self, name: str, rows: Tensor) -> None:
        """Takes what :meth:`tensors` answered for a layer."""
        self._norms[name] = {tuple(int(n) for n in size): norm for norm, *size in rows.tolist()}
        self.revision += 1


@dataclass
class ForgetInitialNorm:
    """A load_state_dict hook: a layer comes with the weights that were loaded into it last."""

    norms: InitialNorms
    name: str

    def __call__(self, module: nn.Module, incompatible_keys: object) -> None:
        """Forgets the norm of the weights that were there."""
        self.norms.forget(self.name)
