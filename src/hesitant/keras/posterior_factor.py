"""The posterior covariance of the output weights, factored once in float64, and variances from it on any backend."""

from typing import Any, NamedTuple

import numpy as np

from keras import ops

# As in hesitant.nn: relative errors of a variance that may come of leaving directions out, and of rounding.
_TRUNCATION = {"float32": 1e-3, "float64": 1e-10}
_CANCELLATION = {"float32": 1e-4, "float64": 1e-10}
_ROUNDING = {"float32": 1e-6, "float64": 1e-10}
_NEGATIVE = 1e-6  # an eigenvalue down to this part of the largest one is rounding
_SMALL = 256  # so few features are cheaper multiplied than thought about
_FEW = 4  # of M directions one that the data informed: eigenvectors pay from there on
_SLICES = 4  # of a triangular factor: 10 of 16 blocks are multiplied
_RANKS = (16, 8, 4, 2)  # parts of M: a compiled program has a branch for each rank, so there are few

STALE = 0  # the level of a factor that is not of the present precision


class Factor(NamedTuple):
    """``C = ridge * P^-1``, either dense, ``C = F F^T``, or low-rank, ``C = null_variance (I - G G^T)``.

    Attributes:
        columns: F, triangular or not, or G and zeros after it: ``(M, M)``.
        level: Which of ``levels`` it is: how many columns of G count, the last one for a dense factor.
        null_variance: What a direction has that no data informed.
        least_variance: No unit vector has less.
    """

    columns: np.ndarray
    level: int
    null_variance: float
    least_variance: float


