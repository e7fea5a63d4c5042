"""The posterior covariance of the output weights, factored so that a variance costs B numbers and few operations."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative errors of a variance that may come of leaving directions out (a thousandth is the worst an input can see, in
# directions that the data hardly informed), of the rounding of a low-rank subtraction, and of a Cholesky factor's.
_TRUNCATION = {torch.float32: 1e-3, torch.float64: 1e-10}
_CANCELLATION = {torch.float32: 1e-4, torch.float64: 1e-10}
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-10}
_NEGATIVE = 1e-6  # an eigenvalue down to this part of the largest one is rounding
_SMALL = 256  # so few features are cheaper multiplied than thought about
_FEW = 4  # of M directions one that the data informed: eigenvectors pay with each prediction from there on
_SLICES = 4  # of a triangular factor: 10 of 16 blocks are multiplied


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
    least_variance: Tensor  # (), no unit vector has less
    triangular: bool = False  # whether F is zero below its diagonal

    @staticmethod
    def of(data_precision: Tensor, ridge: float, prior: float, dtype: torch.dtype) -> "PosteriorFactor":
        """Factors ``P = prior * I + data_precision``, ``(M, M)`` float64, for features of ``dtype``.

        Cholesky where it is accurate: its rounding is ``eps * (s_max + prior) / prior`` of a variance, with float64's
        eps and s_max the largest eigenvalue of the data's part. Eigenvectors, at ten times the cost, where it is not,
        or where they make up for it with each prediction: the data informed so few directions that the factor is
        low-rank.

        Raises:
            CovarianceError: The data precision has a negative eigenvalue (data taken out that was never added).
        """
        factor = _cholesky(data_precision, ridge, prior, dtype)
        return _eigenvectors(data_precision, ridge, prior, dtype) if factor is None else factor

    def to(self, device: torch.device) -> "PosteriorFactor":
        """Answers the factor on a device."""
        gains = None if self.gains is None else self.gains.to(device)
        return PosteriorFactor(
            self.columns.to(device),
            gains,
            self.null_variance.to(device),
            self.least_variance.to(device),
            self.triangular,
        )

    def variance(self, features: Tensor) -> Tensor:
        """Answers ``phi^T C phi`` of each row of features ``(B, M)``, ``(B,)``, never negative."""
        if self.triangular:
            parts = [features[:, :end] @ self.columns[:end, begin:end] for begin, end in _slices(len(self.columns))]
            return torch.stack([torch.linalg.vector_norm(part, dim=1).square() for part in parts]).sum(0)
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


def cancels(most: float, prior: float, dtype: torch.dtype) -> bool:
    """Answers whether a low-rank subtraction loses too much, with ``most`` the largest eigenvalue of P."""
    return torch.finfo(dtype).eps * most > _CANCELLATION[dtype] * prior


def negative_eigenvalue_error(eigenvalue: float) -> CovarianceError:
    """Answers the error of a precision that is none."""
    return CovarianceError(
        f"the precision matrix has a negative eigenvalue, {eigenvalue:.3g}: data was taken out that had not been"
        " added. Call reset_covariance() and fit it again."
    )


def _cholesky(data_precision: Tensor, ridge: float, prior: float, dtype: torch.dtype) -> PosteriorFactor | None:
    """Answers a dense factor, or None where Cholesky is not accurate, P not positive, or a low-rank one pays.

    Of ``P = L L^T`` it is ``F = sqrt(ridge) L^-T``. The data informed as many directions as the sum of all gains tells,
    ``M - prior trace(P^-1)``.
    """
    size = len(data_precision)
    most = float(torch.linalg.matrix_norm(data_precision)) + prior  # Frobenius: not below the largest eigenvalue of P
    if not torch.finfo(torch.float64).eps * most < _ROUNDING[dtype] * prior:
        return None
    # P may be positive where more was taken out than was added: the data's part alone must be so, but for rounding.
    lower = _lower(data_precision, _NEGATIVE * (prior + float(data_precision.diagonal().amax())))
    lower = None if lower is None else _lower(data_precision, prior)
    if lower is None:
        return None
    columns = torch.eye(size, dtype=lower.dtype, device=lower.device)
    for begin, end in _slices(size):  # what is above the diagonal stays zero
        columns[begin:, begin:end] = torch.linalg.solve_triangular(
            lower[begin:, begin:], columns[begin:, begin:end], upper=False
        )
    columns = columns.mT
    informed = size - prior * float(columns.square().sum())
    if size > _SMALL and not cancels(most, prior, dtype) and _FEW * informed < size:
        return None
    columns = (columns * math.sqrt(ridge)).to(dtype).contiguous()
    null_variance, least_variance = columns.new_tensor(ridge / prior), columns.new_tensor(ridge / most)
    return PosteriorFactor(columns, None, null_variance, least_variance, triangular=True)


def _lower(matrix: Tensor, added: float) -> Tensor | None:
    """Answers the Cholesky factor of ``matrix + added I``, or None if that is not positive."""
    shifted = matrix.clone()
    shifted.diagonal().add_(added)
    lower, info = torch.linalg.cholesky_ex(shifted)
    return lower if int(info) == 0 else None


def _slices(size: int) -> Iterator[tuple[int, int]]:
    width = -(-size // _SLICES) if size > _SMALL else size
    for begin in range(0, size, width):
        yield begin, min(begin + width, size)


def _eigenvectors(data_precision: Tensor, ridge: float, prior: float, dtype: torch.dtype) -> PosteriorFactor:
    """Answers a factor by the eigenvalues s of the data's part, low-rank where that is accurate and pays.

    A direction of eigenvalue s may be left out where ``s <= tolerance * prior``: taking it as uninformed overstates
    its variance by the factor ``1 + s / prior``, so the error is bounded relative to the variance, at any ridge. The
    subtraction in ``I - G G^T`` loses ``eps * (s_max + prior) / prior`` of the variance; where that passes the
    tolerance (a small ridge) the factor is dense. Eigenvectors show which directions those are, the rounding of
    ``|F^T phi|`` grows with the root of the condition number only, and a singular precision is no special case.

    Raises:
        CovarianceError: The data precision has a negative eigenvalue.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(data_precision)
    largest = max(float(eigenvalues[-1]), 0.0)
    if float(eigenvalues[0]) < -_NEGATIVE * (prior + largest):
        raise negative_eigenvalue_error(float(eigenvalues[0]))
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
    null_variance = torch.tensor(ridge / prior, dtype=dtype, device=eigenvalues.device)
    least_variance = torch.tensor(ridge / (prior + largest), dtype=dtype, device=eigenvalues.device)
    if cancels(largest + prior, prior, dtype) or size <= _SMALL or 2 * rank >= size:
        dense = eigenvectors * (ridge / (eigenvalues + prior)).sqrt()
        return PosteriorFactor(dense.to(dtype), None, null_variance, least_variance)
    gains = eigenvalues[size - rank :] / (eigenvalues[size - rank :] + prior)
    columns = eigenvectors[:, size - rank :] * gains.sqrt()
    return PosteriorFactor(columns.to(dtype).contiguous(), gains.to(dtype), null_variance, least_variance)
