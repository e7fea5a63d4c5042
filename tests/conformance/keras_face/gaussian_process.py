"""gp_* and ed2_gp_*: the random-feature Gaussian process, batch after batch."""

import warnings
from typing import Any

import numpy as np

from hesitant.keras import RandomFeatureGaussianProcess, mean_field_logits

from ..case import Case, CaseError
from ..gaussian_process_record import check_sizes, configuration, is_edward2, logit_size, recognises
from ..tolerances import DERIVED_GAP
from .numbers import activation, numpy_of, put

__all__ = ["recognises", "run"]

_OWN_FACTOR = 20  # how much coarser a covariance is by float32's Cholesky, which a precision has that nobody factored


def run(case: Case) -> None:
    """Builds the recorded layer, shows it the recorded batches, and compares all that it answers."""
    config, edward2, tolerance = configuration(case), is_edward2(case), case.tolerances
    check_sizes(case, config)
    layer = _build(case, config)
    x_test = case.numbers("x_test")

    # -- before training
    case.compare("output_bias", numpy_of(layer.output_bias), 0.0)
    if edward2 or case.has("probe_Z") or case.has("precision_init"):
        _compare_precision(case, layer, "init", edward2)
    initial = numpy_of(layer.precision)
    logits, covariance = _asked(layer, x_test)
    _compare_logits(case, "test_logits_prior", logits, "test_features")
    if edward2:
        case.ignore("cov_test_prior", "edward2 answers an uninitialised cached covariance (README)")
        case.ignore("cov_test_after_reset", "edward2's reset leaves a stale covariance (README)")
    else:
        case.compare("cov_test_prior", covariance, tolerance.covariance(1))

    # -- training
    batches = [case.numbers(f"x_{i}") for i in case.indices_of("x_")]
    for epoch in range(case.meta("epochs")):
        if epoch > 0:
            layer.reset_covariance_matrix()
        for i, x in enumerate(batches):
            logits, _, features = (numpy_of(part) for part in layer(x, training=True))
            _compare_logits(case, f"train_logits_{i}", logits, f"train_features_{i}")
            case.compare(f"train_features_{i}", features, tolerance.features_of(_argument(layer, x)))
            _compare_precision(case, layer, f"after_{i}", edward2)
    if case.meta("epochs") > 1:
        _compare_precision(case, layer, "final_after_reset_epochs", edward2)

    # -- after training
    if edward2:
        layer.ridge_weight.assign(1.0)  # it averages as tf-models does, but adds its ridge afterwards
    condition = float(np.linalg.cond(numpy_of(layer.precision).astype(np.float64)))
    allowed = tolerance.covariance(condition)
    case.compare("cond_precision_final", condition, tolerance.condition(condition))
    if condition * tolerance.epsilon * _OWN_FACTOR < 1:  # beyond, Cholesky has no digits left in this dtype
        case.compare("cov_test", _asked(layer, x_test)[1], _OWN_FACTOR * allowed, note=" (not factored)")
    layer.factor_covariance()
    features = numpy_of(layer(x_test, training=False)[2])
    logits, covariance = _asked(layer, x_test)
    case.compare("test_features", features, tolerance.features_of(_argument(layer, x_test)))
    _compare_logits(case, "test_logits", logits, "test_features")
    case.compare("cov_test", covariance, allowed)
    case.compare("derived_f64_cov_test", covariance, allowed)
    recorded = case.array("cov_test").astype(np.float64)
    gap = np.abs(recorded - case.array("derived_f64_cov_test")).max()
    case.compare("max_abs_diff_cov_vs_derived", gap, DERIVED_GAP)
    layer.covariance = "diag"
    variance = numpy_of(layer(x_test, training=False)[1])
    case.compare_values(
        "cov_test (diag)", variance, np.diag(recorded), allowed, relative_to=float(np.abs(recorded).max())
    )
    layer.covariance = "full"
    _compare_mean_field(case, logits, variance, allowed)
    regularization = sum(float(numpy_of(loss)) for loss in layer.losses)
    rounded = max(tolerance.logits, 1e-8)  # Keras keeps the weight of an L2 penalty in float32
    case.compare_values("regularization_loss", regularization, case.meta("regularization_loss"), rounded)

    # -- after a reset
    layer.reset_covariance_matrix()
    unmoved = np.array_equal(numpy_of(layer.precision), initial)
    case.expect("precision_after_reset_equals_init", unmoved, "precision after a reset is initial")
    if not edward2:
        case.compare("cov_test_after_reset", _asked(layer, x_test)[1], tolerance.covariance(1))


