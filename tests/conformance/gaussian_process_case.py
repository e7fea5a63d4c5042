"""gp_* and ed2_gp_*: the random-feature Gaussian process, batch after batch."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesitant.nn import RandomFeatureGaussianProcess, mean_field_logits

from .activations import activation
from .case import Case, CaseError
from .gaussian_process_record import check_sizes, configuration, is_edward2, logit_size, recognises
from .tolerances import DERIVED_GAP

__all__ = ["recognises", "run"]


def run(case: Case) -> None:
    """Builds the recorded layer, shows it the recorded batches, and compares all that it answers."""
    config = configuration(case)
    edward2 = is_edward2(case)
    tolerance = case.tolerances
    check_sizes(case, config)
    layer = _build(case, config, exact=False)
    exact = _build(case, config, exact=True)  # no second pass in the reference: both of our ways must agree with it
    x_test = case.tensor("x_test")

    # -- before training
    case.compare("output_bias", layer.output_bias, 0.0)
    if edward2 or case.has("probe_Z") or case.has("precision_init"):
        _compare_precision(case, layer, "init", edward2)
    initial = layer.precision
    _compare_logits(case, "test_logits_prior", layer.mean(x_test), "test_features")
    if edward2:
        case.ignore("cov_test_prior", "edward2 answers an uninitialised cached covariance (README)")
        case.ignore("cov_test_after_reset", "edward2's reset leaves a stale covariance (README)")
    else:
        case.compare("cov_test_prior", _prior_covariance(layer, x_test), tolerance.covariance(1))

    # -- training
    batches = [case.tensor(f"x_{i}") for i in case.indices_of("x_")]
    epochs = case.meta("epochs")
    for epoch in range(epochs):
        if epoch > 0:
            layer.reset_covariance()
            exact.reset_covariance()
        for i, x in enumerate(batches):
            layer.train()
            logits = layer(x)
            _compare_logits(case, f"train_logits_{i}", logits, f"train_features_{i}")
            case.compare(f"train_features_{i}", layer.features(x), tolerance.features_of(_argument(layer, x)))
            _compare_precision(case, layer, f"after_{i}", edward2)
            if config["gp_cov_momentum"] <= 0:
                exact.update(x)
                _compare_precision(case, exact, f"after_{i}", edward2, note=" (update)")
    if epochs > 1:
        _compare_precision(case, layer, "final_after_reset_epochs", edward2)

    # -- after training
    layer.eval()
    _keep_edward2_ridge(layer, edward2)
    condition = float(torch.linalg.cond(layer.precision))
    covariance_tolerance = tolerance.covariance(condition)
    case.compare("cond_precision_final", condition, tolerance.condition(condition))
    case.compare("test_features", layer.features(x_test), tolerance.features_of(_argument(layer, x_test)))
    _compare_logits(case, "test_logits", layer.mean(x_test), "test_features")
    covariance = layer.covariance(x_test)
    case.compare("cov_test", covariance, covariance_tolerance)
    case.compare("derived_f64_cov_test", covariance, covariance_tolerance)
    recorded = case.array("cov_test").astype(np.float64)
    gap = np.abs(recorded - case.array("derived_f64_cov_test")).max()
    case.compare("max_abs_diff_cov_vs_derived", gap, DERIVED_GAP)
    if config["gp_cov_momentum"] <= 0:
        largest = float(np.abs(recorded).max())
        case.compare("cov_test", exact.covariance(x_test), covariance_tolerance, note=" (update)")
        variance = np.repeat(np.diag(recorded)[:, None], config["units"], axis=1)
        posterior = exact.posterior(x_test)
        case.compare_values(
            "cov_test (posterior.variance)", posterior.variance, variance, covariance_tolerance, relative_to=largest
        )
        _compare_logits(case, "test_logits", posterior.mean, "test_features", note=" (posterior.mean)")
    _compare_mean_field(case, layer, x_test, covariance_tolerance)
    _compare_regularization(case, layer)

    # -- after a reset
    layer.reset_covariance()
    case.expect(
        "precision_after_reset_equals_init", torch.equal(layer.precision, initial), "precision after a reset is initial"
    )
    if not edward2:
        case.compare("cov_test_after_reset", _prior_covariance(layer, x_test), tolerance.covariance(1))


# ---------------------------------------------------------------- the layer


def _build(case: Case, config: dict[str, Any], *, exact: bool) -> RandomFeatureGaussianProcess:
    """Answers the layer with the recorded weights."""
    linear, normalized = config["gp_kernel_type"] == "linear", config["normalize_input"]
    decaying = config["gp_cov_momentum"] > 0 and not exact
    input_dim = case.array("x_test").shape[1]
    kernel_scale = 1.0
    if not config["use_custom_random_features"]:
        # Keras' RandomFourierFeatures divides by the scale, not by its root, after the LayerNorm too.
        kernel_scale = case.array("rff_kernel_scale").item() ** 2
        if case.array("rff_kernel_scale").item() != config["gp_kernel_scale"]:
            raise CaseError(f"{case.path}: rff_kernel_scale differs from gp_kernel_scale.")
    elif not normalized:  # the reference ignores the scale where it normalises
        kernel_scale = config["gp_kernel_scale"]
    if case.unpatched:
        kernel_scale = float(np.float32(1) / np.sqrt(np.float32(kernel_scale))) ** -2
    layer = RandomFeatureGaussianProcess(
        input_dim,
        config["units"],
        num_inducing=config["num_inducing"],
        kernel=config["gp_kernel_type"],
        kernel_scale=kernel_scale,
        normalize_input=normalized,
        activation=activation(case.meta("custom_random_features_activation")),
        scale_random_features=config["scale_random_features"],
        bias=config["gp_output_bias"],
        train_bias=config["gp_output_bias_trainable"],
        l2_penalty=case.meta("l2_regularization"),
        ridge_penalty=config["gp_cov_ridge_penalty"],
        # 1 forgets nothing: the reference's plain sum, taken in the training forward as it does.
        momentum=None if exact else config["gp_cov_momentum"] if decaying else 1.0,
        ridge_decay=decaying,
        likelihood=config["gp_cov_likelihood"],
        generator=torch.Generator().manual_seed(0),
        dtype=case.dtype,
    )
    if case.unpatched:
        # Python floats through tf.sqrt are float32: an unrepaired float64 layer has its two constants from there.
        layer.feature_scale = float(np.float32(layer.feature_scale))
    with torch.no_grad():
        layer.beta.copy_(_shaped(case, "beta", layer.beta.shape))
        if config["gp_output_bias_trainable"]:
            layer.output_bias.copy_(case.tensor("output_bias"))
        if not linear:
            layer.random_weight.copy_(_shaped(case, "W", (input_dim, config["num_inducing"])).T)
            layer.random_phase.copy_(_shaped(case, "b", (config["num_inducing"],)))
        if normalized:
            layer.layer_norm.weight.copy_(_shaped(case, "ln_gamma", (input_dim,)))
            layer.layer_norm.bias.copy_(_shaped(case, "ln_beta", (input_dim,)))
            layer.layer_norm.eps = case.array("ln_epsilon").item()
    return layer


def _shaped(case: Case, key: str, shape: "tuple[int, ...] | torch.Size") -> Tensor:
    tensor = case.tensor(key)
    if tensor.shape != torch.Size(shape):
        raise CaseError(f"{case.path}: {key} has shape {tuple(tensor.shape)}, expected {tuple(shape)}.")
    return tensor


def _prior_covariance(layer: RandomFeatureGaussianProcess, x: Tensor) -> Tensor:
    """Answers the covariance of a layer that holds no data: added, and taken out again, for it refuses one without."""
    assert layer.covariance_state == "none"
    layer = copy.deepcopy(layer)
    layer.laplace.momentum, layer.laplace.ridge_decay = None, False
    layer.update(x)
    layer.downdate(x)
    return layer.covariance(x)


def _keep_edward2_ridge(layer: RandomFeatureGaussianProcess, edward2: bool) -> None:
    """Edward2 averages as tf-models does, but adds its ridge afterwards, so that it does not decay."""
    if edward2 and layer.laplace.ridge_decay:
        state = layer.state_dict()
        state["laplace.ridge_weight"] = torch.ones_like(state["laplace.ridge_weight"])
        layer.load_state_dict(state)


# ---------------------------------------------------------------- what is compared


def _argument(layer: RandomFeatureGaussianProcess, x: Tensor) -> float:
    """Answers the largest argument of the cosine."""
    if layer.random_weight is None or layer.random_phase is None:
        return 0.0
    x = x if layer.layer_norm is None else layer.layer_norm(x)
    projected = x.double() @ layer.random_weight.double().T / layer.kernel_scale**0.5 + layer.random_phase.double()
    return float(projected.detach().abs().max())


def _compare_logits(case: Case, key: str, logits: Tensor, features: str, *, note: str = "") -> None:
    size = logit_size(case, key, features)
    case.compare(key, logits, case.tolerances.logits, relative_to=size, note=note)


def _compare_precision(
    case: Case,
    layer: RandomFeatureGaussianProcess,
    moment: str,
    edward2: bool,
    *,
    note: str = "",
) -> None:
    tolerance = case.tolerances
    ours = layer.laplace.data_precision if edward2 else layer.precision  # edward2 adds its ridge only to invert
    if case.has("probe_Z"):
        probe = case.tensor("probe_Z").double()
        case.compare(f"precision_diag_{moment}", ours.diagonal(), tolerance.precision, note=note)
        case.compare(f"precision_block16_{moment}", ours[:16, :16], tolerance.precision, note=note)
        case.compare(f"precision_probe_{moment}", ours @ probe, tolerance.precision_probe, note=note)
        case.compare(f"precision_fro_{moment}", np.linalg.norm(ours.numpy()), tolerance.precision, note=note)
    else:
        case.compare(f"precision_{moment}", ours, tolerance.precision, note=note)


def _compare_mean_field(
    case: Case, layer: RandomFeatureGaussianProcess, x_test: Tensor, covariance_tolerance: float
) -> None:
    tolerance = case.tolerances
    factors = case.array("mf_factors").tolist()
    recorded_logits, recorded_covariance = case.tensor("test_logits"), case.tensor("cov_test")
    logits, variance = layer.mean(x_test), layer.covariance(x_test).diagonal()
    expected = case.array("mf_logits")
    if expected.shape != (len(factors), *recorded_logits.shape):
        raise CaseError(f"{case.path}: mf_logits has shape {expected.shape}, unfit for {len(factors)} factors.")
    # The function alone, from the recorded logits and covariance.
    alone = torch.stack([mean_field_logits(recorded_logits, recorded_covariance.diagonal(), f) for f in factors])
    case.compare("mf_logits", alone, tolerance.mean_field)
    # And the whole way from our own: the error of f / sqrt(1 + factor v) to first order in those of f and v.
    whole = torch.stack([mean_field_logits(logits, variance, factor) for factor in factors])
    applied = np.maximum(factors, 0.0)[:, None, None]
    v = np.diag(case.array("cov_test")).astype(np.float64)[None, :, None]
    gap = covariance_tolerance * np.abs(case.array("cov_test")).max()
    logit_gap = tolerance.logits * logit_size(case, "test_logits", "test_features")
    shrunk = 1 + applied * v
    allowed = logit_gap / np.sqrt(shrunk) + np.abs(expected) * (tolerance.mean_field + applied * gap / (2 * shrunk))
    case.compare("mf_logits", whole, allowed, relative_to=1.0, note=" (whole)")
    if layer.likelihood != "poisson":  # the files hold tf-models' formula, whatever the likelihood
        forwards = []
        for factor in factors:
            layer.mean_field_factor = factor
            forwards.append(layer(x_test))
        case.compare("mf_logits", torch.stack(forwards), allowed, relative_to=1.0, note=" (eval forward)")
    probs = torch.sigmoid(whole) if whole.shape[-1] == 1 else torch.softmax(whole, dim=-1)
    # A probability moves by at most half the largest move of a logit.
    slack = tolerance.mean_field + 0.5 * allowed.max(axis=-1, keepdims=True)
    case.compare("mf_probs_softmax", probs, slack, relative_to=1.0)


def _compare_regularization(case: Case, layer: RandomFeatureGaussianProcess) -> None:
    expected = case.meta("regularization_loss")
    case.compare_values("regularization_loss", layer.regularization_loss(), expected, case.tolerances.logits)
