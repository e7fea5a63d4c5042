"""The building blocks, usable on their own."""

from hesitant.nn.gaussian_logits import GaussianLogits, mean_field_logits
from hesitant.nn.gaussian_process import RandomFeatureGaussianProcess
from hesitant.nn.laplace import LaplaceCovariance
from hesitant.nn.posterior_factor import CovarianceError
from hesitant.nn.recording import GaussianProcessCall, recorded
from hesitant.nn.spectral_norm import SpectralBoundWarning, SpectralNormalizer
from hesitant.nn.weight_watch import WeightWatch

__all__ = [
    "CovarianceError",
    "GaussianLogits",
    "GaussianProcessCall",
    "LaplaceCovariance",
    "RandomFeatureGaussianProcess",
    "SpectralBoundWarning",
    "SpectralNormalizer",
    "WeightWatch",
    "mean_field_logits",
    "recorded",
]
