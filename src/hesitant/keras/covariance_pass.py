"""One exact pass over the training data, after which the covariance is that of the weights as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import keras
from hesitant.keras.asking import AskingModel, one_at_a_time
from hesitant.keras.concrete import array_of
from hesitant.keras.fitted_weights import FittedWeights
from hesitant.keras.gaussian_process import RandomFeatureGaussianProcess
from hesitant.keras.kept_features import features_kept
from hesitant.keras.spectral_normalization import SpectralNormalization

_SETTLING = 10  # projections: an average of weights, or weights that were loaded, may lie above the bound


def fit_covariance(model: Any, data: Any, *, batch_size: int = 256) -> None:
    """Fits the covariance of every Gaussian process layer of the model by one exact pass over the data.

    What the layers had summed in training is forgotten, whatever the momentum, and whether or not it was reset: this is
    ``ridge I + sum_i w_i phi_i phi_i^T`` of the weights as they are now, summed in float64 and factored. Before it,
    kernels of spectrally normalized layers that have been trained here are projected once more: an average of weights
    (``use_ema``) is not constrained by Keras. Nothing else of the model changes, and after an error nothing at all;
    dropout is off.

    Args:
        model: A built or trained Keras model with `RandomFeatureGaussianProcess` in it.
        data: Inputs as an array, or a list or dict of arrays where the model takes several, or a tuple ``(inputs,
            targets)``; or an iterable of batches of these: a ``tf.data.Dataset``, a ``PyDataset``, a DataLoader.
        batch_size: Inputs in a batch, of arrays.

    Raises:
        ValueError: The model has no such layer, or calls it not once for each batch, or the data are empty, or a
            feature is not finite.
    """
    layers = gp_layers(model)
    if not layers:
        raise ValueError(
            f"model {model.name} has no RandomFeatureGaussianProcess: its classifier should be one, in place of Dense."
        )
    with one_at_a_time(), _settled(model):
        passing = FeaturePass(model, layers)
        sums: list[np.ndarray | None] = [None] * len(layers)
        number = 0
        for batch in batches_of(data, batch_size):
            found = passing.predict_on_batch(batch)
            for place, layer in enumerate(layers):
                features, logits = found[2 * place], found[2 * place + 1]
                if not np.isfinite(features).all():
                    raise ValueError(
                        f"the features of {layer.name} are not finite in a batch of {len(features)} inputs: mend or"
                        " leave out these inputs. The covariance is as it was."
                    )
                product = layer.contribution(features, logits)
                before = sums[place]
                sums[place] = product if before is None else before + product
            number += len(found[0])
        if number == 0:
            raise ValueError("data is empty: expected at least one input.")
    own = {id(weight) for layer in layers for weight in layer.non_trainable_weights}
    for layer, total in zip(layers, sums, strict=True):
        assert total is not None
        layer.put_sum(total, number)
        layer.fitted = FittedWeights((weight for weight in model.weights if id(weight) not in own), number)


@contextmanager
def _settled(model: Any) -> Iterator[None]:
    """Projects the kernels that a step has projected before, and puts them back if an error is raised within."""
    bounded = [layer for layer in all_layers(model) if isinstance(layer, SpectralNormalization)]
    trained = [layer for layer in bounded if layer.has_projected and layer.layer.trainable]
    kernels = [np.array(array_of(layer.layer.kernel)) for layer in trained]
    try:
        for layer in trained:
            for _ in range(_SETTLING):
                layer.project()
        yield
    except BaseException:
        for layer, kernel in zip(trained, kernels, strict=True):
            layer.layer.kernel.assign(kernel)
        raise


def all_layers(model: Any) -> list[Any]:
    """Answers the model and all layers within it, at any depth, each once."""
    return list(model._flatten_layers())  # Keras has no public way to those within a layer of one's own


def gp_layers(model: Any) -> list[RandomFeatureGaussianProcess]:
    """Answers the Gaussian process layers of the model, at any depth, each once."""
    return [layer for layer in all_layers(model) if isinstance(layer, RandomFeatureGaussianProcess)]


def batches_of(data: Any, batch_size: int) -> Iterator[Any]:
    """Answers the inputs of each batch.

    Raises:
        ValueError: ``batch_size`` is below 1, or arrays differ in length.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    data = data[0] if isinstance(data, tuple) else data
    parts = data if isinstance(data, list) else list(data.values()) if isinstance(data, dict) else [data]
    arrays = [part for part in parts if hasattr(part, "shape") and hasattr(part, "__getitem__")]
    if arrays and len(arrays) == len(parts):
        numbers = {len(array) for array in arrays}
        if len(numbers) != 1:
            raise ValueError(f"data has arrays of different lengths, {sorted(numbers)}: expected one row an input.")
        for begin in range(0, numbers.pop(), batch_size):
            rows = slice(begin, begin + batch_size)
            yield keras.tree.map_structure(lambda array, rows=rows: as_numpy(array[rows]), data)
        return
    iterator = (data[place] for place in range(len(data))) if isinstance(data, keras.utils.PyDataset) else iter(data)
    for batch in iterator:
        inputs = keras.utils.unpack_x_y_sample_weight(tuple(batch) if isinstance(batch, list) else batch)[0]
        yield keras.tree.map_structure(as_numpy, inputs)


def as_numpy(array: Any) -> np.ndarray:
    """Answers numbers of any framework, whichever the backend is: a DataLoader's on JAX, a ``tf.data.Dataset``'s."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


class PosteriorPass(AskingModel):
    """Answers the plain logits ``(B, C)`` of a model's Gaussian process layer and their variance ``(B,)``.

    Raises:
        ValueError: The model has not exactly one such layer.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        layers = gp_layers(model)
        if len(layers) != 1:
            raise ValueError(f"model {model.name} has {len(layers)} RandomFeatureGaussianProcess layers: expected one.")
        self._features = FeaturePass(model, layers)
        self.gp = layers[0]
        self.built = True

    def require_fitted(self) -> None:
        """Makes sure that what `fit_covariance` fitted is of the weights as they are.

        Raises:
            ValueError: They have moved since.
        """
        if self.gp.fitted is not None and self.gp.fitted.have_moved(int(array_of(self.gp.num_seen))):
            raise ValueError(
                f"the weights have moved since fit_covariance fitted the covariance of {self.gp.name}: call"
                " fit_covariance(model, training_data) again."
            )

    def call(self, inputs: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Answers logits and variance."""
        features, logits = self._features(inputs)
        return logits, self.gp.variance_of(features)


class FeaturePass(AskingModel):
    """Answers the features and the logits of each of the layers, compiled by Keras as any model is."""

    def __init__(self, model: Any, layers: list[RandomFeatureGaussianProcess]) -> None:
        super().__init__()
        self.asked = model
        self.of_layers = layers
        self.built = True  # the model is

    def call(self, inputs: Any, training: bool | None = None) -> tuple[Any, ...]:
        """Answers features ``(B, M)`` and logits ``(B, C)`` of the first layer, of the second, and so on."""
        with features_kept(self.of_layers) as found:
            self.asked(inputs, training=False)
        answer: list[Any] = []
        for layer in self.of_layers:
            of_layer = [pair for asked, pair in found if asked is layer]
            if len(of_layer) != 1:
                raise ValueError(
                    f"{layer.name} was called {len(of_layer)} times for one batch: expected once. Give each call a"
                    " layer of its own."
                )
            answer += of_layer[0]
        return tuple(answer)
