"""Runs the files named and prints what each has to complain of, as one JSON object: ``{file: message or null}``."""

import json
import sys
import traceback
from pathlib import Path

import keras

from ..case import Case, CaseError, Kind, run_by
from . import end_to_end, gaussian_process, mean_field, spectral_conv, spectral_dense

KINDS: tuple[Kind, ...] = (gaussian_process, mean_field, spectral_dense, spectral_conv, end_to_end)


def in_float32(case: Case) -> bool:
    """Answers whether Keras computes in float32 what is float64: its products on PyTorch, on JAX its cosines."""
    backend = keras.backend.backend()
    return backend == "torch" or (backend == "jax" and (case.has("beta") or case.has("init_gp_beta")))


def complaint(path: Path) -> str | None:
    """Answers what is wrong with a case, None of one that is met."""
    try:
        run_by(KINDS, path, in_float32=in_float32)
    except CaseError as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return None


print("\n" + json.dumps({name: complaint(Path(name)) for name in sys.argv[1:]}))
