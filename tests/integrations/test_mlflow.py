"""A saved model as an MLflow model, in folders, without a server."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.integrations.folders import network, rows, saved, sngp

from hesitant import Scorer
from hesitant.integrations.mlflow import ScoredModel, pyfunc_arguments

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:mlflow", "ignore::FutureWarning:mlflow", "ignore:.*Any type hint is inferred"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("scored") / "model", sngp(), label_names=["a", "b", "c"])


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no database
    import mlflow.pyfunc

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    yield mlflow
    mlflow.set_tracking_uri(before)


def require_same(answered: pd.DataFrame, scorer: Scorer, batch: dict[str, Any]) -> None:
    for name, column in scorer(batch).items():
        np.testing.assert_array_equal(np.stack(answered[name].to_list()), column)


def test_a_logged_model_answers_a_frame_as_the_scorer_does(mlflow: Any, folder: Path) -> None:
    options: dict[str, Any] = {"inputs": {"x": (6,)}, "keep": ["id"], "outputs": ["probs", "label_name", "accept"]}
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(name="model", **pyfunc_arguments(folder, **options))
    batch = rows(20)
    frame = pd.DataFrame({"id": batch["id"], "x": list(batch["x"])}, index=[f"row {row}" for row in batch["id"]])
    answered = mlflow.pyfunc.load_model(logged.model_uri).predict(frame)
    require_same(answered, Scorer(folder, **options), batch)
    assert answered.index.equals(frame.index)


def test_a_saved_model_is_without_pickle_and_answers_arrays(mlflow: Any, folder: Path, tmp_path: Path) -> None:
    mlflow.pyfunc.save_model(tmp_path / "saved", **pyfunc_arguments(folder, inputs="x", keep=["id"]))
    names = [path.name for path in (tmp_path / "saved").rglob("*")]
    assert "config.json" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    batch = rows(5)
    require_same(mlflow.pyfunc.load_model(tmp_path / "saved").predict(batch), Scorer(folder, inputs="x"), batch)


def test_a_bad_row_is_named(mlflow: Any, folder: Path, tmp_path: Path) -> None:
    mlflow.pyfunc.save_model(tmp_path / "saved", **pyfunc_arguments(folder, inputs="x"))
    frame = pd.DataFrame({"x": [[0.0] * 6, None]})
    with pytest.raises(ValueError, match="row 1 of column 'x' is missing"):
        mlflow.pyfunc.load_model(tmp_path / "saved").predict(frame)


def test_what_cannot_be_written_or_asked_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="without pickle"):
        pyfunc_arguments(folder, model=network())
    with pytest.raises(ValueError, match="outputs"):
        pyfunc_arguments(folder, outputs=["probabilities"])
    with pytest.raises(ValueError, match="there are none"):
        ScoredModel(Scorer(folder)).predict(rows(1), {"num_samples": 3})
    with pytest.raises(TypeError, match="cannot be written"):
        pyfunc_arguments(folder, rng=torch.Generator())
    with pytest.raises(FileNotFoundError):
        pyfunc_arguments(folder / "none")