def levels(size: int) -> list[int]:
    """Answers how many columns count at each level: none that is known, some ranks, and all M of a dense factor."""
    return [0, *(max(1, size // part) for part in _RANKS), size]


def factor_of(data_precision: np.ndarray, ridge: float, prior: float, dtype: str) -> Factor:
    """Factors ``P = prior I + data_precision``, ``(M, M)``, in float64 for features of ``dtype``.

    Cholesky where it is accurate, eigenvectors where it is not or where the data informed so few directions that the
    factor is low-rank: a direction of eigenvalue ``s <= tolerance * prior`` is left out, which overstates its variance
    by the factor ``1 + s / prior`` at most, so the error is bounded relative to the variance.

    Raises:
        ValueError: The precision has a negative eigenvalue or is not finite.
    """
    data_precision = np.asarray(data_precision, dtype=np.float64)
    if not np.isfinite(data_precision).all():
        raise ValueError(
            "the precision matrix holds NaN or Inf: look for the inputs that made it, then call fit_covariance(model,"
            " data)."
        )
    if not data_precision.any():
        return Factor(np.zeros_like(data_precision), STALE + 1, ridge / prior, ridge / prior)
    factor = _cholesky(data_precision, ridge, prior, dtype)
    return _eigenvectors(data_precision, ridge, prior, dtype) if factor is None else factor


def _cholesky(data_precision: np.ndarray, ridge: float, prior: float, dtype: str) -> Factor | None:
    size = len(data_precision)
    most = float(np.linalg.norm(data_precision)) + prior  # Frobenius: not below the largest eigenvalue of P
    if not np.finfo(np.float64).eps * most < _ROUNDING[dtype] * prior:
        return None
    try:
        lower = np.linalg.cholesky(data_precision + prior * np.eye(size))
    except np.linalg.LinAlgError:
        return None
    columns = np.linalg.solve(lower, np.eye(size)).T
    informed = size - prior * float(np.square(columns).sum())
    cancels = np.finfo(dtype).eps * most > _CANCELLATION[dtype] * prior
    if size > _SMALL and not cancels and _FEW * informed < size:
        return None
    columns = np.triu(columns) * np.sqrt(ridge)
    return Factor(columns, len(levels(size)) - 1, ridge / prior, ridge / most)


def _eigenvectors(data_precision: np.ndarray, ridge: float, prior: float, dtype: str) -> Factor:
    size = len(data_precision)
    eigenvalues, eigenvectors = np.linalg.eigh(data_precision)
    largest = max(float(eigenvalues[-1]), 0.0)
    if float(eigenvalues[0]) < -_NEGATIVE * (prior + largest):
        raise ValueError(
            f"the precision matrix has a negative eigenvalue, {float(eigenvalues[0]):.3g}: it is no sum over data."
            " Call reset_covariance_matrix(), then fit_covariance(model, data)."
        )
    # An eigenvalue below the rounding of the largest may be any number, and counts as uninformed. A prior that decayed
    # has no better floor, and then the sum has gone through dtype.
    noise = 4 * float(np.finfo(np.float64 if prior >= ridge else dtype).eps) * largest
    eigenvalues = np.where(eigenvalues > noise, eigenvalues, 0.0)
    if prior < ridge:
        prior = max(prior, float(np.finfo(np.float64).tiny) + noise / 4)
    rank = int((eigenvalues > np.finfo(dtype).eps / 4 * prior).sum())
    if 2 * rank > size:  # accuracy is given up only where it buys speed
        rank = int((eigenvalues > _TRUNCATION[dtype] * prior).sum())
    cancels = np.finfo(dtype).eps * (largest + prior) > _CANCELLATION[dtype] * prior
    null_variance, least_variance = ridge / prior, ridge / (prior + largest)
    counts = levels(size)
    if cancels or size <= _SMALL or 2 * rank > size:
        dense = eigenvectors * np.sqrt(ridge / (eigenvalues + prior))
        # Triangular as Cholesky's: F Q with Q orthogonal is a factor, too.
        dense = np.linalg.qr(dense[::-1].T)[1].T[::-1, ::-1]
        return Factor(dense, len(counts) - 1, null_variance, least_variance)
    level = next(place for place, count in enumerate(counts) if count >= max(rank, 1))
    columns = np.zeros((size, size))
    order = np.argsort(eigenvalues)[::-1][: counts[level]]
    columns[:, : counts[level]] = eigenvectors[:, order] * np.sqrt(eigenvalues[order] / (eigenvalues[order] + prior))
    return Factor(columns, level, null_variance, least_variance)


# ---------------------------------------------------------------- on the backend


def variance_by(features: Any, columns: Any, rank: int, null_variance: Any, least_variance: Any) -> Any:
    """Answers ``phi^T C phi`` of each row of features ``(B, M)``, ``(B,)``, never negative."""
    size = columns.shape[0]
    if rank < size:
        squared = ops.sum(ops.square(features), axis=1)
        projected = ops.sum(ops.square(ops.matmul(features, columns[:, :rank])), axis=1)
        return ops.maximum(null_variance * (squared - projected), least_variance * squared)
    parts = [
        ops.sum(ops.square(ops.matmul(features[:, :end], columns[:end, begin:end])), axis=1)
        for begin, end in _slices(size)
    ]
    return sum(parts[1:], parts[0])


def covariance_by(features: Any, columns: Any, rank: int, null_variance: Any) -> Any:
    """Answers ``Phi C Phi^T`` of features ``(B, M)``, ``(B, B)``."""
    projected = ops.matmul(features, columns[:, :rank])
    of_pairs = ops.matmul(projected, ops.transpose(projected))
    if rank == columns.shape[0]:
        return of_pairs
    return null_variance * (ops.matmul(features, ops.transpose(features)) - of_pairs)


def whitened(features: Any, data_precision: Any, ridge: float, prior: Any) -> Any:
    """Answers ``sqrt(ridge) Phi L^-T`` of ``P = L L^T``, ``(B, M)``: for a precision that nobody has factored."""
    size = data_precision.shape[0]
    lower = ops.linalg.cholesky(data_precision + prior * ops.eye(size, dtype=data_precision.dtype))
    solved = ops.linalg.solve_triangular(lower, ops.transpose(features), lower=True)
    return ridge**0.5 * ops.transpose(solved)


def _slices(size: int) -> list[tuple[int, int]]:
    width = -(-size // _SLICES) if size > _SMALL else size
    return [(begin, min(begin + width, size)) for begin in range(0, size, width)]
