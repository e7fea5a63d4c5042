from pathlib import Path

import pytest

from .kinds import run_case


def test_case_is_met(case_path: Path) -> None:
    if not case_path.exists():
        pytest.fail(f"--cases: {case_path} does not exist.")
    if case_path.is_dir():
        pytest.fail(f"--cases: {case_path} holds no cases.")
    run_case(case_path)
