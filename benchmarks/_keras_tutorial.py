"""The tutorial's data and networks, on the Keras backend of this process; without PyTorch, where that is not it."""

from typing import Any

import numpy as np
from sklearn.datasets import make_moons

import keras
from hesitant.keras import RandomFeatureGaussianProcess, SpectralNormalization

BATCH, EPOCHS, LEARNING_RATE = 128, 100, 1e-4


def moons(seed: int, number: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Answers the tutorial's points and their classes."""
    points, labels = make_moons(number, noise=0.1, random_state=seed)
    points[labels == 0] += [-0.1, 0.2]
    points[labels == 1] += [0.1, -0.2]
    return points.astype(np.float32), labels.astype(np.int32)


def cloud(seed: int, number: int = 500) -> np.ndarray:
    """Answers the tutorial's out-of-domain points."""
    return np.random.RandomState(seed).normal((2.5, -1.75), 0.1, (number, 2)).astype(np.float32)


def grid(size: int = 100) -> np.ndarray:
    """Answers the points of the tutorial's surfaces."""
    xs, ys = np.meshgrid(np.linspace(-3.5, 3.5, size), np.linspace(-2.5, 2.5, size))
    return np.stack([xs.ravel(), ys.ravel()], axis=-1).astype(np.float32)


class DeepResNet(keras.Model):
    """The tutorial's residual network."""

    def __init__(self, classes: int = 2, layers: int = 6, hidden: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.input_layer = keras.layers.Dense(hidden, trainable=False)
        self.dense_layers = [self.make_dense(hidden) for _ in range(layers)]
        self.dropout_layers = [keras.layers.Dropout(dropout) for _ in range(layers)]
        self.classifier = self.make_output_layer(classes)

    def make_dense(self, hidden: int) -> Any:
        """Answers one of the dense layers."""
        return keras.layers.Dense(hidden, activation="relu")

    def make_output_layer(self, classes: int) -> Any:
        """Answers the last layer."""
        return keras.layers.Dense(classes)

    def hidden(self, inputs: Any, training: bool | None) -> Any:
        """Answers what goes into the last layer."""
        hidden = self.input_layer(inputs)
        for dense, dropout in zip(self.dense_layers, self.dropout_layers, strict=True):
            hidden = hidden + dropout(dense(hidden), training=training)
        return hidden

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Answers logits."""
        return self.classifier(self.hidden(inputs, training))


class DeepResNetSNGP(DeepResNet):
    """The same with bounded layers and a Gaussian process, which sums while it trains, or in an exact pass."""

    def __init__(self, momentum: float | None = -1) -> None:
        self.momentum = momentum
        super().__init__()

    def make_dense(self, hidden: int) -> Any:
        """Answers one of the dense layers."""
        return SpectralNormalization(super().make_dense(hidden), norm_multiplier=0.9)

    def make_output_layer(self, classes: int) -> Any:
        """Answers the last layer."""
        return RandomFeatureGaussianProcess(classes, gp_cov_momentum=self.momentum)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Answers logits."""
        return self.classifier(self.hidden(inputs, training), training=training)[0]


def compiled(model: Any) -> Any:
    """Answers the model with the tutorial's loss and optimizer."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss)
    return model
