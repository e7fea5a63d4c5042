"""e2e_sngp_*: a small SNGP trained by Keras' own train_on_batch, compiled as each backend compiles it.

The reference projects a kernel before each step, Keras' constraint after it: a kernel of ours is one projection ahead
of the record, and is compared with what that makes of the recorded one.
"""

import warnings
from typing import Any

import numpy as np

import keras
from hesitant.keras import RandomFeatureGaussianProcess, SpectralNormalization, mean_field_logits

from ..case import Case
from ..end_to_end_record import Recorded, recognises, recorded
from .numbers import activation, numpy_of, put

__all__ = ["recognises", "run"]


class Network(keras.Model):
    """The network that the recorded one is."""

    def __init__(self, case: Case, told: Recorded) -> None:
        super().__init__(dtype=case.dtype_name)
        self.first = keras.layers.Dense(told.width, trainable=False, dtype=case.dtype_name)
        self.blocks = [
            SpectralNormalization(
                keras.layers.Dense(told.width, activation=activation(told.activation), dtype=case.dtype_name),
                norm_multiplier=told.bound,
                dtype=case.dtype_name,
            )
            for _ in range(told.blocks)
        ]
        self.gp = RandomFeatureGaussianProcess(
            told.units,
            told.num_inducing,
            gp_cov_momentum=told.momentum,
            ridge_decay=told.momentum > 0,
            l2_regularization=told.l2_penalty,
            covariance="full",
            dtype=case.dtype_name,
        )

    def call(self, inputs: Any, training: bool | None = None, return_covmat: bool = False) -> Any:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits, covmat = self.gp(hidden, training=training)
        return (logits, covmat) if return_covmat else logits


def run(case: Case) -> None:
    """Trains as recorded, in the record's dtype: TensorFlow adds no losses of two dtypes, and Keras' own is floatx."""
    before = keras.config.floatx()
    keras.config.set_floatx(case.dtype_name)
    try:
        _run(case)
    finally:
        keras.config.set_floatx(before)


def _run(case: Case) -> None:
    """Trains as recorded, and compares losses, weights, precision and predictions."""
    told = recorded(case)
    model, tolerance = _model(case, told), told.tolerance
    x, y = case.numbers("x"), case.array("y")
    ends = np.cumsum(told.sizes)
    losses = []
    for epoch in range(case.meta("epochs")):
        if epoch + 1 in told.resets:
            model.gp.reset_covariance_matrix()
        for begin, end in zip(ends - told.sizes, ends, strict=True):
            before = [(numpy_of(block.u), numpy_of(block.v)) for block in model.blocks]
            model.reset_metrics()
            losses.append(model.train_on_batch(x[begin:end], y[begin:end]))
        _compare_epoch(case, model, f"epoch{epoch}", before, tolerance)
    # Keras' cross-entropy sums in another order than the record's.
    case.compare("losses", np.asarray(losses, dtype=np.float64), max(3 * tolerance, case.tolerances.epsilon * 4))
    _compare_weights(case, model, before, tolerance)

    x_test = case.numbers("x_test")
    _put_record(case, model)  # the predictions were made before the last projection
    model.gp.factor_covariance()
    logits, covariance = (numpy_of(part) for part in model(x_test, return_covmat=True, training=False))
    condition = float(np.linalg.cond(numpy_of(model.gp.precision).astype(np.float64)))
    case.compare("test_logits", logits, tolerance)
    case.compare("test_cov", covariance, max(tolerance, case.tolerances.covariance(condition)))
    adjusted = mean_field_logits(logits, covariance, case.meta("mean_field_factor"))
    case.compare("test_mf_logits", numpy_of(adjusted), tolerance)
    case.compare("test_probs", numpy_of(keras.ops.softmax(adjusted)), tolerance)


def _model(case: Case, told: Recorded) -> Network:
    model = Network(case, told)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has seen no training data")
        model(case.numbers("x")[:2], training=False)
    put(case, model.first.kernel, "init_input_kernel")
    put(case, model.first.bias, "init_input_bias")
    gp = model.gp
    for key, variable in (("beta", gp.beta), ("W", gp.random_weight), ("b", gp.random_phase)):
        put(case, variable, f"init_gp_{key}")
    put(case, gp.output_bias, "init_gp_output_bias")
    if case.unpatched:
        gp.feature_scale = float(np.float32(gp.feature_scale))
    for i, block in enumerate(model.blocks):
        put(case, block.layer.kernel, f"init_dense{i}_kernel")
        put(case, block.layer.bias, f"init_dense{i}_bias")
        put(case, block.u, f"init_dense{i}_u")
        case.ignore(f"init_dense{i}_v", "written over by the first half step, which takes u alone")
        block.project()
    if told.optimizer == "SGD":
        optimizer = keras.optimizers.SGD(told.optimizer_settings[0])
    else:
        optimizer = keras.optimizers.Adam(*told.optimizer_settings)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=case.dtype_name))
    return model


def _ahead(kernel: np.ndarray, u: np.ndarray, bound: float) -> np.ndarray:
    """Answers a recorded kernel after one more projection."""
    kernel, u = kernel.astype(np.float64), u.astype(np.float64)
    v = u @ kernel.T
    v = v / np.sqrt(max(float((v**2).sum()), 1e-12))
    sigma = float(np.linalg.norm(v @ kernel))
    return kernel * min(1.0, bound / sigma)


def _compare_epoch(case: Case, model: Network, epoch: str, before: list[Any], tolerance: float) -> None:
    gp = model.gp
    case.compare(f"{epoch}_gp_beta", numpy_of(gp.beta), tolerance)
    case.compare(f"{epoch}_precision", numpy_of(gp.precision), max(tolerance, case.tolerances.precision))
    case.compare(f"{epoch}_dense0_u", before[0][0], tolerance)
    for i, block in enumerate(model.blocks):
        expected = _ahead(case.array(f"{epoch}_dense{i}_kernel"), before[i][0], block.norm_multiplier)
        case.compare_values(f"{epoch}_dense{i}_kernel", numpy_of(block.layer.kernel), expected, tolerance)


def _compare_weights(case: Case, model: Network, before: list[Any], tolerance: float) -> None:
    gp = model.gp
    case.compare("final_gp_beta", numpy_of(gp.beta), tolerance)
    for key, frozen in (
        ("input_kernel", model.first.kernel),
        ("input_bias", model.first.bias),
        ("gp_W", gp.random_weight),
        ("gp_b", gp.random_phase),
        ("gp_output_bias", gp.output_bias),
    ):
        case.compare(f"final_{key}", numpy_of(frozen), 0.0)
    for i, block in enumerate(model.blocks):
        u, v = before[i]
        expected = _ahead(case.array(f"final_dense{i}_kernel"), case.array(f"final_dense{i}_u"), block.norm_multiplier)
        case.compare_values(f"final_dense{i}_kernel", numpy_of(block.layer.kernel), expected, tolerance)
        for key, ours in (("bias", numpy_of(block.layer.bias)), ("u", u), ("v", v)):
            case.compare(f"final_dense{i}_{key}", ours, tolerance)


def _put_record(case: Case, model: Network) -> None:
    for i, block in enumerate(model.blocks):
        put(case, block.layer.kernel, f"final_dense{i}_kernel")
