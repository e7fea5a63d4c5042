"""Runs a script of the tests in several gloo workers, as torchrun starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import hesitant

ROOT = Path(__file__).parents[2]


def in_workers(script: str, folder: Path, *, workers: int = 2) -> list[dict[str, Any]]:
    """Runs ``tests/integrations/SCRIPT FOLDER`` in each worker, and answers what each has left there, by its rank.

    What they print is shown where one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(hesitant.__file__).parents[1]), str(ROOT)])
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={workers}", f"--master_port={port}"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(
        [sys.executable, *launch, str(ROOT / "tests" / "integrations" / script), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(workers)]
