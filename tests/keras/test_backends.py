"""Each backend runs its checks in one process: Keras chooses a backend when it is imported, which takes seconds."""

from pathlib import Path

import pytest
from tests.conformance.keras_backends import BACKENDS, run_on

pytest.importorskip("keras")

# Of the backends themselves, and of Keras with them; each named by its words.
OF_OTHERS = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:Some donated buffers were not usable:UserWarning",
    "ignore:.*np.object.*:FutureWarning",
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_checks_hold_on_the_backend(backend: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "python_files=check_*.py", "-o", "addopts="]
    warnings = [part for warning in OF_OTHERS for part in ("-W", warning)]
    ran = run_on(backend, "-m", "pytest", *options, "--import-mode=importlib", *warnings, "tests/keras/on_each_backend")
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_saved_on_a_backend_answers_alike_on_all(backend: str, tmp_path: Path) -> None:
    module, path = "tests.keras.on_each_backend.saving", str(tmp_path / "model.keras")
    saved = run_on(backend, "-m", module, "save", path)
    assert saved.returncode == 0, saved.stderr[-3000:]
    for other in BACKENDS:
        loaded = run_on(other, "-m", module, "load", path)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
        assert float(loaded.stdout.splitlines()[-1]) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_importing_the_room_loads_what_keras_does_and_no_other_framework(backend: str) -> None:
    ask = "import sys, {0}; print([name for name in ('torch', 'tensorflow', 'jax') if name in sys.modules])"
    of_keras, of_the_room = (run_on(backend, "-c", ask.format(module)) for module in ("keras", "hesitant.keras"))
    assert of_the_room.returncode == 0, of_the_room.stderr[-2000:]
    assert of_the_room.stdout.splitlines()[-1] == of_keras.stdout.splitlines()[-1]
