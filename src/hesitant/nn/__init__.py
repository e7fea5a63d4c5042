"""The building blocks, usable on their own."""

from hesitant.nn.gaussian_logits import GaussianLogits, mean_field_logits
from hesitant.nn.gaussian_process import RandomFeatureGaussianProcess
from hesitant.nn.laplace import LaplaceCovariance
from hesitant.nn.posterior_factor import CovarianceError
from hesitant.nn.spectral_norm import SpectralBoundWarning, SpectralNormalizer

__all__ = [
    "CovarianceError",
    "GaussianLogits",
    "LaplaceCovariance",
    "RandomFeatureGaussianProcess",
    "SpectralBoundWarning",
    "SpectralNormalizer",
    "mean_field_logits",
]
