"""The posterior covariance of the output weights, factored so that a variance costs B numbers and few operations."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Relative errors of a variance that may come of leaving directions out (a thousandth is the worst an input can see, in
# directions that the data hardly informed), and of the rounding of a low-rank subtraction.
_TRUNCATION = {torch.float32: 1e-3, torch.float64: 1e-10}
_CANCELLATION = {torch.float32: 1e-4, torch.float64: 1e-10}
_SMALL = 256  # so few features are cheaper multiplied than thought about


class CovarianceError(RuntimeError):
    """The covariance is not fitted, or no longer belongs to the weights or the data."""


@dataclass(frozen=True)
class PosteriorFactor:
    """``C = ridge * P^-1``, either dense, ``C = F F^T``, or low-rank, ``C = null_variance (I - G G^T)``.

    G holds the directions that the data informed, each scaled by the root of its gain ``s / (s + prior)``; all others
    have the prior's variance, so that one number stands for them.
    """

    columns: Tensor  # F (M, M), or G (M, r)
    gains: Tensor | None  # None of a dense factor; (r,) in (0, 1) of a low-rank one
    null_variance: Tensor  # ()
    least_variance: Tensor  # (), of a unit vector in the direction that the data informed most

    @staticmethod
    def of(data_precision: Tensor, ridge: float, prior: float, dtype: torch.dtype) -> "PosteriorFactor":
        """Factors ``P = prior * I + data_precision``, ``(M, M)`` float64, for features of ``dtype``.

        A direction of eigenvalue s may be left out where ``s <= tolerance * prior``: taking it as uninformed
        overstates its variance by the factor ``1 + s / prior``, so the error is bounded relative to the variance, at
        any ridge. The subtraction in ``I - G G^T`` loses ``eps * (s_max + prior) / prior`` of the variance; where that
        passes the tolerance (a small ridge) the factor is dense. Eigenvectors rather than a Cholesky factor: they show
        which directions those are, the rounding of ``|F^T phi|`` grows with the root of the condition number only, and
        a singular precision is no special case.

        Raises:
            CovarianceError: The data precision has a negative eigenvalue (data taken out that was never added).
        """
        eigenvalues, eigenvectors = torch.linalg.eigh(data_precision)
        largest = max(float(eigenvalues[-1]), 0.0)
        if float(eigenvalues[0]) < -1e-6 * (prior + largest):
            raise CovarianceError(
                f"the precision matrix has a negative eigenvalue, {float(eigenvalues[0]):.3g}: data was taken out that"
                " had not been added. Call reset_covariance() and fit it again."
            )
        precision = torch.finfo(torch.float64)
        # An eigenvalue below the rounding of the largest may be any number: taken as uninformed, for else rounding
        # would count as data, and a direction that was never seen as known. A prior that decayed has no better floor.
        noise = 4 * precision.eps * largest
        eigenvalues = torch.where(eigenvalues > noise, eigenvalues, torch.zeros_like(eigenvalues))
        if prior < ridge:
            prior = max(prior, precision.tiny + noise / 4)
        size = len(eigenvalues)
        rank = int((eigenvalues > torch.finfo(dtype).eps / 4 * prior).sum())
        if 2 * rank > size:  # accuracy is given up only where it buys speed
            rank = int((eigenvalues > _TRUNCATION[dtype] * prior).sum())
        cancels = torch.finfo(dtype).eps * (largest + prior) > _CANCELLATION[dtype] * prior
        null_variance = torch.tensor(ridge / prior, dtype=dtype, device=eigenvalues.device)
        least_variance = torch.tensor(ridge / (prior + largest), dtype=dtype, device=eigenvalues.device)
        if cancels or size <= _SMALL or 2 * rank >= size:
            dense = eigenvectors * (ridge / (eigenvalues + prior)).sqrt()
            return PosteriorFactor(dense.to(dtype), None, null_variance, least_variance)
        gains = eigenvalues[size - rank :] / (eigenvalues[size - rank :] + prior)
        columns = eigenvectors[:, size - rank :] * gains.sqrt()
        return PosteriorFactor(columns.to(dtype).contiguous(), gains.to(dtype), null_variance, least_variance)

    def to(self, device: torch.device) -> "PosteriorFactor":
        """Answers the factor on a device."""
        gains = None if self.gains is None else self.gains.to(device)
        return PosteriorFactor(
            self.columns.to(device), gains, self.null_variance.to(device), self.least_variance.to(device)
        )

    def variance(self, features: Tensor) -> Tensor:
        """Answers ``phi^T C phi`` of each row of features ``(B, M)``, ``(B,)``, never negative."""
        projected = torch.linalg.vector_norm(features @ self.columns, dim=1).square()
        if self.gains is None:
            return projected
        squared = torch.linalg.vector_norm(features, dim=1).square()
        return torch.maximum(self.null_variance * (squared - projected), self.least_variance * squared)

    def covariance(self, features: Tensor) -> Tensor:
        """Answers ``Phi C Phi^T`` of features ``(B, M)``, ``(B, B)``."""
        projected = features @ self.columns
        if self.gains is None:
            return projected @ projected.T
        return self.null_variance * (features @ features.T - projected @ projected.T)

    def weight_noise(self, noise: Tensor) -> Tensor:
        """Turns white noise ``(..., M, C)`` into draws from N(0, C), ``(..., M, C)``."""
        if self.gains is None:
            return self.columns @ noise
        # The symmetric root of I - G G^T is I - G diag(1 / (1 + sqrt(1 - gain))) G^T.
        shrink = 1 / (1 + (1 - self.gains).sqrt())
        projected = (self.columns.T @ noise) * shrink.unsqueeze(-1)
        return self.null_variance.sqrt() * (noise - self.columns @ projected)
