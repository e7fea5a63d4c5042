"""Sums over shares that engines deal out are those of one worker: torchrun with gloo workers, and Ray Data."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hesitant import SNGP, CovarianceSums

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, dict[str, Any]] = {
    "shared": {},
    "knn": {"ood_score": "knn"},
    "few knn": {"ood_score": "knn"},
    "classes": {"likelihood": "softmax"},
    "low rank": {"likelihood": "softmax", "covariance_rank": 4},
}

# What each worker runs. The shares are uneven, and the last worker has none.
WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from hesitant import CovarianceSums
from hesitant.nn import CovarianceError
from tests.leaving import leave

folder, torch_threads = Path(sys.argv[1]), torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, workers = dist.get_rank(), dist.get_world_size()
given = torch.load(folder / "given.pt", weights_only=False)
share = given["x"].tensor_split(given["cuts"][workers])[rank]
for name, model in given["models"].items():
    sums = CovarianceSums(model, seed=rank)
    if len(share):
        sums.update(share, batch_size=5 + rank)
    sums.all_reduce().finish()
    neighbors = None if model.neighbors is None else model.neighbors.inputs
    torch.save((model.gp.laplace.data_precision, sums.count, neighbors), folder / f"{workers} {rank} {name}.pt")
    again = CovarianceSums(model).update(given["x"][rank:rank + 1])
    with torch.no_grad():
        model.gp.beta += rank
    try:
        CovarianceSums(model).update(given["x"][rank:rank + 1]).all_reduce()
    except CovarianceError as error:
        assert "belong to different weights" in str(error)
    else:
        raise AssertionError("weights that differ were added up")
leave()
"""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(97, 4, generator=seeded(1), dtype=torch.float64)


def sngp(**options: Any) -> SNGP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8, dtype=torch.float64), nn.Tanh(), nn.Linear(8, 5, dtype=torch.float64))
    model = SNGP(network, num_inducing=24, kernel_scale="median", generator=seeded(), **options)
    model.prepare_covariance(X)
    return model


def models() -> dict[str, SNGP]:
    answer = {name: sngp(**options) for name, options in OPTIONS.items()}
    few = answer["few knn"].neighbors
    assert few is not None
    few.max_inputs = 20
    return answer


def assert_equal(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max()) <= 1e-9 * float(other.abs().max())


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    answer = {}
    for name, model in models().items():
        model.fit_covariance(X, batch_size=97)
        answer[name] = model.gp.laplace.data_precision
    return answer


@pytest.mark.parametrize("workers", [2, 4])
def test_torchrun(workers: int, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    cuts = {2: [80], 4: [3, 70, 97]}
    torch.save({"x": X, "cuts": cuts, "models": models()}, tmp_path / "given.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    ran = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    with torch.no_grad():
        known = nn.functional.normalize(sngp().model[:-1](X).float(), dim=-1)  # type: ignore[index]
    for name, one in expected.items():
        kept = []
        for rank in range(workers):
            total, count, neighbors = torch.load(tmp_path / f"{workers} {rank} {name}.pt")
            assert count == 97
            assert_equal(total, one)
            kept.append(neighbors)
        if kept[0] is not None:
            assert all(torch.equal(kept[0], other) for other in kept)
            assert len(kept[0]) == (20 if name == "few knn" else 97)
            assert float(torch.cdist(kept[0], known).amin(1).max()) < 1e-3
            assert len(torch.cdist(kept[0], known).argmin(1).unique()) == len(kept[0])


class Adding:
    """Answers the sums of each block of rows as bytes, of several models at once: the engine starts slowly."""

    def __init__(self, models: dict[str, SNGP], started: Path) -> None:
        torch.set_num_threads(1)
        self.models = models
        (started / str(os.getpid())).touch()
        while len(list(started.iterdir())) < 2:  # else the first to start may do it all
            time.sleep(0.1)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        x = torch.from_numpy(block["data"].copy())
        sums = [CovarianceSums(model).update(x).to_bytes() for model in self.models.values()]
        return {"name": list(self.models), "sums": sums, "process": [os.getpid()] * len(sums)}


def merging(block: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    merged: dict[str, CovarianceSums] = {}
    for name, content in zip(block["name"], block["sums"], strict=True):
        part = CovarianceSums.from_bytes(content)
        merged[name] = merged[name].merge(part) if name in merged else part
    return {"name": list(merged), "sums": [sums.to_bytes() for sums in merged.values()]}


@pytest.mark.filterwarnings("ignore")  # Ray warns of its own options
def test_ray_data(expected: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    # The workers import this file, and the library, by their names.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'src'}")
    given = models()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        rows = ray.data.from_numpy(X.numpy()).repartition(7)
        # Half a processor each, so that one is left to deal the rows out.
        two = ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=1)
        added = rows.map_batches(
            Adding, fn_constructor_args=(given, tmp_path), batch_size=10, compute=two, num_cpus=0.5
        ).materialize()
        assert len({row["process"] for row in added.iter_rows()}) == 2
        totals = {name: CovarianceSums(model) for name, model in given.items()}
        for row in added.map_batches(merging, batch_size=12).iter_rows():  # a first round of the reduce
            totals[row["name"]].merge(CovarianceSums.from_bytes(row["sums"]))
    finally:
        ray.shutdown()
    for name, total in totals.items():
        assert total.count == 97
        total.finish()
        assert_equal(given[name].gp.laplace.data_precision, expected[name])
