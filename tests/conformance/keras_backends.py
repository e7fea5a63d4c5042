"""Processes that run Keras on one backend each: a backend is chosen once, when Keras is imported."""

import os
import subprocess
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
_ROOT = Path(__file__).parents[2]


def run_on(backend: str, *arguments: str, environment: "dict[str, str] | None" = None) -> subprocess.CompletedProcess:
    """Runs Python with these arguments, in the root of the repository, with Keras on a backend, on one thread."""
    here = [str(_ROOT), os.environ.get("PYTHONPATH", ""), str(_ROOT / "src")]
    own = {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, here)),
        **(environment or {}),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=_ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=900)
