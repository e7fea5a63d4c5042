"""Small models and data that the checks share."""

from typing import Any

import numpy as np

import keras
from hesitant.keras import RandomFeatureGaussianProcess, SpectralNormalization

WIDTH, CLASSES, BOUND = 4, 2, 0.9


def data(number: int = 250, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.RandomState(seed).randn(number, WIDTH).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int32)


class Network(keras.Model):
    """An SNGP as users subclass it; it hands ``training`` on or not."""

    def __init__(self, hand_on: bool = True, num_inducing: int = 64, **settings: Any) -> None:
        super().__init__()
        self.hand_on = hand_on
        self.dense = SpectralNormalization(keras.layers.Dense(16, activation="relu"), norm_multiplier=BOUND)
        self.gp = RandomFeatureGaussianProcess(CLASSES, num_inducing, **{"gp_cov_momentum": -1, **settings})

    def call(self, inputs: Any, training: bool | None = None, return_covmat: bool = False) -> Any:
        hidden = self.dense(inputs)
        logits, variance = self.gp(hidden, training=training) if self.hand_on else self.gp(hidden)
        return (logits, variance) if return_covmat else logits


def functional(**settings: Any) -> tuple[Any, Any]:
    """A functional SNGP for training, and one that answers its variance with the same layers."""
    inputs = keras.Input((WIDTH,))
    hidden = SpectralNormalization(keras.layers.Dense(16, activation="relu"), norm_multiplier=BOUND)(inputs)
    logits, variance = RandomFeatureGaussianProcess(CLASSES, 64, **{"gp_cov_momentum": -1, **settings})(hidden)
    return keras.Model(inputs, logits), keras.Model(inputs, [logits, variance])


def sequential() -> Any:
    return keras.Sequential(
        [
            keras.Input((WIDTH,)),
            SpectralNormalization(keras.layers.Dense(16, activation="relu"), norm_multiplier=BOUND),
            RandomFeatureGaussianProcess(CLASSES, 64, gp_cov_momentum=-1, return_gp_cov=False),
        ]
    )


def compiled(model: Any, optimizer: Any = "adam", **settings: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer if not callable(optimizer) else optimizer(), loss, **settings)
    return model


def numbers(tensor: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(tensor)))


def state(model: Any) -> list[np.ndarray]:
    return [numbers(variable) for variable in model.variables]


def same(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    return len(before) == len(after) and all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def exact_variance(gp: Any, hidden: Any, of: Any) -> np.ndarray:
    """The plain formula, in float64: the variance at ``of`` after seeing ``hidden`` once."""
    phi, seen = (numbers(gp.features(part)).astype(np.float64) for part in (of, hidden))
    precision = gp.gp_cov_ridge_penalty * np.eye(phi.shape[1]) + seen.T @ seen
    return gp.gp_cov_ridge_penalty * np.einsum("bi,ij,bj->b", phi, np.linalg.inv(precision), phi)


def norm_of(layer: Any) -> float:
    return float(
        np.linalg.norm(numbers(layer.layer.kernel).astype(np.float64).reshape(-1, layer.layer.kernel.shape[-1]), 2)
    )
