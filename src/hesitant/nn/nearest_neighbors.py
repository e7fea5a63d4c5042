"""How far an input is from what is known: the distance to its nearest neighbours among the training inputs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant.nn.uniform_sample import UniformSample

_NUMBERS_AT_ONCE = 2**24  # cosines, 64 MiB
_SPARE = 7  # neighbours looked at beside those asked for: float32 may have their cosines in another order


class NearestNeighbors(nn.Module):
    r"""Answers the distance of features to their k-th nearest neighbour among training features, of length 1 all.

    ``|z - z_(k)|`` with ``z = f / |f|``, in [0, 2]: 0 for what was seen, the square root of 2 for what has nothing in
    common with it. The search is exact: all cosines are computed, some inputs at a time, and the distances of the
    nearest from their differences in float64, so that rounding does not show where inputs are nearly alike.

    Memory: ``4 n D`` bytes for n training features, of which at most ``max_inputs`` are kept, a uniform sample of them
    (100 MiB for 50,000 of 512 numbers), and 64 MiB while it searches. A state dict holds them, and they stay in float32
    whatever the module's dtype. Cost: ``2 n D`` operations an input.

    Source: Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML, equation 1.

    Example:
        >>> import torch
        >>> from hesitant.nn import NearestNeighbors
        >>> neighbors = NearestNeighbors(2)
        >>> neighbors.replace(torch.eye(2))
        >>> neighbors(torch.tensor([[3.0, 0.0], [-1.0, 0.0]]))
        tensor([0.0000, 1.4142], dtype=torch.float64)

    Args:
        in_features: D, the width of the features.
        k: k. With 1 a single training input vouches for what is near it, a mislabelled one too; a larger
            one asks for so many, and must be below the size of the smallest class.
        max_inputs: How many training features to keep.
        device: Where they are.

    Attributes:
        inputs: The training features ``(n, D)`` of length 1; none before the first :meth:`replace`.

    Raises:
        ValueError: An argument is out of its range.
    """

    inputs: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        k: int = 1,
        max_inputs: int = 50_000,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("k", k), ("max_inputs", max_inputs)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} is no integer of at least 1.")
        if k > max_inputs:
            raise ValueError(f"k={k} is above max_inputs={max_inputs}: keep more inputs.")
        self.in_features, self.k, self.max_inputs = in_features, k, max_inputs
        self.register_buffer("inputs", torch.empty(0, in_features, device=device))

    def sample(self, seed: int = 0) -> UniformSample:
        """Answers a sample that keeps as many features as this does: for who gets them in batches."""
        return UniformSample(self.max_inputs, seed)

    @torch.no_grad()
    def replace(self, features: Tensor) -> None:
        """Puts these training features ``(n, D)`` in place of those that are there.

        Raises:
            ValueError: There are fewer than k, or more than are kept, or they have another width, or hold NaN or Inf.
        """
        if features.ndim != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"features have shape {tuple(features.shape)}: expected (n, {self.in_features}).")
        if len(features) > self.max_inputs:
            raise ValueError(f"{len(features)} features are more than max_inputs={self.max_inputs}: take a sample().")
        if len(features) < self.k:
            raise ValueError(
                f"k={self.k} is more than the {len(features)} inputs of the data: ask for fewer"
                " neighbours, or give more data."
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features hold NaN or Inf: look for the input or weight that made them.")
        self.inputs = _of_length_1(features).to(self.inputs.device)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Answers the distances ``(...)``, float64, of features ``(..., D)``; NaN where these hold NaN.

        Raises:
            RuntimeError: It has no training features.
        """
        known = self.inputs
        if len(known) == 0:
            raise RuntimeError("NearestNeighbors has no training features: call replace(features) first.")
        with torch.autocast(x.device.type, enabled=False):
            rows = _of_length_1(x.flatten(0, -2))
            at_once = max(1, _NUMBERS_AT_ONCE // max(len(known), self.in_features))
            answers = [self._distances(part, known) for part in rows.split(at_once)]
        return torch.cat(answers).view(x.shape[:-1])

    def all_at_once(self, x: Tensor) -> Tensor:
        """Answers the distances ``(B,)``, float64, of features ``(B, D)``, by all cosines ``(B, n)``: for a graph."""
        return self._distances(_of_length_1(x), self.inputs)

    def extra_repr(self) -> str:
        """Answers the module's line in ``print(model)``."""
        return f"{self.in_features}, k={self.k}, inputs={len(self.inputs)} of {self.max_inputs}"

    # ---------------------------------------------------------------- inside

    def _distances(self, rows: Tensor, known: Tensor) -> Tensor:
        candidates = min(self.k + _SPARE, len(known))
        nearest = (rows @ known.T).topk(candidates).indices  # (b, k + spare)
        distances = torch.stack(
            [torch.linalg.vector_norm(rows.double() - known[column].double(), dim=-1) for column in nearest.unbind(1)]
        )
        return distances.sort(0).values[self.k - 1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NearestNeighbors":
        """Moves to a device as any module, but stays in float32."""
        exact = self.inputs
        super()._apply(fn, recurse)
        moved = self.inputs
        self.inputs = moved.float() if exact.is_meta or moved.is_meta else exact.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}inputs")
        if saved is not None and saved.ndim == 2 and saved.shape[1] == self.in_features:
            self.inputs = self.inputs.new_empty(saved.shape)  # there may be others, or none yet
        super()._load_from_state_dict(state_dict, prefix, *args)


def _of_length_1(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1, eps=1e-12)
