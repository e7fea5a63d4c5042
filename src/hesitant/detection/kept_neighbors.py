"""The distance to the nearest training inputs, of which a sample is kept."""

from typing import Any

from torch import Tensor

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

    def score(self, features: Tensor) -> Tensor:
        """Answers the distances ``(B,)`` of features ``(B, D)``, float64."""
        answer: Tensor = self._neighbors(features)
        return answer
