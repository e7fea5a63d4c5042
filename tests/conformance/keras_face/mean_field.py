"""mean_field_logits_*: the functions of tf-models and of edward2, over factors from -1 to 100."""

from typing import Any

import numpy as np

import keras
from hesitant.keras import mean_field_logits

from ..case import Case, CaseError
from .numbers import numpy_of

_LIKELIHOODS = ("logistic", "binary_logistic", "poisson")


def recognises(case: Case) -> bool:
    """Answers whether this is a mean-field case."""
    return case.has("logits", "covmat", "factors")


def run(case: Case) -> None:
    """Compares the function with every recorded call of it."""
    logits, logits_1d, covmat = (case.numbers(key) for key in ("logits", "logits_1d", "covmat"))
    factors, tolerance = case.array("factors").tolist(), case.tolerances.mean_field
    if logits_1d.ndim != 1 or logits.ndim != 2 or covmat.shape != (len(logits), len(logits)):
        raise CaseError(f"{case.path}: logits {logits.shape} and covmat {covmat.shape} do not fit each other.")

    def over_factors(f: np.ndarray, v: "np.ndarray | None", likelihood: str = "logistic") -> np.ndarray:
        return np.stack([numpy_of(mean_field_logits(f, v, factor, likelihood)) for factor in factors])

    case.compare("tfm_logits", over_factors(logits, covmat), tolerance)
    case.compare("tfm_logits", over_factors(logits, np.diag(covmat)), tolerance, note=" (variance)")
    case.compare("tfm_logits_covmat_none", over_factors(logits, None), tolerance)
    case.compare("tfm_logits_1d", over_factors(logits_1d, covmat), tolerance)
    case.compare("tfm_factor_none", numpy_of(mean_field_logits(logits, covmat, None)), 0.0)
    softmax: Any = keras.ops.softmax(over_factors(logits, covmat), axis=-1)
    case.compare("tfm_softmax", numpy_of(softmax), tolerance)

    for likelihood in _LIKELIHOODS:
        for suffix, f, v in (("", logits, covmat), ("_covmat_none", logits, None), ("_1d", logits_1d, covmat)):
            key = f"ed2_{likelihood}{suffix}"
            if case.array(key).size == 0:
                # Not run: edward2 has no variance of 1 for poisson, and mixes dtypes in float64 (README).
                if suffix != "_covmat_none" or (likelihood != "poisson" and case.dtype_name == "float32"):
                    case.fail(key, "the recorded array is empty, which only a covmat of None explains")
                continue
            ours = over_factors(f, v, likelihood)
            if likelihood != "poisson":
                case.compare(key, ours, tolerance)
                continue
            spread = np.ones(len(f)) if v is None else np.diag(v).astype(np.float64)
            exponent = np.maximum(factors, 0.0)[:, None] * spread / 2  # (factors, B)
            allowed = case.tolerances.poisson(exponent.reshape(exponent.shape + (1,) * (f.ndim - 1)))
            magnitude = np.where(np.isfinite(case.array(key)), np.abs(case.array(key)), 1.0)
            case.compare(key, ours, allowed, relative_to=magnitude, infinite=True)
