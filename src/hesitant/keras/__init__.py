"""The tutorial's layers and recipes on Keras 3, whatever its backend: TensorFlow, JAX or PyTorch.

Users of Keras import from here, and from ``hesitant.keras.gaussian_process`` as the tutorial does. Importing it imports
keras and numpy alone: PyTorch comes with the PyTorch backend, or when a `hesitant.Prediction` is asked for.
"""

from hesitant.keras.gaussian_process import RandomFeatureGaussianProcess, mean_field_logits
from hesitant.keras.random_features import OrthogonalRandomFeatures

__all__ = ["OrthogonalRandomFeatures", "RandomFeatureGaussianProcess", "mean_field_logits"]
