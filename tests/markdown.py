"""Runs the code of a Markdown page as a reader would: all of it, in order, in one file and an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What is set for the tests, a compiler's cache or a display, is not set for a reader; where things are found is.
KEPT = ("PATH", "HOME", "OMP_NUM_THREADS")


def blocks(page: Path, language: str) -> list[str]:
    """Answers the page's blocks of code in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def run_blocks(page: Path, folder: Path, *, warnings: str = "error") -> str:
    """Runs the page's Python in the folder, and answers what it printed."""
    script = folder / "page.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(ROOT / "src"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    command = [sys.executable, "-W", warnings, script.name]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout
