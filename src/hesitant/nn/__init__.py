"""Building blocks, usable on their own: a Gaussian process layer, spectral normalisation, networks of the literature.

``RandomFeatureGaussianProcess`` is a layer with a Laplace approximation of its posterior (``laplace``,
``posterior_factor``; of each class ``class_sums``, ``class_factor``), which sees when its weights have moved
(``weight_watch``); ``SpectralNormalizer`` projects weights (``bounded_layers``, ``layer_selection``, ``initial_norms``,
``power_iteration``); ``NearestNeighbors`` tells how far features are from those of the training data, of which a
``UniformSample`` keeps some; ``holds_penalty`` tells whether a loss has the layer's ``penalty``; the networks are in
``models``. ``methods/sngp.py`` puts them together. Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.nn.bit_sum import bit_sum as bit_sum
from hesitant.nn.bound_table import BoundTable, LayerBound
from hesitant.nn.bound_warnings import SpectralBoundWarning
from hesitant.nn.compilation import exporting as exporting
from hesitant.nn.compilation import run_eagerly as run_eagerly
from hesitant.nn.gaussian_logits import GaussianLogits, mean_field_logits
from hesitant.nn.gaussian_process import RandomFeatureGaussianProcess
from hesitant.nn.laplace import CovarianceState as CovarianceState
from hesitant.nn.laplace import LaplaceCovariance
from hesitant.nn.layer_operator import ConvNorm as ConvNorm
from hesitant.nn.layer_selection import LayerSelection as LayerSelection
from hesitant.nn.likelihood import MEAN_FIELD as MEAN_FIELD
from hesitant.nn.models import DeepResNet as DeepResNet
from hesitant.nn.nearest_neighbors import NearestNeighbors
from hesitant.nn.penalty import holds_penalty as holds_penalty
from hesitant.nn.posterior_factor import CovarianceError
from hesitant.nn.recording import GaussianProcessCall, recorded
from hesitant.nn.spectral_norm import NormBound as NormBound
from hesitant.nn.spectral_norm import SpectralNormalizer
from hesitant.nn.uniform_sample import UniformSample
from hesitant.nn.weight_watch import WeightsLoaded as WeightsLoaded
from hesitant.nn.weight_watch import WeightWatch

__all__ = [
    "BoundTable",
    "CovarianceError",
    "GaussianLogits",
    "GaussianProcessCall",
    "LaplaceCovariance",
    "LayerBound",
    "NearestNeighbors",
    "RandomFeatureGaussianProcess",
    "SpectralBoundWarning",
    "SpectralNormalizer",
    "UniformSample",
    "WeightWatch",
    "mean_field_logits",
    "recorded",
]
