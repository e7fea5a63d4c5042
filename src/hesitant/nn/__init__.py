"""Building blocks, usable on their own: a Gaussian process layer, spectral normalisation, networks of the literature.

``RandomFeatureGaussianProcess`` is a layer with a Laplace approximation of its posterior (``laplace``,
``posterior_factor``), which sees when its weights have moved (``weight_watch``); ``SpectralNormalizer`` projects
weights (``bounded_layers``, ``power_iteration``); the networks are in ``models``. ``methods/sngp.py`` puts them
together.
Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.nn.compilation import exporting as exporting
from hesitant.nn.compilation import run_eagerly as run_eagerly
from hesitant.nn.gaussian_logits import GaussianLogits, mean_field_logits
from hesitant.nn.gaussian_process import RandomFeatureGaussianProcess
from hesitant.nn.laplace import CovarianceState as CovarianceState
from hesitant.nn.laplace import LaplaceCovariance
from hesitant.nn.models import DeepResNet as DeepResNet
from hesitant.nn.posterior_factor import CovarianceError
from hesitant.nn.recording import GaussianProcessCall, recorded
from hesitant.nn.spectral_norm import ConvNorm as ConvNorm
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
