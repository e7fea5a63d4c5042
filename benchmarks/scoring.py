"""What scoring costs: rows a second of a Scorer beside the plain model's loop, of Ray and Spark, and ten million rows.

    python benchmarks/scoring.py                               # everything, about twenty minutes on two cores
    python benchmarks/scoring.py --parts loop engines --rows 100000
    python benchmarks/scoring.py --parts table                 # the table again, of what was measured

Writes benchmarks/results/scoring.json. One thread of PyTorch a process, rows of 64 numbers for a network 64-128-128-8
(mlp), texts of 32 tokens for a transformer of MiniLM's size (encoder), both with random weights.

loop     one process: `softmax(model(x))` in a loop over batches, a Scorer of the plain model, and one of SNGP, in turn.
         A Scorer looks at every row, and answers with more: label, confidence, uncertainty, decision.
engines  the SNGP's Scorer over a table in memory: in this process, on Ray Data (two actors) and on Spark (mapInPandas,
         two workers), started and warm. What an engine costs: rows a second of a worker beside those of this process.
stream   ten million rows, drawn batch by batch, scored and written as shards; the peak memory after each million.
table    computed from these figures: hours and bytes for up to 10^9 rows.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import in_turns, machine, medians, ratio, resident, save
from serving import MODELS, network_of

import hesitant

HERE = Path(__file__).parent
BATCH = {"mlp": 1024, "encoder": 32}
OUTPUTS = ["label", "confidence", "uncertainty", "accept"]
SCHEMA = "id bigint, label bigint, confidence float, uncertainty double, accept boolean"
WORKERS = 2


def saved(name: str, folder: Path) -> dict[str, Path]:
    """Saves the network of this name plain, and in an SNGP with a policy, and answers the folders."""
    data = MODELS[name][1](256)
    given = data.get("x", data)
    methods = {"Deterministic": hesitant.Deterministic(network_of(name)), "SNGP": hesitant.SNGP(network_of(name))}
    methods["SNGP"].fit_covariance(given)
    for kind, method in methods.items():
        policy = hesitant.DeferralPolicy.calibrate(method.predict(given), budget=0.1)
        method.save_pretrained(folder / name / kind, policy=policy)
    return {kind: folder / name / kind for kind in methods}


def loop(folder: Path, rounds: int) -> dict[str, Any]:
    """Answers rows a second of one process, beside the plain model's loop."""
    found: dict[str, Any] = {}
    for name, (_, draw) in MODELS.items():
        folders, rows = saved(name, folder), BATCH[name]
        columns = {key: column.numpy() for key, column in draw(rows).items()}
        plain = network_of(name)

        def ask(plain: Any = plain, columns: Any = columns) -> Any:
            inputs = {key: torch.from_numpy(column) for key, column in columns.items()}
            with torch.no_grad():
                logits = plain(inputs["x"]) if "x" in inputs else plain(**inputs).logits
                return logits.softmax(-1).numpy()

        tasks: dict[str, Any] = {"plain": ask}
        for kind, path in folders.items():
            scorer, method = hesitant.Scorer(path), hesitant.load(path)
            tasks[f"Scorer of {kind}"] = lambda scorer=scorer, columns=columns: scorer(columns)
            given = {key: torch.from_numpy(column) for key, column in columns.items()}
            inputs = given.get("x", given)
            tasks[f"predict of {kind}"] = lambda method=method, inputs=inputs: method.predict(inputs)
        durations = in_turns(tasks, rounds=rounds, repeats=10 if name == "mlp" else 2)
        found[name] = {
            "rows_a_batch": rows,
            "rows_a_second": {task: rows / duration * 1e3 for task, duration in medians(durations).items()},
            "time_to_plain": {task: ratio(durations, task, "plain") for task in tasks},
            "scorer_to_predict": {
                kind: ratio(durations, f"Scorer of {kind}", f"predict of {kind}") for kind in folders
            },
        }
    return found


def table_of(rows: int) -> dict[str, Any]:
    """Answers rows of 64 numbers with identifiers."""
    return {"id": np.arange(rows), "x": MODELS["mlp"][1](rows)["x"].numpy()}


