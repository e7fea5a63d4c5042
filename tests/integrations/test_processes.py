"""Some processes on one machine that score shards, one of which is killed: no row is lost and none doubled."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.integrations.folders import rows, saved, sngp
from tests.markdown import ROOT, blocks

from hesitant import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

NUM_ROWS, NUM_SHARDS = 240, 12


def recipe() -> str:
    """Answers the function of the page that a process runs."""
    page = ROOT / "docs" / "into-your-service.md"
    block = next(block for block in blocks(page, "python") if "def work(" in block)
    start = block.index("def work(")
    return block[start : block.index("\n\n", start)]


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["before it is named", "when half is written"])
def test_who_runs_it_again_does_what_is_missing(tmp_path: Path, dies: str) -> None:
    scorer = Scorer(saved(tmp_path / "model", sngp()), inputs="x", keep=["id"])
    shards, done = tmp_path / "shards", tmp_path / "done"
    shards.mkdir()
    done.mkdir()
    batch = rows(NUM_ROWS)
    for number, ids in enumerate(np.split(batch["id"], NUM_SHARDS)):
        np.savez(shards / f"{number:05}.npz", id=ids, x=batch["x"][ids])

    def dying(*_: Any, **__: Any) -> None:
        if not (tmp_path / "died").exists() and len(list(done.glob("*.npz"))) >= 3:
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    class Os:
        @staticmethod
        def replace(source: Path, target: Path) -> None:
            if dies == "before it is named":
                dying()
            os.replace(source, target)

    class Np:
        load = staticmethod(np.load)

        @staticmethod
        def savez(file: Any, **columns: Any) -> None:
            if dies == "when half is written":
                file.write(b"PK")
                file.flush()
                dying()
                file.seek(0)
            np.savez(file, **columns)

    known: dict[str, Any] = {"os": Os, "np": Np, "torch": torch, "scorer": scorer, "shards": shards, "done": done}
    exec(recipe(), known)

    def run() -> list[int | None]:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=known["work"], args=(worker, 2)) for worker in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return sorted(process.exitcode or 0 for process in processes)

    assert run() == [-signal.SIGKILL, 0]
    assert 3 <= len(list(done.glob("*.npz"))) < NUM_SHARDS
    written = {path.name: path.stat().st_mtime_ns for path in done.glob("*.npz")}
    assert run() == [0, 0]
    assert {name: (done / name).stat().st_mtime_ns for name in written} == written  # not done again
    parts = [np.load(path) for path in sorted(done.glob("*.npz"))]
    assert sorted(np.concatenate([part["id"] for part in parts]).tolist()) == list(range(NUM_ROWS))
    np.testing.assert_allclose(np.concatenate([part["probs"] for part in parts]), scorer(batch)["probs"], atol=1e-6)
