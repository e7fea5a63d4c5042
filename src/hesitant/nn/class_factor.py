"""The posterior covariance of the output weights of each class, where each has its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesitant.nn.class_sums import SMALLEST, class_parts
from hesitant.nn.posterior_factor import PosteriorFactor, cancels, negative_eigenvalue_error

_COLUMNS_AT_ONCE = 2**13  # of all classes, that features are multiplied with


@dataclass(frozen=True)
class ClassFactor:
    """``C_c = ridge * P_c^-1`` of each class: ``F_c F_c^T``, or of low rank, ``null_variance (I - G_c G_c^T)``."""

    columns: Tensor  # F (M, C, M), or G (M, C, r)
    gains: Tensor | None  # None of dense ones; (C, r) in [0, 1) of low-rank ones
    null_variance: Tensor  # ()
    least_variance: Tensor  # (C,), no unit vector has less
    overstatement: Tensor  # (C,), the factor by which a variance may be too large at most

    @staticmethod
    def of(data_precision: Tensor, ridge: float, prior: float, dtype: torch.dtype) -> "ClassFactor":
        """Factors ``P_c = prior * I + data_precision[c]``, of ``(C, M, M)`` float64, for features of ``dtype``.

        Raises:
            CovarianceError: A data precision has a negative eigenvalue.
        """
        num_classes, size, _ = data_precision.shape
        columns = torch.empty(size, num_classes, size, dtype=dtype, device=data_precision.device)
        unit = torch.eye(size, dtype=dtype, device=data_precision.device)
        factors = []
        for place, of_class in enumerate(data_precision):
            factor = PosteriorFactor.of(of_class, ridge, prior, dtype)
            columns[:, place] = factor.weight_noise(unit)
            factors.append(factor.least_variance)
        least = torch.stack(factors)
        return ClassFactor(columns, None, least.new_tensor(ridge / prior), least, torch.ones_like(least))

    @staticmethod
    def of_sketches(
        sketches: Tensor, directions: Tensor, scale: float, ridge: float, prior: float, dtype: torch.dtype
    ) -> "ClassFactor":
        """Factors ``P_c = prior * I + A'_c`` with A' the Nystroem approximation of the data's part A by its sketch.

        ``A' = Y (D^T Y)^+ Y^T`` with ``Y = A D`` never exceeds A: ``A - t I <= A' <= A`` with t the trace of what is
        missing. A variance is never understated, and overstated by ``1 + t / prior`` at most.

        Args:
            sketches: ``(M + 1, C, r + 1)`` float64, as :func:`~hesitant.nn.class_sums.add_class_sketches` makes them.
            directions: D, ``(M, r)`` float64, orthonormal.
            scale: What A is multiplied by.
            ridge: As of :meth:`of`.
            prior: As of :meth:`of`.
            dtype: Of the features.

        Source: Tropp, Yurtsever, Udell, Cevher, "Fixed-Rank Approximation of a Positive-Semidefinite Matrix from
        Streaming Data", NeurIPS 2017, equation 2.

        Raises:
            CovarianceError: A data precision has a negative eigenvalue along D.
        """
        size, rank = directions.shape
        num_classes = sketches.shape[1]
        parts, gains, missing, largest = [], [], [], []
        for begin, end in class_parts(num_classes, size * rank):
            images = sketches[:-1, begin:end, :-1].movedim(1, 0) * scale  # (c, M, r)
            within = directions.T @ images
            values, vectors = torch.linalg.eigh((within + within.mT) / 2)
            top = values[:, -1:].clamp_min(0)
            if bool((values[:, 0] < -1e-6 * (prior + top[:, 0])).any()):
                raise negative_eigenvalue_error(float(values.min()))
            kept = values > SMALLEST * top
            roots = torch.where(kept, values, 1).sqrt()
            factor = images @ (vectors * torch.where(kept, 1 / roots, 0).unsqueeze(1))  # A' = factor factor^T
            squares, turned = torch.linalg.eigh(factor.mT @ factor)
            squares = squares.clamp_min(0)
            trace = sketches[-1, begin:end, -1] * scale
            missing.append((trace - squares.sum(1)).clamp_min(0))
            largest.append(squares[:, -1])
            parts.append((factor @ (turned / (squares + prior).sqrt().unsqueeze(1))).movedim(0, 1))
            gains.append(squares / (squares + prior))
        most = torch.cat(largest) + prior
        exact = torch.float64 if cancels(float(most.max()), prior, dtype) else dtype
        return ClassFactor(
            torch.cat([part.to(exact) for part in parts], 1).contiguous(),
            torch.cat(gains).to(exact),
            most.new_tensor(ridge / prior, dtype=exact),
            (ridge / (most + torch.cat(missing))).to(exact),
            1 + torch.cat(missing) / prior,
        )

    def to(self, device: torch.device) -> "ClassFactor":
        """Answers the factor on a device."""
        gains = None if self.gains is None else self.gains.to(device)
        return ClassFactor(
            self.columns.to(device),
            gains,
            self.null_variance.to(device),
            self.least_variance.to(device),
            self.overstatement.to(device),
        )

    def variance(self, features: Tensor) -> Tensor:
        """Answers ``phi^T C_c phi`` of each row of features ``(B, M)`` and each class, ``(B, C)``, never negative."""
        dtype, features = features.dtype, features.to(self.columns.dtype)
        size, _, width = self.columns.shape
        columns = self.columns.view(size, -1).split(max(1, _COLUMNS_AT_ONCE // width) * width, 1)
        projected = torch.cat(
            [(features @ part).unflatten(1, (-1, width)).square().sum(-1) for part in columns], 1
        )  # (B, C)
        if self.gains is None:
            return projected.to(dtype)
        squared = features.square().sum(1, keepdim=True)
        return torch.maximum(self.null_variance * (squared - projected), self.least_variance * squared).to(dtype)

    def covariance(self, features: Tensor) -> Tensor:
        """Answers ``Phi C_c Phi^T`` of features ``(B, M)``, ``(C, B, B)``."""
        dtype, features = features.dtype, features.to(self.columns.dtype)
        projected = torch.einsum("bm,mck->cbk", features, self.columns)
        products = projected @ projected.mT
        if self.gains is not None:
            products = self.null_variance * (features @ features.T - products)
        return products.to(dtype)

    def weight_noise(self, noise: Tensor) -> Tensor:
        """Turns white noise ``(S, M, C)`` into draws from N(0, C_c) of each class, ``(S, M, C)``."""
        dtype, noise = noise.dtype, noise.to(self.columns.dtype)
        if self.gains is None:
            return torch.einsum("mck,skc->smc", self.columns, noise).to(dtype)
        # The symmetric root of I - G G^T is I - G diag(1 / (1 + sqrt(1 - gain))) G^T.
        shrink = 1 / (1 + (1 - self.gains).sqrt())
        projected = torch.einsum("mck,smc->sck", self.columns, noise) * shrink
        drawn = noise - torch.einsum("mck,sck->smc", self.columns, projected)
        return (math.sqrt(float(self.null_variance)) * drawn).to(dtype)
