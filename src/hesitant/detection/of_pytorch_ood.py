"""Detectors of the package pytorch-ood, given features ``(B, D)`` or logits ``(B, C)`` in parts of bounded size."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hesitant.detection.fitted_tensors import of_shape

_NUMBERS_AT_ONCE = 2**23  # float64, 64 MiB


def library() -> ModuleType:
    """Answers ``pytorch_ood.detector``.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import pytorch_ood.detector
    except ImportError as error:
        raise ImportError(
            "this detector is that of the package pytorch-ood: pip install 'hesitant[detection]'. 'knn', 'mahalanobis'"
            " and 'relative_mahalanobis' need no package."
        ) from error
    return pytorch_ood.detector


class LinearHead:
    """The classifier behind the features: ``logits = features W^T + b``, two of them for a single one.

    A single logit ``z`` is ``[-z/2, z/2]``, so that neither class has less evidence than the other by convention.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float()
        single = len(weight) == 1
        self.weight = torch.cat([-weight, weight]) / 2 if single else weight  # (C, D)
        self.bias = torch.cat([-bias, bias]) / 2 if single else bias  # (C,)

    def __call__(self, features: Tensor) -> Tensor:
        """Answers the logits ``(B, C)``."""
        return features @ self.weight.T + self.bias


class VirtualLogit:
    r"""ViM: the part of the features outside the principal subspace of the training data, beside the energy.

    ``alpha |P (z + W^+ b)| - log sum_c exp f_c`` with P onto the directions of least variance, of which there are
    ``D - d``, and alpha what makes the first as large as the largest logits.

    Source: Wang et al. 2022, "ViM: Out-of-Distribution with Virtual-logit Matching", CVPR.
    """

    max_inputs: int | None = None

    def __init__(self, head: LinearHead, *, d: int | None = None) -> None:
        width = head.weight.shape[1]
        if width < 2:
            raise ValueError("vim needs features of at least 2 numbers, and gets 1: detect by 'energy'.")
        if d is not None and (not isinstance(d, int) or isinstance(d, bool) or not 0 < d < width):
            raise ValueError(f"d={d!r} is no integer from 1 to {width - 1}: it is the dimension of the subspace.")
        by_width = 1000 if width >= 2048 else 512 if width >= 768 else width // 2  # as the paper's code chooses
        self._detector = library().ViM(None, d=by_width if d is None else d, w=head.weight, b=head.bias)

    def fit(self, features: Tensor, targets: Tensor | None) -> None:
        """Finds the subspace of features ``(N, D)``; the targets do not count."""
        self._detector.fit_features(features, torch.zeros(len(features), dtype=torch.long))
        if not 0 < abs(self._detector.alpha) < torch.inf:
            raise ValueError(
                f"vim found no part of the {len(features)} features outside their {self._detector.d} principal"
                " directions: give more data, a smaller d, or detect by 'knn'."
            )

    def fitted(self) -> dict[str, Tensor]:
        """Answers what :meth:`take_fitted` takes."""
        alpha = torch.tensor(self._detector.alpha, dtype=torch.float64)
        return {"subspace": self._detector.principal_subspace, "alpha": alpha}

    def take_fitted(self, tensors: Mapping[str, Tensor], width: int) -> None:
        """Takes what another one was fitted to be, of features ``(N, width)``."""
        shape = width, width - self._detector.d
        self._detector.principal_subspace = of_shape(tensors, "subspace", *shape, dtype=torch.float32)
        self._detector.alpha = of_shape(tensors, "alpha").item()

    def score(self, features: Tensor) -> Tensor:
        """Answers the scores ``(B,)`` of features ``(B, D)``."""
        return in_chunks(self._detector.predict_features, features, features.shape[1])


class ScaledEnergy:
    r"""SCALE: the energy after the features are multiplied by ``exp(s_1 / s_2)``.

    ``s_1`` is their sum and ``s_2`` that of their largest, a share ``1 - percentile``. For features that are not
    negative, as after a ReLU.

    Source: Xu et al. 2024, "Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement", ICLR.
    """

    max_inputs: int | None = None

    def __init__(self, head: LinearHead, *, percentile: float = 0.65) -> None:
        width = head.weight.shape[1]
        if not 0 <= percentile < 1 or round(width * percentile) == width:
            raise ValueError(
                f"percentile={percentile!r} leaves none of {width} features: expected a share in [0, 1) of those that"
                " are not summed."
            )
        self._head = head
        self._detector = library().SCALE(None, head=lambda maps: head(maps.flatten(1)), percentile=percentile)

    def fit(self, features: Tensor, targets: Tensor | None) -> None:
        """Does nothing: an input is scored by its own features alone."""

    def fitted(self) -> dict[str, Tensor]:
        """Answers nothing likewise."""
        return {}

    def take_fitted(self, tensors: Mapping[str, Tensor], width: int) -> None:
        """Takes nothing."""

    def score(self, features: Tensor) -> Tensor:
        """Answers the scores ``(B,)`` of features ``(B, D)``.

        Raises:
            ValueError: A feature is negative.
        """
        features = features.float()
        if bool((features < 0).any()):
            raise ValueError(
                f"scale needs features that are not negative, as after a ReLU, and the smallest is"
                f" {float(features.min()):.4g}: detect by 'knn' or 'relative_mahalanobis'."
            )
        scores = in_chunks(
            lambda part: self._detector.predict_feature_maps(part[:, :, None, None]), features, features.shape[1]
        )
        nothing = ~features.any(1)  # 0 / 0 there, and no factor changes zeros
        return torch.where(nothing, -self._head.bias.double().logsumexp(0), scores)


class ClassDensities:
    r"""DDU: how little density the features have under one Gaussian for each class.

    ``-log sum_c pi_c N(z; mu_c, Sigma_c)`` with the share ``pi_c``, mean and covariance of each class, in float64. On
    the diagonal of all covariances is the smallest of 0 and the powers of ten from which on they can be factored, as in
    the authors' code. A class of fewer inputs than features has a covariance that is not there in most directions, and
    the density along these is what that number makes of it. Memory: ``8 K D^2`` bytes for K classes. The features are
    to be those of a network with bounded layers (:class:`~hesitant.nn.SpectralNormalizer`).

    Source: Mukhoti et al. 2023, "Deep Deterministic Uncertainty: A New Simple Baseline", CVPR.
    """

    max_inputs: int | None = None

    def __init__(self) -> None:
        library()

    def fit(self, features: Tensor, targets: Tensor) -> None:
        """Fits the Gaussians to features ``(N, D)`` and classes ``(N,)``.

        Raises:
            ValueError: A class has one input alone, or the covariances are not finite.
        """
        counts = targets.bincount()
        if bool((counts == 1).any()):
            raise ValueError(
                f"class {int((counts == 1).nonzero()[0])} has one input alone, which has no covariance: give more data,"
                " or detect by 'mahalanobis', whose covariance the classes share."
            )
        self._numbers = int((counts > 0).sum()) * features.shape[1]
        for jitter in (0.0, *(10.0**power for power in range(-30, 1))):
            self._detector = library().GMM(None, reg=jitter)
            try:
                self._detector.fit_features(features, targets)
            except ValueError:  # not positive definite
                continue
            return
        raise ValueError("no covariance of a class can be factored: look at the size of the features.")

    def fitted(self) -> dict[str, Tensor]:
        """Refuses to answer: what it was fitted to be is the package's own affair.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "a 'ddu' detector cannot be saved, for pytorch-ood does not tell what it was fitted to be: save the method"
            " and fit again after loading, or detect by 'relative_mahalanobis', which can."
        )

    def take_fitted(self, tensors: Mapping[str, Tensor], width: int) -> None:
        """Refuses to take anything, for the same reason.

        Raises:
            TypeError: Always.
        """
        self.fitted()

    def score(self, features: Tensor) -> Tensor:
        """Answers the scores ``(B,)`` of features ``(B, D)``, float64."""
        return in_chunks(self._detector.predict_features, features, self._numbers)


