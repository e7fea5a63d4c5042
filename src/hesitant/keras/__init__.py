"""The tutorial's layers and recipes on Keras 3, whatever its backend: TensorFlow, JAX or PyTorch.

Users of Keras import from here, and from ``hesitant.keras.gaussian_process`` as the tutorial does. Importing it imports
keras and numpy alone: PyTorch comes with the PyTorch backend, or when a `hesitant.Prediction` is asked for.
"""

from hesitant.keras.answers import Answer
from hesitant.keras.beside_torch import keep_triton_away
from hesitant.keras.callbacks import ResetCovarianceCallback
from hesitant.keras.covariance_pass import fit_covariance
from hesitant.keras.exchange import from_torch, to_torch
from hesitant.keras.gaussian_process import RandomFeatureGaussianProcess, mean_field_logits
from hesitant.keras.predict import SNGP, DeepEnsemble, Deterministic, MCDropout, predict_with_uncertainty
from hesitant.keras.random_features import OrthogonalRandomFeatures
from hesitant.keras.spectral_normalization import SpectralNormalization, SpectralNormalizationConv2D

keep_triton_away()

__all__ = [
    "SNGP",
    "Answer",
    "DeepEnsemble",
    "Deterministic",
    "MCDropout",
    "OrthogonalRandomFeatures",
    "RandomFeatureGaussianProcess",
    "ResetCovarianceCallback",
    "SpectralNormalization",
    "SpectralNormalizationConv2D",
    "fit_covariance",
    "from_torch",
    "mean_field_logits",
    "predict_with_uncertainty",
    "to_torch",
]
