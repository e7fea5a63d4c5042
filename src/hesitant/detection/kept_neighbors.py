"""The distance to the nearest training inputs, of which a sample is kept."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hesitant.detection.fitted_tensors import of_shape
from hesitant.nn import NearestNeighbors


class NeighborDistance:
    """:class:`~hesitant.nn.NearestNeighbors` of at most ``max_inputs`` training features, the ``k``-th nearest."""

    def __init__(self, *, k: int = 1, max_inputs: int = 50_000) -> None:
        self._options: dict[str, Any] = {"k": k, "max_inputs": max_inputs}
        self._neighbors = NearestNeighbors(1, **self._options)  # here, to refuse what it refuses
        self.max_inputs: int | None = max_inputs

    def fit(self, features: Tensor, targets: Tensor | None) -> None:
        """Keeps features ``(N, D)``; the targets do not count."""
        self._neighbors = NearestNeighbors(features.shape[1], **self._options, device=features.device)
        self._neighbors.replace(features)

    def fitted(self) -> dict[str, Tensor]:
        """Answers what :meth:`take_fitted` takes."""
        return {"inputs": self._neighbors.inputs}

    def take_fitted(self, tensors: Mapping[str, Tensor], width: int) -> None:
        """Takes what another one was fitted to be, of features ``(N, width)``."""
        inputs = of_shape(tensors, "inputs", tensors["inputs"].shape[0], width, dtype=torch.float32)
        self._neighbors = NearestNeighbors(width, **self._options, device=inputs.device)
        self._neighbors.replace(inputs)  # refuses what are too few or too many
        self._neighbors.inputs = inputs  # to the bit

    def score(self, features: Tensor) -> Tensor:
        """Answers the distances ``(B,)`` of features ``(B, D)``, float64."""
        answer: Tensor = self._neighbors(features)
        return answer
