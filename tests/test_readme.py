"""The README does as it says: its Python runs in order, as one file; its links lead somewhere (commands: test_docs)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.markdown import ROOT, blocks

README = ROOT / "README.md"


@pytest.mark.slow
def test_the_python_blocks_run_in_order_in_one_file(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks(README, "python")))
    # What is set for the tests, a compiler's cache or a display, is not set for a reader; where things are found is.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(ROOT / "src"), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    command = [sys.executable, "-W", "error", script.name]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_there_are_python_blocks_that_train_predict_and_decide() -> None:
    code = "\n".join(blocks(README, "python"))
    compile(code, "README.md", "exec")
    for call in ("hesitant.fit(", ".predict(", "hesitant.calibrate(", "DeferralPolicy", "hesitant.compare(", "report("):
        assert call in code


def test_it_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 120


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link
