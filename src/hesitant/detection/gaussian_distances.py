"""Distances to classes as Gaussians see them: Mahalanobis', and Mahalanobis' relative to that of all the data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hesitant.detection.fitted_tensors import of_shape

_RIDGE = 1e-6  # on the diagonal of the scatter, as in pytorch-ood


class MahalanobisDistance:
    r"""Half the squared distance to the nearest class mean, in the metric of the covariance that the classes share.

    ``1/2 min_c (z - mu_c)^T S^-1 (z - mu_c)`` with the scatter ``S = sum_i (z_i - mu_{y_i}) (z_i - mu_{y_i})^T``: N
    times the covariance, so that scores are N times smaller, and ranked alike. Of the classes that the data have.

    pytorch-ood computes the same in float32, and inverts the scatter: where features do not span their space (fewer
    directions than numbers, as after a narrow layer) its scores are rounding errors, below 0 and ranked at random. Here
    it is float64, and a Cholesky factor is solved with; where the library is exact the two agree.

    Source: Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
    Attacks", NeurIPS, equation 2.
    """

    max_inputs: int | None = None

    def fit(self, features: Tensor, targets: Tensor) -> None:
        """Fits means and scatter to features ``(N, D)`` and classes ``(N,)``."""
        wide, (classes, members) = features.double(), targets.unique(return_inverse=True)
        counts = members.bincount(minlength=len(classes)).to(wide)
        self._origin = wide.mean(0)  # numbers near 0 lose fewer digits
        wide = wide - self._origin
        means = torch.zeros(len(classes), wide.shape[1], dtype=wide.dtype, device=wide.device)
        means = means.index_add_(0, members, wide) / counts.unsqueeze(1)  # (K, D)
        self._factor = _factor_of_scatter(wide - means[members])
        self._means = _whitened(means, self._factor)

    def fitted(self) -> dict[str, Tensor]:
        """Answers what :meth:`take_fitted` takes."""
        return {"origin": self._origin, "means": self._means, "factor": self._factor}

    def take_fitted(self, tensors: Mapping[str, Tensor], width: int) -> None:
        """Takes what another one was fitted to be, of features ``(N, width)``."""
        self._origin = of_shape(tensors, "origin", width)
        self._means = of_shape(tensors, "means", tensors["means"].shape[0], width)
        self._factor = of_shape(tensors, "factor", width, width)

    def score(self, features: Tensor) -> Tensor:
        """Answers the scores ``(B,)`` of features ``(B, D)``, float64."""
        return self._squared(features).square() / 2

    def _squared(self, features: Tensor) -> Tensor:
        """Answers the distance ``(B,)`` to the nearest class."""
        own = _whitened(features.double() - self._origin, self._factor)
        # Each difference is taken: |a|^2 - 2ab + |b|^2 would lose what is small beside the distance of the classes.
        return torch.cdist(own, self._means, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


class RelativeMahalanobisDistance(MahalanobisDistance):
    r"""The squared distance to the nearest class mean, less that to the mean of all data in the metric of all data.

    ``min_c (z - mu_c)^T S^-1 (z - mu_c) - (z - mu)^T S_0^-1 (z - mu)``: directions in which all inputs vary, known or
    not, cancel. As :class:`MahalanobisDistance` in the numbers.

    Source: Ren et al. 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
    https://arxiv.org/abs/2106.09022, equation 2.
    """

    def fit(self, features: Tensor, targets: Tensor) -> None:
        """Fits the classes, and the background to all features ``(N, D)``."""
        super().fit(features, targets)
        self._background = _factor_of_scatter(features.double() - self._origin)

    def fitted(self) -> dict[str, Tensor]:
        """Answers what :meth:`take_fitted` takes."""
        return {**super().fitted(), "background": self._background}

    def take_fitted(self, tensors: Mapping[str, Tensor], width: int) -> None:
        """Takes what another one was fitted to be, of features ``(N, width)``."""
        super().take_fitted(tensors, width)
        self._background = of_shape(tensors, "background", width, width)

    def score(self, features: Tensor) -> Tensor:
        """Answers the scores ``(B,)`` of features ``(B, D)``, float64; they may be negative."""
        own = _whitened(features.double() - self._origin, self._background)
        return self._squared(features).square() - own.square().sum(1)


def _factor_of_scatter(centred: Tensor) -> Tensor:
    """Answers the Cholesky factor ``(D, D)`` of the scatter of rows ``(N, D)`` float64, and a ridge."""
    scatter = centred.T @ centred
    # Rounding alone may make an eigenvalue that is 0 so much less.
    rounding = torch.finfo(scatter.dtype).eps * len(scatter) * float(scatter.diagonal().max())
    scatter.diagonal().add_(_RIDGE + rounding)
    factor: Tensor = torch.linalg.cholesky(scatter)
    return factor


def _whitened(rows: Tensor, factor: Tensor) -> Tensor:
    answer: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False).T.contiguous()
    return answer
