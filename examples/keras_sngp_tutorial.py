"""The TensorFlow tutorial, on Keras 3
===================================

"Uncertainty-aware Deep Learning with SNGP", the tutorial of TensorFlow, runs no more since Keras 3. Here are its cells
on whatever backend Keras has: the two moons, a deterministic network, SNGP, Monte Carlo dropout and an ensemble. The
five lines that differ from the tutorial's are marked by their number; the page "From the TensorFlow tutorial" says why.
"""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

import hesitant.keras as nlp_layers
import keras
from hesitant.keras import DeepEnsemble, MCDropout, gaussian_process

EPOCHS = int(os.environ.get("EPOCHS", "100"))
keras.utils.set_random_seed(0)

# %%
# The moons, and a cloud of points that belongs to neither.


def make_training_data(sample_size: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Answers two moon-shaped classes."""
    examples, labels = make_moons(n_samples=2 * sample_size, noise=0.1, random_state=0)
    examples[labels == 0] += [-0.1, 0.2]
    examples[labels == 1] += [0.1, -0.2]
    return examples.astype("float32"), labels


def make_testing_data(
    x_range: tuple[float, float] = (-3.5, 3.5), y_range: tuple[float, float] = (-2.5, 2.5), n_grid: int = 100
) -> np.ndarray:
    """Answers a grid of points, row by row."""
    x, y = np.meshgrid(np.linspace(*x_range, n_grid), np.linspace(*y_range, n_grid))
    return np.stack([x.flatten(), y.flatten()], axis=-1).astype("float32")


train_examples, train_labels = make_training_data()
test_examples = make_testing_data()
ood_examples = np.random.RandomState(0).multivariate_normal((2.5, -1.75), 0.01 * np.eye(2), 500).astype("float32")

# %%
# The residual network. A Dropout that is made in ``call`` has no place to keep its seed (1); a tensor of PyTorch that
# is added to in place is needed again for the gradient (2).


class DeepResNet(keras.Model):
    """A residual network, its first layer frozen."""

    def __init__(self, num_classes: int, num_layers: int = 3, num_hidden: int = 128, dropout_rate: float = 0.1) -> None:
        super().__init__()
        self.input_layer = keras.layers.Dense(num_hidden, trainable=False)
        self.dense_layers = [self.make_dense_layer(num_hidden) for _ in range(num_layers)]
        self.dropout_layers = [keras.layers.Dropout(dropout_rate) for _ in range(num_layers)]  # (1)
        self.classifier = self.make_output_layer(num_classes)

    def make_dense_layer(self, num_hidden: int) -> Any:
        """Uses the Dense layer as the hidden layer."""
        return keras.layers.Dense(num_hidden, activation="relu")

    def make_output_layer(self, num_classes: int) -> Any:
        """Uses the Dense layer as the output layer."""
        return keras.layers.Dense(num_classes)

    def hidden(self, inputs: Any, training: bool | None) -> Any:
        """Answers what the output layer reads."""
        hidden = self.input_layer(inputs)
        for dense, dropout in zip(self.dense_layers, self.dropout_layers, strict=True):
            hidden = hidden + dropout(dense(hidden), training=training)  # (2), not hidden += ...; (4)
        return hidden

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Answers logits."""
        return self.classifier(self.hidden(inputs, training))


def compile_options() -> dict[str, Any]:
    """Answers loss, metric and an optimizer of the model's own (3)."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {"loss": loss, "metrics": ["sparse_categorical_accuracy"], "optimizer": keras.optimizers.Adam(1e-4)}


def make_resnet() -> Any:
    """Answers a deterministic network, built (5)."""
    model = DeepResNet(num_classes=2, num_layers=6)
    model.compile(**compile_options())
    model(train_examples[:1])  # (5): model.build((None, 2)) builds no layer of a subclass
    return model


fit_config = {"batch_size": 128, "epochs": EPOCHS, "verbose": 0}
resnet = make_resnet()
resnet.fit(train_examples, train_labels, **fit_config)

# %%
# SNGP: spectral normalization around the hidden layers, and a Gaussian process in place of the last Dense. On JAX no
# layer within a model is told that this is training, unless the model hands it on (4), to Dropout as well.


class DeepResNetSNGP(DeepResNet):
    """The same with distance awareness."""

    def make_dense_layer(self, num_hidden: int) -> Any:
        """Applies spectral normalization to the hidden layer."""
        return nlp_layers.SpectralNormalization(super().make_dense_layer(num_hidden), norm_multiplier=0.9)

    def make_output_layer(self, num_classes: int) -> Any:
        """Uses a Gaussian process as the output layer."""
        return nlp_layers.RandomFeatureGaussianProcess(num_classes, gp_cov_momentum=-1)

    def call(self, inputs: Any, training: bool | None = None, return_covmat: bool = False) -> Any:
        """Answers logits, and their variance where it is asked for."""
        logits, covmat = self.classifier(self.hidden(inputs, training), training=training)  # (4)
        return (logits, covmat) if not training and return_covmat else logits


sngp_model = DeepResNetSNGP(num_classes=2, num_layers=6)
sngp_model.compile(**compile_options())
sngp_model.fit(train_examples, train_labels, callbacks=[nlp_layers.ResetCovarianceCallback()], **fit_config)

# %%
# The posterior's mean and variance, and the probabilities with and without the variance.
sngp_logits, sngp_covmat = sngp_model(test_examples, return_covmat=True)
sngp_logits_adjusted = gaussian_process.mean_field_logits(sngp_logits, sngp_covmat, mean_field_factor=np.pi / 8)


def probability(logits: Any) -> np.ndarray:
    """Answers the probability of the first class."""
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.softmax(logits, axis=-1))[:, 0])


# %%
# Monte Carlo dropout and the ensemble, each in a line.
mc_dropout = MCDropout(resnet, num_samples=10)
ensemble = DeepEnsemble([resnet, *(make_resnet() for _ in range(2))])
for member in ensemble.members[1:]:
    member.fit(train_examples, train_labels, **fit_config)

surfaces = {
    "deterministic": probability(resnet(test_examples)),
    "MC dropout": mc_dropout.predict(test_examples).probs[:, 0],
    "ensemble": ensemble.predict(test_examples).probs[:, 0],
    "SNGP": probability(sngp_logits_adjusted),
}

# %%
# The uncertainty p(1 - p), 1 at its most: only SNGP's grows away from the data.
fig, axes = plt.subplots(1, 4, figsize=(16, 3.2), layout="constrained")
for axis, (name, p) in zip(axes, surfaces.items(), strict=True):
    picture = axis.imshow(
        4 * (p * (1 - p)).reshape(100, 100), extent=(-3.5, 3.5, -2.5, 2.5), origin="lower", vmin=0, vmax=1
    )
    axis.scatter(*train_examples.T, c=train_labels, s=2, cmap="coolwarm")
    axis.scatter(*ood_examples.T, s=2, color="red")
    axis.set_title(name)
fig.colorbar(picture, ax=axes, label="uncertainty")

ood_logits, ood_covmat = sngp_model(ood_examples, return_covmat=True)
ood = probability(gaussian_process.mean_field_logits(ood_logits, ood_covmat, mean_field_factor=np.pi / 8))
plain = probability(resnet(ood_examples))
print(
    f"uncertainty in the cloud: {4 * (plain * (1 - plain)).mean():.3f} of the deterministic network,"
    f" {4 * (ood * (1 - ood)).mean():.3f} of SNGP"
)
plt.show()
