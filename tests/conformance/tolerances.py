"""Every tolerance of the conformance cases, in one place.

All are relative to the largest magnitude of the reference array, unless a comparison says otherwise. The float32
figures are those of "Suggested tolerances" and "Checked" in cases/README.md. Those are the distance of the reference
from a formula in float64, so that an implementation that rounds as often, in another order, may stand as far away on
the other side: hence a factor of 3. The float64 figures are the README's 1e-15, times 10 for sums of many terms.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerances:
    """What may differ between two correct implementations that round in another order."""

    epsilon: float  # of the dtype
    features: float
    logits: float
    precision: float
    precision_probe: float
    covariance_floor: float
    covariance_per_condition: float  # what solving with the precision magnifies rounding by
    mean_field: float
    spectral_dense: float
    spectral_dense_gradient: float
    spectral_conv: float
    sgd_training: float
    adam_training: float

    def features_of(self, argument: float) -> float:
        """Answers the tolerance of cos(argument): an argument far from zero is rounded before its cosine is taken."""
        return max(self.features, 4 * self.epsilon * argument)

    def covariance(self, condition: float) -> float:
        """Answers the tolerance of a covariance whose precision matrix has this condition number."""
        return max(self.covariance_floor, self.covariance_per_condition * condition)

    def condition(self, condition: float) -> float:
        """Answers the tolerance of a stored condition number, which judges tolerances and is not the reference's."""
        return max(1e-3, self.epsilon * condition)

    def poisson(self, exponent: np.ndarray) -> np.ndarray:
        """Answers the elementwise tolerance of f * exp(exponent): exp turns absolute rounding into relative."""
        return self.mean_field * np.maximum(1.0, exponent)


_ORDER = 3  # another order of summation

FLOAT32 = Tolerances(
    epsilon=2**-23,
    features=_ORDER * 1.5e-6,
    logits=_ORDER * 6e-7,
    precision=_ORDER * 4e-7,
    precision_probe=_ORDER * 2e-6,
    covariance_floor=_ORDER * 5e-7,  # condition below 300: README
    covariance_per_condition=_ORDER * 6e-9,  # 1.2e-5 at 2e3 and 6e-4 at 1e5: README
    mean_field=_ORDER * 6e-7,
    spectral_dense=_ORDER * 2.4e-7,
    spectral_dense_gradient=_ORDER * 5e-7,
    spectral_conv=_ORDER * 1.6e-6,
    sgd_training=_ORDER * 6e-7,
    adam_training=2e-5,
)

FLOAT64 = Tolerances(
    epsilon=2**-52,
    features=1e-14,
    logits=1e-14,
    precision=1e-14,
    precision_probe=1e-14,
    covariance_floor=1e-14,
    covariance_per_condition=2**-52,  # the backward error of one inversion; README: a tenth of it, at 2e3
    mean_field=1e-14,
    spectral_dense=1e-14,
    spectral_dense_gradient=1e-14,
    spectral_conv=1e-14,
    sgd_training=1e-14,
    adam_training=2e-5,  # the README's, in float64 too
)

DERIVED_SIGMA = 1e-6  # an SVD, not the reference: singular values of stored float32 kernels
DERIVED_GAP = 1e-3  # a difference of two stored arrays, which no implementation enters into
