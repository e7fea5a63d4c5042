import json
from pathlib import Path

import numpy as np
import pytest

from .keras_backends import BACKENDS, run_on

pytest.importorskip("keras")

_ONE_OF_EACH_KIND = ("gp_base_f32", "mean_field_logits_f32", "sn_dense_m0.9_f32", "sn_conv_same_s1_m0.9_f32")


def complaints(backend: str, paths: list[Path]) -> dict[str, str | None]:
    """What each case has to complain of, None of one that is met."""
    ran = run_on(
        backend,
        "-W",
        "error::UserWarning",
        "-m",
        "tests.conformance.keras_face",
        *map(str, paths),
        environment={"JAX_ENABLE_X64": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {Path(name).stem: complaint for name, complaint in json.loads(ran.stdout.splitlines()[-1]).items()}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_case_of_each_kind_is_met_and_a_disturbed_one_is_not(backend: str, tmp_path: Path) -> None:
    cases = Path(__file__).parent / "cases"
    with np.load(cases / "gp_base_f32.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays["cov_test"] = arrays["cov_test"] * np.float32(1.0001)
    disturbed = tmp_path / "disturbed.npz"
    np.savez(disturbed, **arrays)
    found = complaints(backend, [*(cases / f"{name}.npz" for name in _ONE_OF_EACH_KIND), disturbed])
    assert "cov_test" in (found.pop("disturbed") or "")
    assert found == dict.fromkeys(_ONE_OF_EACH_KIND)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_case_is_met_on_the_backend(backend: str, case_paths: list[Path]) -> None:
    assert case_paths, "--cases: there are no cases."
    found = complaints(backend, case_paths)
    assert len(found) == len(case_paths)
    assert {name: complaint for name, complaint in found.items() if complaint} == {}