def energy() -> Callable[[Tensor], Tensor]:
    """Answers what scores logits ``(B, C)`` by ``-log sum_c exp f_c`` (Liu et al. 2020, NeurIPS)."""
    return _of_logits(library().EnergyBased(None))


def gen(*, gamma: float = 0.1, M: int | None = None) -> Callable[[Tensor], Tensor]:
    """Answers what scores logits ``(B, C)`` by ``mean_c (p_c (1 - p_c))^gamma`` of the M largest probabilities.

    Source: Liu et al. 2023, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR.
    """
    if isinstance(gamma, (str, bool)) or not 0 < gamma < 1:
        raise ValueError(f"gamma={gamma!r} is not in (0, 1): the smaller, the more do small probabilities count.")
    if M is not None and (not isinstance(M, int) or isinstance(M, bool) or M < 1):
        raise ValueError(f"M={M!r} is no integer of at least 1: it counts the classes; None takes all.")
    return _of_logits(library().GEN(None, gamma=gamma, M=M))


def max_logit() -> Callable[[Tensor], Tensor]:
    """Answers what scores logits ``(B, C)`` by ``-max_c f_c`` (Hendrycks et al. 2022, ICML)."""
    return _of_logits(library().MaxLogit(None))


def max_softmax() -> Callable[[Tensor], Tensor]:
    """Answers what scores logits ``(B, C)`` by ``-max_c p_c`` (Hendrycks and Gimpel 2017, ICLR)."""
    return _of_logits(library().MaxSoftmax(None))


def _of_logits(detector: Any) -> Callable[[Tensor], Tensor]:
    score: Callable[[Tensor], Tensor] = detector.predict_logits
    return score


def in_chunks(score: Callable[[Tensor], Tensor], rows: Tensor, numbers: int) -> Tensor:
    """Answers the scores ``(B,)`` float64 of rows, so many at a time that each takes so many numbers of memory."""
    parts = rows.split(max(1, _NUMBERS_AT_ONCE // numbers))
    return torch.cat([score(part).to(rows.device).double() for part in parts])
