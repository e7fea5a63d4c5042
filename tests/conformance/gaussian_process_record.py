"""gp_* and ed2_gp_*: what a file says of its layer, whatever runs it."""

from typing import Any

import numpy as np

from .case import Case, CaseError

_LIKELIHOODS = ("gaussian", "binary_logistic", "poisson")
_REQUIRED = frozenset(
    {
        "units",
        "num_inducing",
        "normalize_input",
        "scale_random_features",
        "gp_kernel_scale",
        "gp_cov_momentum",
        "gp_cov_ridge_penalty",
        "gp_cov_likelihood",
        "gp_output_bias",
    }
)
_OPTIONAL = {
    "gp_kernel_type": "gaussian",
    "use_custom_random_features": True,
    "gp_output_bias_trainable": False,
    # Marked trainable or not, the reference's kernel scale never trains (FIELD.md section 1).
    "gp_kernel_scale_trainable": False,
    # What the reference returns beside the logits; ours has methods for both.
    "return_gp_cov": True,
    "return_random_features": False,
}


def recognises(case: Case) -> bool:
    """Answers whether this is a Gaussian-process case."""
    return case.has("beta", "x_0", "x_test") and isinstance(case.meta("config", None), dict)


def configuration(case: Case) -> dict[str, Any]:
    """Answers the arguments of the recorded layer, all of them known."""
    config = {**_OPTIONAL, **case.meta("config")}
    missing = sorted(_REQUIRED - set(config))
    if missing:
        raise CaseError(f"{case.path}: the configuration lacks {missing}.")
    unknown = sorted(set(config) - _REQUIRED - set(_OPTIONAL))
    if unknown:
        raise CaseError(f"{case.path}: the configuration has keys that the runner does not know: {unknown}.")
    for key, allowed in (
        ("gp_cov_likelihood", _LIKELIHOODS),
        ("gp_kernel_type", ("gaussian", "linear")),
        *((flag, (True, False)) for flag in ("normalize_input", "scale_random_features", *_flags())),
    ):
        if config[key] not in allowed:
            raise CaseError(f"{case.path}: {key}={config[key]!r} is not known: expected one of {allowed}.")
    if config["use_custom_random_features"] == case.has("rff_kernel_scale"):
        raise CaseError(f"{case.path}: rff_kernel_scale belongs to use_custom_random_features=False and to it alone.")
    return config


def _flags() -> list[str]:
    return [key for key, default in _OPTIONAL.items() if isinstance(default, bool)]


def is_edward2(case: Case) -> bool:
    """Answers which of the two references it is."""
    reference = str(case.meta("reference"))
    edward2, tfm = "edward2/tensorflow/layers/random_feature.py" in reference, "layers/gaussian_process.py" in reference
    if edward2 == tfm:
        raise CaseError(f"{case.path}: reference {reference!r} is neither tf-models' layer nor edward2's.")
    return edward2


def check_sizes(case: Case, config: dict[str, Any]) -> None:
    """Raises where the arrays are not of the sizes that the settings say."""
    sizes = [len(case.array(f"x_{i}")) for i in case.indices_of("x_")]
    for key, ours in (
        ("input_dim", case.array("x_test").shape[1]),
        ("batch_sizes", sizes),
        ("test_size", len(case.array("x_test"))),
        ("full_precision_stored", not case.has("probe_Z")),
    ):
        if case.meta(key) != ours:
            raise CaseError(f"{case.path}: meta {key}={case.meta(key)}, but the arrays say {ours}.")
    if int(case.array("n_batches")) != len(sizes):
        raise CaseError(f"{case.path}: n_batches={case.array('n_batches')}, but there are {len(sizes)}.")
    case.meta("numpy_seed", None)  # how the stored arrays were drawn
    case.meta("custom_random_features_initializer", None)  # W itself is stored


def logit_size(case: Case, logits: str, features: str) -> float:
    """Answers what the rounding of logits goes with: their size, or the root of their summed squared terms."""
    phi, beta = case.array(features).astype(np.float64), case.array("beta").astype(np.float64)
    return max(float(np.abs(case.array(logits)).max()), float(np.sqrt(phi**2 @ beta**2).max()))
