"""`hesitant.Scorer` on Ray Data, with two workers of this machine."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from tests.integrations.folders import rows, saved, sngp

from hesitant import Scorer

# Ray warns of what it calls itself.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]

NUM_ROWS = 600


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    # Two workers, and one more processor for what reads: actors keep theirs.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all ports on 127.0.0.1
        import ray

        ray.init(
            num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=2**27
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("scored") / "model", sngp())


def dataset(ray: Any) -> Any:
    """The rows in six blocks."""
    batch = rows(NUM_ROWS)
    blocks = zip(np.split(batch["id"], 6), np.split(batch["x"], 6), strict=True)
    return ray.data.from_blocks([pyarrow.table({"id": ids, "x": list(x)}) for ids, x in blocks])


def require_same(answered: list[dict[str, Any]], scorer: Scorer) -> None:
    """Each row once, and as one process answers it."""
    alone = scorer(rows(NUM_ROWS))
    answered = sorted(answered, key=lambda row: row["id"])
    assert [row["id"] for row in answered] == list(range(NUM_ROWS))
    for name in ("label", "accept"):
        assert [row[name] for row in answered] == alone[name].tolist()
    for name in ("probs", "uncertainty", "confidence"):
        np.testing.assert_allclose([row[name] for row in answered], alone[name], atol=1e-6)


def test_tasks(ray: Any, folder: Path) -> None:
    scorer = Scorer(folder, inputs="x", keep=["id"])
    require_same(dataset(ray).map_batches(scorer, batch_size=64).take_all(), scorer)


def test_actors_of_the_class_of_which_one_is_killed(ray: Any, folder: Path, tmp_path: Path) -> None:
    class Dying(Scorer):
        def __call__(self, batch: Any) -> Any:
            answer = super().__call__(batch)
            if 300 in batch["id"] and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

    options = {"inputs": "x", "keep": ["id"]}
    scored = dataset(ray).map_batches(
        Dying,
        fn_constructor_args=[folder],
        fn_constructor_kwargs=options,
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=64,
    )
    require_same(scored.take_all(), Scorer(folder, **options))
    assert (tmp_path / "died").exists()


def test_a_bad_row_ends_the_job_by_its_name_or_is_marked(ray: Any, folder: Path) -> None:
    def spoiled(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "x": [None if row == 77 else x for row, x in zip(batch["id"], batch["x"], strict=True)]}

    data = dataset(ray).map_batches(spoiled)
    with pytest.raises(ray.exceptions.RayTaskError, match=r"column 'x' is missing.*id=77"):
        data.map_batches(Scorer(folder, inputs="x", keep=["id"])).take_all()
    marking = Scorer(folder, inputs="x", keep=["id"], outputs=["label"], bad_rows="mark")
    marked = [row for row in data.map_batches(marking).take_all() if row["error"]]
    assert [(row["id"], row["label"]) for row in marked] == [(77, -1)]