def batches(columns: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Gives columns in batches."""
    for start in range(0, len(columns["id"]), size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def on_ray(scorer_of: Path, columns: dict[str, Any]) -> float:
    """Answers the rows a second of Ray Data's two actors, warm."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all ports on 127.0.0.1
    import pyarrow
    import ray

    ray.init(num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = [
        pyarrow.table({"id": part["id"], "x": pyarrow.FixedSizeListArray.from_arrays(part["x"].ravel(), 64)})
        for part in batches(columns, 10_000)
    ]
    data = ray.data.from_blocks(blocks)

    class Timed(hesitant.Scorer):
        """A scorer that says when it began and ended: starting actors and importing PyTorch is no part of scoring."""

        def __call__(self, batch: Any) -> Any:
            self.load()
            began = time.time()
            answers = super().__call__(batch)
            noted = {"began": began, "ended": time.time(), "process": os.getpid()}
            return {**answers, **{name: np.full(len(answers["id"]), value) for name, value in noted.items()}}

    scored = data.map_batches(
        Timed,
        fn_constructor_args=[scorer_of],
        fn_constructor_kwargs={"inputs": "x", "outputs": OUTPUTS, "keep": ["id"]},
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
        batch_size=4096,
    )
    answers = scored.to_pandas()
    ray.shutdown()
    assert sorted(answers["id"]) == list(range(len(columns["id"])))
    first = answers.groupby("process")["began"].min()
    assert len(first) == WORKERS
    both = answers[answers["began"] >= first.max()]  # since the later of them began
    return len(both) / (both["ended"].max() - first.max())


def on_spark(scorer_of: Path, columns: dict[str, Any]) -> float:
    """Answers the rows a second of Spark's two workers, warm."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    import pandas as pd
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{WORKERS}]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
    spark = builder.config("spark.driver.memory", "4g").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    frame = pd.DataFrame({"id": columns["id"], "x": list(columns["x"])})
    data = spark.createDataFrame(frame).repartition(2 * WORKERS).cache()
    data.count()
    scorer = hesitant.Scorer(scorer_of, inputs="x", outputs=OUTPUTS, keep=["id"])

    def score(frames: Any) -> Any:
        for frame in frames:
            yield pd.DataFrame(scorer(frame))

    scored = data.mapInPandas(score, SCHEMA)
    assert scored.count() == len(frame)  # the workers have imported and loaded
    began = time.perf_counter()
    assert scored.selectExpr("count(label)", "sum(confidence)", "sum(uncertainty)").first()[0] == len(frame)
    duration = time.perf_counter() - began
    spark.stop()
    return len(frame) / duration


def engines(folder: Path, rows: int) -> dict[str, Any]:
    """Answers rows a second of the SNGP's Scorer in this process, on Ray and on Spark."""
    path, columns = saved("mlp", folder)["SNGP"], table_of(rows)
    scorer = hesitant.Scorer(path, inputs="x", outputs=OUTPUTS, keep=["id"])
    for batch in batches(table_of(8192), 4096):
        scorer(batch)
    began = time.perf_counter()
    for batch in batches(columns, 4096):
        scorer(batch)
    alone = rows / (time.perf_counter() - began)
    found: dict[str, Any] = {"rows": rows, "workers": WORKERS, "rows_a_second_of_this_process": alone}
    for engine, run in (("ray", on_ray), ("spark", on_spark)):
        together = run(path, columns)
        found[engine] = {"rows_a_second": together, "of_a_worker_to_this_process": together / WORKERS / alone}
    return found


def stream(folder: Path, rows: int) -> dict[str, Any]:
    """Answers the time and the peak memory of many rows that are drawn, scored and written."""
    scorer = hesitant.Scorer(saved("mlp", folder)["SNGP"], inputs="x", outputs=OUTPUTS, keep=["id"])
    generator, size, shard = np.random.default_rng(0), 8192, 1_000_000
    scorer({"id": np.arange(8), "x": np.zeros((8, 64), np.float32)})
    before, peaks, written, began, pending = resident("VmRSS"), [], 0, time.perf_counter(), []
    for start in range(0, rows, size):
        ids = np.arange(start, min(start + size, rows))
        pending.append(scorer({"id": ids, "x": generator.standard_normal((len(ids), 64), np.float32)}))
        if (start + len(ids)) // shard > len(peaks) or start + len(ids) == rows:
            joined = {name: np.concatenate([part[name] for part in pending]) for name in pending[0]}
            np.savez(folder / f"{len(peaks):05}.npz", **joined)
            written += len(joined["id"])
            pending.clear()
            peaks.append(resident("VmHWM"))
    duration = time.perf_counter() - began
    ids = np.concatenate([np.load(path)["id"] for path in sorted(folder.glob("*.npz"))])
    assert np.array_equal(ids, np.arange(rows))
    return {
        "rows": rows,
        "rows_written": written,
        "seconds": duration,
        "rows_a_second": rows / duration,
        "resident_before_mib": before,
        "peak_mib_after_each_million": peaks,
    }


def table(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers hours and bytes for up to 10^9 rows, computed from rows a second of one core."""
    lines = []
    for name, kind in (("mlp", "SNGP"), ("encoder", "SNGP")):
        speed = measured["loop"][name]["rows_a_second"][f"Scorer of {kind}"]
        for rows in (10**6, 10**7, 10**8, 10**9):
            lines.append(
                {
                    "model": name,
                    "rows": rows,
                    "hours_on_one_core": rows / speed / 3600,
                    "hours_on_64_cores": rows / speed / 3600 / 64,
                    "gib_of_label_confidence_uncertainty_accept": rows * (8 + 4 + 8 + 1) / 2**30,
                    "gib_of_probs_of_10_classes": rows * 10 * 4 / 2**30,
                    "gib_of_probs_of_1e3_classes": rows * 1e3 * 4 / 2**30,
                    "gib_of_probs_of_1e5_classes": rows * 1e5 * 4 / 2**30,
                }
            )
    return lines


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("loop", "engines", "stream", "table")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=20, help="of the loop")
    parser.add_argument("--rows", type=int, default=500_000, help="of the engines")
    parser.add_argument("--stream-rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scoring.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if part == "loop":
                found: Any = loop(folder, arguments.rounds)
            elif part == "engines":
                found = engines(folder, arguments.rows)
            elif part == "stream":
                found = stream(folder, arguments.stream_rows)
            else:
                found = table(json.loads(arguments.out.read_text()))
        save(arguments.out, {part: found, "machine": machine(torch.device("cpu"))})
        print(part, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
