"""The README does as it says: its Python runs in order, as one file; its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_python_blocks_run_in_order_in_one_file(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")))
    # What is set for the tests, a compiler's cache or a display, is not set for a reader; where things are found is.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(ROOT / "src"), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    command = [sys.executable, "-W", "error", script.name]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_there_are_python_blocks_that_train_predict_and_decide() -> None:
    code = "\n".join(blocks("python"))
    compile(code, "README.md", "exec")
    for call in ("hesitant.fit(", ".predict(", "hesitant.calibrate(", "DeferralPolicy", "hesitant.compare(", "report("):
        assert call in code


def test_every_command_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shell = [line.split("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    commands = [words for words in shell if words]
    assert commands
    for words in commands:
        assert words[0] == "make", f"{' '.join(words)!r} is no command of the Makefile"
        assert set(words[1:]) <= targets, f"the Makefile has no target for {' '.join(words)!r}"
    for target in re.findall(r"`make ([a-z-]+)`", README):
        assert target in targets
