"""The tutorial's Gaussian-process output layer, on every backend of Keras 3."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np

import keras
from hesitant.keras.concrete import (
    array_of,
    is_given_in_a_stateless_call,
    numbers_of,
    only_shapes_are_asked_for,
    told_later,
)
from hesitant.keras.fitted_weights import FittedWeights
from hesitant.keras.kept_features import is_kept, keep
from hesitant.keras.mean_field import mean_field_logits as mean_field_logits  # where the tutorial reads it
from hesitant.keras.posterior_factor import (
    STALE,
    Factor,
    covariance_by,
    factor_of,
    levels,
    variance_by,
    whitened,
)
from keras import ops

_LIKELIHOODS = ("gaussian", "binary_logistic", "poisson")
_LAYER_NORM_EPSILON = 1e-3
_NONE_SEEN = (
    "{} answers the variance of the prior, for it has seen no training data: its precision has not moved. Hand"
    " training=training on to it in call(), or call hesitant.keras.fit_covariance(model, data)."
)


@keras.saving.register_keras_serializable(package="hesitant")
class RandomFeatureGaussianProcess(keras.layers.Layer):
    r"""Answers logits and their variance by a Gaussian process: ``logits(x) = phi(x) beta``.

    ``phi(x) = sqrt(2/M) cos(x W / sqrt(gp_kernel_scale) + b)`` with W and b frozen approximates the kernel
    ``exp(-|x - x'|^2 / (2 gp_kernel_scale))``. The Laplace approximation has the precision
    ``P = ridge I + sum_i w_i phi_i phi_i^T`` and the variance ``ridge phi(x)^T P^-1 phi(x)``, shared by the classes.

    A call with ``training=True`` adds its batch to the precision, so that each epoch begins with
    :meth:`reset_covariance_matrix` (`ResetCovarianceCallback` does it), or one exact pass follows the training
    (`fit_covariance`). A call without training changes no weight.

    The precision is factored by `ResetCovarianceCallback`, `fit_covariance` or :meth:`factor_covariance`, in float64,
    and reused until it moves; of a precision that nobody has factored each call makes a factor of its own. All numbers
    of the layer are float32 whatever the policy, or float64 where that is the policy.

    Source: Liu et al., "Simple and Principled Uncertainty Estimation with Deterministic Deep Learning via Distance
    Awareness", NeurIPS 2020, section 3.1 and equation 9. The arguments are those of tf-models' layer of this name.

    Args:
        units: C, the number of logits; 1 for the likelihoods ``"binary_logistic"`` and ``"poisson"``.
        num_inducing: M, the number of random features.
        gp_kernel_type: ``"gaussian"``, or ``"linear"``, where phi(x) = x, scaled as random features are.
        gp_kernel_scale: Squared length scale of the kernel; not looked at with ``normalize_input``.
        gp_output_bias: Constant added to the logits.
        normalize_input: Whether inputs go through a (trainable) LayerNormalization first.
        gp_kernel_scale_trainable: Whether the optimizer learns the kernel scale, as its logarithm.
        gp_output_bias_trainable: Whether the optimizer learns the bias.
        gp_cov_momentum: Above 0: each training call forgets: ``S <- m S + sum_i w_i phi_i phi_i^T``, and P is
            ``ridge I + S``. Otherwise nothing is forgotten. None: a training call adds nothing, which makes it much
            cheaper, and `fit_covariance` follows the training.
        gp_cov_ridge_penalty: Prior precision of the output weights.
        scale_random_features: Whether features carry sqrt(2/M), so that the prior variance is about 1.
        use_custom_random_features: False: features as Keras' RandomFourierFeatures had them, with inputs divided by
            ``gp_kernel_scale`` and not by its root, also after normalization.
        custom_random_features_initializer: Draws W; None is N(0, 1). `OrthogonalRandomFeatures` is one.
        custom_random_features_activation: What makes features of the projection, a function or its name in keras.ops
            or keras.activations; None is the cosine.
        l2_regularization: Weight of the squares of beta in the loss.
        gp_cov_likelihood: Weights of the data in the precision: 1 for ``"gaussian"``, p(1 - p) for
            ``"binary_logistic"``, e^f for ``"poisson"``.
        return_gp_cov: Whether a call answers ``(logits, covariance)``, in training with a covariance of one.
        return_random_features: Whether the features ``(B, M)`` come last in what a call answers.
        covariance: ``"diag"``: variances ``(B,)``, as ``predict`` needs them, which joins batches of different sizes;
            ``"full"``: the matrix ``(B, B)`` of the reference.
        ridge_decay: With a momentum: the reference's ``P <- m P + (1 - m) dP / B``, whose ridge fades.
        kernel_initializer: Of beta.
        **kwargs: Of a Keras layer: ``name``, ``dtype``, ``trainable``.

    Raises:
        ValueError: An argument is out of its range; the message says which and what it may be.
    """

    def __init__(
        self,
        units: int,
        num_inducing: int = 1024,
        gp_kernel_type: Literal["gaussian", "linear"] = "gaussian",
        gp_kernel_scale: float = 1.0,
        gp_output_bias: float = 0.0,
        normalize_input: bool = False,
        gp_kernel_scale_trainable: bool = False,
        gp_output_bias_trainable: bool = False,
        gp_cov_momentum: float | None = 0.999,
        gp_cov_ridge_penalty: float = 1.0,
        scale_random_features: bool = True,
        use_custom_random_features: bool = True,
        custom_random_features_initializer: Any = None,
        custom_random_features_activation: Any = None,
        l2_regularization: float = 1e-6,
        gp_cov_likelihood: Literal["gaussian", "binary_logistic", "poisson"] = "gaussian",
        return_gp_cov: bool = True,
        return_random_features: bool = False,
        covariance: Literal["diag", "full"] = "diag",
        ridge_decay: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        for name, value, allowed in (
            ("gp_kernel_type", gp_kernel_type, ("gaussian", "linear")),
            ("gp_cov_likelihood", gp_cov_likelihood, _LIKELIHOODS),
            ("covariance", covariance, ("diag", "full")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not known: expected one of {allowed}.")
        for name, number in (
            ("units", units),
            ("num_inducing", num_inducing),
            ("gp_kernel_scale", gp_kernel_scale),
            ("gp_cov_ridge_penalty", gp_cov_ridge_penalty),
        ):
            if not 0 < number < math.inf:
                raise ValueError(f"{name}={number} must be a positive number.")
        if gp_cov_momentum is not None and gp_cov_momentum > 1:
            raise ValueError(f"gp_cov_momentum={gp_cov_momentum} must be at most 1; 0 or less forgets nothing.")
        if ridge_decay and (gp_cov_momentum is None or not 0 < gp_cov_momentum < 1):
            raise ValueError(f"ridge_decay=True needs a momentum in (0, 1), and got {gp_cov_momentum}.")
        if gp_cov_likelihood != "gaussian" and units != 1:
            raise ValueError(f"gp_cov_likelihood={gp_cov_likelihood!r} needs units=1, and got units={units}.")
        self.fitted: FittedWeights | None = None  # by fit_covariance
        self.units, self.num_inducing = units, num_inducing
        self.gp_kernel_type, self.gp_kernel_scale = gp_kernel_type, gp_kernel_scale
        self.gp_output_bias, self.normalize_input = gp_output_bias, normalize_input
        self.gp_kernel_scale_trainable = gp_kernel_scale_trainable
        self.gp_output_bias_trainable = gp_output_bias_trainable
        self.gp_cov_momentum, self.gp_cov_ridge_penalty = gp_cov_momentum, gp_cov_ridge_penalty
        self.scale_random_features = scale_random_features
        self.use_custom_random_features = use_custom_random_features
        self.custom_random_features_initializer = keras.initializers.get(
            custom_random_features_initializer or keras.initializers.RandomNormal(stddev=1.0)
        )
        self.custom_random_features_activation = _activation(custom_random_features_activation)
        self.l2_regularization = l2_regularization
        self.gp_cov_likelihood = gp_cov_likelihood
        self.return_gp_cov, self.return_random_features = return_gp_cov, return_random_features
        self.covariance, self.ridge_decay = covariance, ridge_decay
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.exact_dtype = "float64" if self.variable_dtype == "float64" else "float32"
        self.feature_scale = math.sqrt(2 / num_inducing) if scale_random_features else 1.0
        self.input_scale = _input_scale(gp_kernel_scale, normalize_input, use_custom_random_features)
        self.layer_norm = (
            keras.layers.LayerNormalization(epsilon=_LAYER_NORM_EPSILON, dtype=self.exact_dtype, name="layer_norm")
            if normalize_input
            else None
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights for inputs ``(..., D)``."""
        width = input_shape[-1]
        if width is None:
            raise ValueError(f"input_shape={input_shape} has no last size: expected (..., D) with D known.")
        size = width if self.gp_kernel_type == "linear" else self.num_inducing
        self.random_weight = self.random_phase = self.log_kernel_scale = None
        if self.layer_norm is not None:
            self.layer_norm.build(input_shape)
        if self.gp_kernel_type == "gaussian":
            draw = self.custom_random_features_initializer
            phase = keras.initializers.RandomUniform(0.0, 2 * math.pi)
            self.random_weight = self._weight("random_weight", (width, size), draw)
            self.random_phase = self._weight("random_phase", (size,), phase)
        if self.gp_kernel_scale_trainable and not (self.normalize_input and self.use_custom_random_features):
            start = keras.initializers.Constant(math.log(self.gp_kernel_scale))
            self.log_kernel_scale = self._weight("log_kernel_scale", (), start, trainable=True)
        regularizer = keras.regularizers.L2(self.l2_regularization) if self.l2_regularization else None
        self.beta = self._weight(
            "beta", (size, self.units), self.kernel_initializer, trainable=True, regularizer=regularizer
        )
        bias = keras.initializers.Constant(self.gp_output_bias)
        self.output_bias = self._weight("output_bias", (self.units,), bias, trainable=self.gp_output_bias_trainable)
        self.data_precision = self._weight("data_precision", (size, size), "zeros")
        self.ridge_weight = self._weight("ridge_weight", (), "ones")
        self.num_seen = self.add_weight(name="num_seen", shape=(), initializer="zeros", dtype="int32", trainable=False)
        self.factor = self._weight("factor", (size, size), "zeros")
        # Of the factor: its level, and the most and the least variance of a direction.
        self.factor_state = self._weight("factor_state", (3,), "ones")
        self.built = True

    def _weight(self, name: str, shape: tuple[int, ...], initializer: Any, **kwargs: Any) -> Any:
        options = {"trainable": False, "dtype": self.exact_dtype, "autocast": False, **kwargs}
        return self.add_weight(name=name, shape=shape, initializer=initializer, **options)

    # ---------------------------------------------------------------- what is answered

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Answers logits ``(B, C)``, with the covariance and the features as the constructor was told.

        Raises:
            ValueError: The trainer is JAX's and the model does not hand ``training`` on: nothing would say that this
                is training, and the precision would stay that of the prior.
        """
        if training is None and not is_kept(self) and is_given_in_a_stateless_call(self.data_precision):
            raise ValueError(
                f"{self.name} is not told whether this is training, and on this backend Keras tells no inner layer by"
                " itself: the precision would never move. Let your model's call(self, inputs, training=None) hand it"
                " on: gp_layer(hidden, training=training)."
            )
        features = self.features(inputs)
        logits = self._logits(features)
        if is_kept(self):
            keep(self, self._rows(features), self._rows(logits, self.units))
        if training and self.gp_cov_momentum is not None:
            self._add(
                self.gp_cov_momentum,
                ops.stop_gradient(self._rows(features)),
                ops.stop_gradient(self._rows(logits, self.units)),
            )
        answer: list[Any] = [logits]
        if self.return_gp_cov:
            answer.append(self._unit_covariance(features) if training else self._covariance(features))
        if self.return_random_features:
            answer.append(features)
        return tuple(answer) if len(answer) > 1 else logits

    def features(self, inputs: Any) -> Any:
        """Answers phi(x), ``(..., M)``."""
        x = ops.cast(inputs, self.exact_dtype)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.log_kernel_scale is not None:
            power = -0.5 if self.use_custom_random_features else -1.0
            x = x * ops.exp(power * self.log_kernel_scale)
        elif self.input_scale != 1:
            x = x * self.input_scale
        if self.random_weight is None:
            return x * self.feature_scale
        return self.custom_random_features_activation(ops.matmul(x, self.random_weight) + self.random_phase) * (
            self.feature_scale
        )

    def _logits(self, features: Any) -> Any:
        return ops.matmul(features, self.beta) + self.output_bias

    def _rows(self, tensor: Any, width: int | None = None) -> Any:
        if len(tensor.shape) == 2:
            return tensor
        return ops.reshape(tensor, (-1, self.beta.shape[0] if width is None else width))

    def _unit_covariance(self, features: Any) -> Any:
        """A training call answers no covariance of its own, as the reference's does not."""
        ones = ops.ones_like(features[..., 0])
        return ops.diag(ops.reshape(ones, (-1,))) if self.covariance == "full" else ones

    def _covariance(self, features: Any) -> Any:
        self._warn_if_none_seen()
        answer = self._of_level(self._rows(features), self.covariance == "full")
        if self.covariance == "full" or len(features.shape) == 2:
            return answer
        return ops.reshape(answer, ops.shape(features)[:-1])

    def variance_of(self, features: Any) -> Any:
        """Answers the variance ``(B,)`` of features ``(B, M)``, whatever a call answers."""
        self._warn_if_none_seen()
        return self._of_level(features, False)

    def _of_level(self, features: Any, full: bool) -> Any:
        """Answers the covariance by the factor that there is; where its level is not known, with a branch for each."""
        counts = levels(self.beta.shape[0])
        branches: list[Callable[[], Any]] = [partial(self._by_own_factor, features, full)]
        branches += [partial(self._by_factor, features, full, count) for count in counts[1:]]
        state = numbers_of(self.factor_state)
        if state is not None:
            return branches[int(state[0])]()
        if keras.backend.backend() == "torch":  # it only asks for the shape
            return branches[-1]()
        return ops.switch(ops.cast(self.factor_state[0], "int32"), branches)

    def _by_factor(self, features: Any, full: bool, rank: int) -> Any:
        columns, state = ops.convert_to_tensor(self.factor), ops.convert_to_tensor(self.factor_state)
        if full:
            return covariance_by(features, columns, rank, state[1])
        return variance_by(features, columns, rank, state[1], state[2])

    def _by_own_factor(self, features: Any, full: bool) -> Any:
        ridge = self.gp_cov_ridge_penalty
        z = whitened(features, ops.convert_to_tensor(self.data_precision), ridge, ridge * self.ridge_weight)
        return ops.matmul(z, ops.transpose(z)) if full else ops.sum(ops.square(z), axis=1)

    # ---------------------------------------------------------------- the precision

    @property
    def precision(self) -> Any:
        """The precision matrix ``P``, ``(M, M)``, the ridge included."""
        prior = self.gp_cov_ridge_penalty * self.ridge_weight
        return self.data_precision + prior * ops.eye(self.beta.shape[0], dtype=self.exact_dtype)

    def reset_covariance_matrix(self) -> None:
        """Forgets all data: the covariance is that of the prior again."""
        self.put_sum(np.zeros(self.data_precision.shape), 0)

    def factor_covariance(self) -> None:
        """Factors the precision as it is now, in float64; every inference until it moves again is then cheap.

        Raises:
            ValueError: The precision holds NaN, or a negative eigenvalue.
        """
        state = numbers_of(self.factor_state)
        if state is None or state[0] == STALE:
            self._put_factor(array_of(self.data_precision).astype(np.float64))

    def put_sum(self, data_precision: np.ndarray, num_seen: int, ridge_weight: float = 1.0) -> None:
        """Puts ``sum_i w_i phi_i phi_i^T`` of ``num_seen`` inputs, ``(M, M)``, in place of what there was, factored.

        The ridge counts so many times.
        """
        self.data_precision.assign(data_precision.astype(self.exact_dtype))
        self.ridge_weight.assign(ridge_weight)
        self.num_seen.assign(num_seen)
        self._put_factor(data_precision)

    def _put_factor(self, data_precision: np.ndarray) -> None:
        ridge = self.gp_cov_ridge_penalty
        prior = ridge * float(array_of(self.ridge_weight))
        factor: Factor = factor_of(data_precision, ridge, prior, self.exact_dtype)
        self.factor.assign(factor.columns.astype(self.exact_dtype))
        state = (factor.level, factor.null_variance, factor.least_variance)
        self.factor_state.assign(np.asarray(state, dtype=self.exact_dtype))

    def contribution(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Answers ``sum_i w_i phi_i phi_i^T`` of features ``(B, M)`` and logits ``(B, C)``, in float64."""
        features = features.astype(np.float64)
        logits = logits.astype(np.float64)
        if self.gp_cov_likelihood == "binary_logistic":
            p = 1 / (1 + np.exp(-logits))
            return features.T @ (features * p * (1 - p))
        return features.T @ (features * np.exp(logits) if self.gp_cov_likelihood == "poisson" else features)

    def _add(self, momentum: float, features: Any, logits: Any) -> None:
        """Adds a batch to the precision; the factor, whatever it is, is then of another one."""
        weighted = features
        if self.gp_cov_likelihood == "binary_logistic":
            p = ops.sigmoid(logits)
            weighted = features * (p * (1 - p))
        elif self.gp_cov_likelihood == "poisson":
            weighted = features * ops.exp(logits)
        product = ops.matmul(ops.transpose(features), weighted)
        count = ops.shape(features)[0]
        if momentum <= 0:
            self.data_precision.assign_add(product)
        elif not self.ridge_decay:
            self.data_precision.assign(momentum * self.data_precision + product)
        else:
            share = (1 - momentum) / ops.cast(count, self.exact_dtype)
            self.data_precision.assign(momentum * self.data_precision + share * product)
            self.ridge_weight.assign(momentum * self.ridge_weight)
        self.num_seen.assign_add(ops.cast(count, "int32"))
        self.factor_state.assign([float(STALE), 1.0, 1.0])

    def _warn_if_none_seen(self) -> None:
        if only_shapes_are_asked_for() or is_kept(self):
            return
        seen = numbers_of(self.num_seen)
        if seen is None:
            told_later(self._told_how_many, self.num_seen)
        else:
            self._told_how_many(seen)

    def _told_how_many(self, seen: Any) -> None:
        if int(seen) == 0:
            warnings.warn(_NONE_SEEN.format(self.name), UserWarning, stacklevel=2)

    # ---------------------------------------------------------------- saving

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Answers the shapes and dtypes of what a call answers."""
        rows = tuple(inputs.shape[:-1])
        size = self.beta.shape[0]
        flat = None if None in rows else math.prod(rows)
        shapes: list[tuple[int | None, ...]] = [(*rows, self.units)]
        if self.return_gp_cov:
            shapes.append((flat, flat) if self.covariance == "full" else rows)
        if self.return_random_features:
            shapes.append((*rows, size))
        specs = tuple(keras.KerasTensor(shape, dtype=self.exact_dtype) for shape in shapes)
        return specs if len(specs) > 1 else specs[0]

    def get_config(self) -> dict[str, Any]:
        """Answers the constructor's arguments."""
        config = super().get_config()
        config |= {name: getattr(self, name) for name in _PLAIN_ARGUMENTS}
        config["custom_random_features_initializer"] = keras.initializers.serialize(
            self.custom_random_features_initializer
        )
        config["kernel_initializer"] = keras.initializers.serialize(self.kernel_initializer)
        config["custom_random_features_activation"] = _name_of(self.custom_random_features_activation)
        return config


_PLAIN_ARGUMENTS = (
    "units", "num_inducing", "gp_kernel_type", "gp_kernel_scale", "gp_output_bias", "normalize_input",
    "gp_kernel_scale_trainable", "gp_output_bias_trainable", "gp_cov_momentum", "gp_cov_ridge_penalty",
    "scale_random_features", "use_custom_random_features", "l2_regularization", "gp_cov_likelihood", "return_gp_cov",
    "return_random_features", "covariance", "ridge_decay",
)  # fmt: skip


def _input_scale(kernel_scale: float, normalized: bool, custom: bool) -> float:
    if not custom:
        return 1 / kernel_scale
    return 1.0 if normalized else 1 / math.sqrt(kernel_scale)


def _activation(given: Any) -> Callable[[Any], Any]:
    if given is None:
        return ops.cos
    if isinstance(given, str) and given in ("cos", "sin"):
        return getattr(ops, given)
    return keras.activations.get(given)


def _name_of(activation: Callable[[Any], Any]) -> Any:
    for name in ("cos", "sin"):
        if activation is getattr(ops, name):
            return name
    return keras.activations.serialize(activation)
