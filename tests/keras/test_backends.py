"""Each backend runs its checks in a process of its own: Keras chooses one when it is imported, and TensorFlow takes

seconds to come up, so that the checks of a backend share one.
"""

import pytest
from tests.conformance.keras_backends import BACKENDS, run_on

pytest.importorskip("keras")

# Of the backends themselves, and of Keras with them; each named by its words.
OF_OTHERS = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:Some donated buffers were not usable:UserWarning",
    "ignore:.*np.object.*:FutureWarning",
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_checks_hold_on_the_backend(backend: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "python_files=check_*.py", "-o", "addopts="]
    warnings = [part for warning in OF_OTHERS for part in ("-W", warning)]
    ran = run_on(backend, "-m", "pytest", *options, "--import-mode=importlib", *warnings, "tests/keras/on_each_backend")
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_importing_the_room_loads_keras_and_numpy_and_no_other_framework(backend: str) -> None:
    others = {"torch", "tensorflow", "jax"} - {backend}
    code = f"import sys, hesitant.keras; print([name for name in {sorted(others)} if name in sys.modules])"
    ran = run_on(backend, "-c", code)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = ran.stdout.splitlines()[-1]
    assert "torch" not in found
    assert "jax" not in found or backend == "jax"
