"""`hesitant.Scorer` on Spark, with two workers of this machine and its Java."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.integrations.folders import rows, saved, sngp

from hesitant import Scorer

# Spark warns of every pandas that is newer than itself, MLflow of its own type hints.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:PySpark does not yet:FutureWarning", "ignore:.*Any type hint is inferred", "ignore::DeprecationWarning"
    ),
]

NUM_ROWS = 600
OUTPUTS = ["probs", "label", "confidence", "uncertainty", "accept"]
SCHEMA = "probs array<float>, label bigint, confidence float, uncertainty double, accept boolean"


@contextmanager
def stopped() -> Iterator[Any]:
    """Gives a session of two workers, of which nothing is left afterwards, its virtual machine included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        from pyspark import SparkContext
        from pyspark.sql import SparkSession

        # A task may fail as often as on a cluster; alone, local[2] gives up at the first failure.
        builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        session = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        try:
            yield session
        finally:
            gateway = session.sparkContext._gateway
            session.stop()
            gateway.shutdown()
            gateway.proc.stdin.close()  # at which the virtual machine ends
            gateway.proc.wait(30)
            SparkContext._gateway = SparkContext._jvm = None


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    with stopped() as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("scored") / "model", sngp())


@pytest.fixture(scope="module")
def table(spark: Any) -> Any:
    batch = rows(NUM_ROWS)
    frame = pd.DataFrame({"id": batch["id"], "x": list(batch["x"])})
    return spark.createDataFrame(frame).repartition(6).cache()


def require_same(answered: pd.DataFrame, scorer: Scorer) -> None:
    """Each row once, and as one process answers it."""
    alone = scorer(rows(NUM_ROWS))
    answered = answered.sort_values("id")
    assert answered["id"].tolist() == list(range(NUM_ROWS))
    for name in ("label", "accept"):
        assert answered[name].tolist() == alone[name].tolist()
    for name in ("probs", "uncertainty", "confidence"):
        np.testing.assert_allclose(np.stack(answered[name].tolist()), alone[name], atol=1e-6)


def test_predict_batch_udf(spark: Any, table: Any, folder: Path) -> None:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import StructType

    scorer = Scorer(folder, inputs="x", outputs=OUTPUTS)
    score = predict_batch_udf(
        lambda: lambda x: scorer({"x": x}),
        return_type=StructType.fromDDL(SCHEMA.replace("boolean", "tinyint")),  # it knows no booleans
        batch_size=64,
        input_tensor_shapes=[[6]],
    )
    require_same(table.select("id", score("x").alias("scored")).select("id", "scored.*").toPandas(), scorer)


def test_map_in_pandas_when_a_worker_is_killed(spark: Any, table: Any, folder: Path, tmp_path: Path) -> None:
    scorer, died = Scorer(folder, inputs="x", keep=["id"], outputs=OUTPUTS), tmp_path / "died"

    def score(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            answer = scorer(frame)
            if 300 in answer["id"] and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield pd.DataFrame({name: list(column) for name, column in answer.items()})

    require_same(table.mapInPandas(score, f"id bigint, {SCHEMA}").toPandas(), scorer)
    assert died.exists()


def test_a_worker_loads_a_folder_once_for_all_its_tasks(spark: Any, table: Any, folder: Path) -> None:
    scorer = Scorer(folder, inputs="x")

    def identity(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            if len(frame):
                yield pd.DataFrame({"process": [os.getpid()], "scorer": [id(scorer)], "model": [id(scorer.load())]})

    seen = table.mapInPandas(identity, "process bigint, scorer bigint, model bigint").toPandas()
    assert len(seen) == 6  # partitions
    assert seen.groupby("process")["model"].nunique().tolist() == [1] * seen["process"].nunique()


def test_a_bad_row_ends_the_job_by_its_name_or_is_marked(spark: Any, table: Any, folder: Path) -> None:
    from pyspark.errors import PythonException
    from pyspark.sql import functions as f

    spoiled = table.withColumn("x", f.when(f.col("id") == 77, None).otherwise(f.col("x")))
    raising = Scorer(folder, inputs="x", keep=["id"], outputs=["label"])
    marking = Scorer(folder, inputs="x", keep=["id"], outputs=["label"], bad_rows="mark")

    def score(scorer: Scorer) -> Any:
        return lambda frames: (pd.DataFrame(scorer(frame)) for frame in frames)

    with pytest.raises(PythonException, match=r"column 'x' is missing.*id=77"):
        spoiled.mapInPandas(score(raising), "id bigint, label bigint").collect()
    scored = spoiled.mapInPandas(score(marking), "id bigint, label bigint, error string")
    assert [(row.id, row.label) for row in scored.where("error != ''").collect()] == [(77, -1)]


def test_an_mlflow_model(spark: Any, table: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.pyfunc
    from pyspark.sql.functions import struct

    from hesitant.integrations.mlflow import pyfunc_arguments

    model = tmp_path / "saved"
    mlflow.pyfunc.save_model(model, **pyfunc_arguments(folder, inputs="x", outputs=OUTPUTS))
    score = mlflow.pyfunc.spark_udf(spark, str(model), SCHEMA, env_manager="local")
    answered = table.select("id", score(struct("x")).alias("scored")).select("id", "scored.*").toPandas()
    require_same(answered, Scorer(folder, inputs="x", outputs=OUTPUTS))