def _build(case: Case, config: dict[str, Any]) -> RandomFeatureGaussianProcess:
    """Answers the layer with the recorded weights."""
    if not config["use_custom_random_features"] and case.array("rff_kernel_scale").item() != config["gp_kernel_scale"]:
        raise CaseError(f"{case.path}: rff_kernel_scale differs from gp_kernel_scale.")
    told = {**config, "return_gp_cov": True, "return_random_features": True, "gp_kernel_scale_trainable": False}
    layer = RandomFeatureGaussianProcess(
        **told,
        custom_random_features_activation=activation(case.meta("custom_random_features_activation")),
        l2_regularization=case.meta("l2_regularization"),
        covariance="full",
        ridge_decay=config["gp_cov_momentum"] > 0,
        dtype=case.dtype_name,
    )
    if case.unpatched:
        # Python floats through tf.sqrt are float32: an unrepaired float64 layer has its two constants from there.
        layer.feature_scale = float(np.float32(layer.feature_scale))
        layer.input_scale = float(np.float32(1) / np.sqrt(np.float32(layer.input_scale**-2)))
    layer.build((None, case.array("x_test").shape[1]))
    put(case, layer.beta, "beta")
    if config["gp_output_bias_trainable"]:
        put(case, layer.output_bias, "output_bias")
    if config["gp_kernel_type"] == "gaussian":
        put(case, layer.random_weight, "W")
        put(case, layer.random_phase, "b")
    if config["normalize_input"]:
        put(case, layer.layer_norm.gamma, "ln_gamma")
        put(case, layer.layer_norm.beta, "ln_beta")
        layer.layer_norm.epsilon = case.array("ln_epsilon").item()
    return layer


def _asked(layer: RandomFeatureGaussianProcess, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has seen no training data")
        logits, covariance, _ = layer(x, training=False)
    return numpy_of(logits), numpy_of(covariance)


def _argument(layer: RandomFeatureGaussianProcess, x: np.ndarray) -> float:
    """Answers the largest argument of the cosine."""
    if layer.random_weight is None:
        return 0.0
    x = x if layer.layer_norm is None else numpy_of(layer.layer_norm(x))
    wide = x.astype(np.float64) @ numpy_of(layer.random_weight).astype(np.float64) * layer.input_scale
    return float(np.abs(wide + numpy_of(layer.random_phase)).max())


def _compare_logits(case: Case, key: str, logits: np.ndarray, features: str) -> None:
    case.compare(key, logits, case.tolerances.logits, relative_to=logit_size(case, key, features))


def _compare_precision(case: Case, layer: RandomFeatureGaussianProcess, moment: str, edward2: bool) -> None:
    tolerance = case.tolerances
    # edward2 adds its ridge only to invert.
    ours = numpy_of(layer.data_precision if edward2 else layer.precision).astype(np.float64)
    if case.has("probe_Z"):
        probe = case.numbers("probe_Z").astype(np.float64)
        case.compare(f"precision_diag_{moment}", np.diag(ours), tolerance.precision)
        case.compare(f"precision_block16_{moment}", ours[:16, :16], tolerance.precision)
        case.compare(f"precision_probe_{moment}", ours @ probe, tolerance.precision_probe)
        case.compare(f"precision_fro_{moment}", np.linalg.norm(ours), tolerance.precision)
    else:
        case.compare(f"precision_{moment}", ours, tolerance.precision)


def _compare_mean_field(case: Case, logits: np.ndarray, variance: np.ndarray, covariance_tolerance: float) -> None:
    tolerance = case.tolerances
    factors = case.array("mf_factors").tolist()
    recorded_logits, recorded_covariance = case.numbers("test_logits"), case.numbers("cov_test")
    expected = case.array("mf_logits")
    if expected.shape != (len(factors), *recorded_logits.shape):
        raise CaseError(f"{case.path}: mf_logits has shape {expected.shape}, unfit for {len(factors)} factors.")
    alone = np.stack([numpy_of(mean_field_logits(recorded_logits, recorded_covariance, f)) for f in factors])
    case.compare("mf_logits", alone, tolerance.mean_field)
    # The whole way from our own: the error of f / sqrt(1 + factor v) to first order in those of f and v.
    whole = np.stack([numpy_of(mean_field_logits(logits, variance, factor)) for factor in factors])
    applied = np.maximum(factors, 0.0)[:, None, None]
    v = np.diag(case.array("cov_test")).astype(np.float64)[None, :, None]
    gap = covariance_tolerance * np.abs(case.array("cov_test")).max()
    logit_gap = tolerance.logits * logit_size(case, "test_logits", "test_features")
    shrunk = 1 + applied * v
    allowed = logit_gap / np.sqrt(shrunk) + np.abs(expected) * (tolerance.mean_field + applied * gap / (2 * shrunk))
    case.compare("mf_logits", whole, allowed, relative_to=1.0, note=" (whole)")
    whole = whole.astype(np.float64)
    odds = np.exp(whole - whole.max(axis=-1, keepdims=True))
    probs = 1 / (1 + np.exp(-whole)) if whole.shape[-1] == 1 else odds / odds.sum(axis=-1, keepdims=True)
    # A probability moves by at most half the largest move of a logit.
    slack = tolerance.mean_field + 0.5 * allowed.max(axis=-1, keepdims=True)
    case.compare("mf_probs_softmax", probs, slack, relative_to=1.0)
