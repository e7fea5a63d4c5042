"""What resets the covariance at each epoch of ``model.fit``, and sees that it moves."""

import warnings
from typing import Any

import keras
from hesitant.keras.concrete import numbers_of
from hesitant.keras.covariance_pass import gp_layers
from hesitant.keras.gaussian_process import RandomFeatureGaussianProcess


class ResetCovarianceCallback(keras.callbacks.Callback):
    """Resets the covariance of every Gaussian process layer at the beginning of each epoch: the last one counts.

    The precision is factored before each validation and at the end, so that predictions are cheap. Layers with a
    momentum above 0 are never reset: they forget by themselves.

    Averages of weights (an optimizer's ``use_ema``) are put in place at the very end, after the covariance was summed:
    it says so.

    Raises:
        RuntimeError: After an epoch: it has not moved the precision of a layer, which is then not told that this is
            training.
        ValueError: The model has no such layer.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Looks for the layers."""
        self._layers()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Resets what the epoch before, or an earlier training, has summed."""
        for layer in self._layers():
            if layer.built and layer.gp_cov_momentum is not None and layer.gp_cov_momentum <= 0:
                layer.reset_covariance_matrix()

    def on_test_begin(self, logs: Any = None) -> None:
        """Factors the precision for the validation."""
        self._factor()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Sees that the epoch has moved the precision."""
        for layer in self._layers():
            seen = numbers_of(layer.num_seen)
            if seen is not None and int(seen) == 0 and layer.gp_cov_momentum is not None:
                raise RuntimeError(
                    f"{layer.name} has seen no training data in epoch {epoch}: its precision has not moved. Let your"
                    " model's call(self, inputs, training=None) hand training=training on to it."
                )

    def on_train_end(self, logs: Any = None) -> None:
        """Factors the precision for the predictions; of weights that are now an average it is not.

        Warns:
            UserWarning: The optimizer has put averages in place of the weights (``use_ema``).
        """
        if getattr(self.model.optimizer, "use_ema", False):
            warnings.warn(
                "the weights are now the averages that use_ema keeps, and the covariance is that of the weights they"
                " replaced: call hesitant.keras.fit_covariance(model, data).",
                UserWarning,
                stacklevel=2,
            )
        self._factor()

    def _layers(self) -> list[RandomFeatureGaussianProcess]:
        layers = gp_layers(self.model)
        if not layers:
            raise ValueError(f"model {self.model.name} has no RandomFeatureGaussianProcess whose covariance to reset.")
        return layers

    def _factor(self) -> None:
        for layer in self._layers():
            if layer.built:
                layer.factor_covariance()
