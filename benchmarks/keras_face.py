"""The figures of hesitant.keras: the tutorial over ten seeds, the Keras recipe on MNIST, and what they cost.

    python benchmarks/keras_face.py                                     # all parts on all three backends
    python benchmarks/keras_face.py --backends jax --parts tutorial     # a backend, a part, or several

Writes benchmarks/results/keras_face.json, in which parts and backends that were run before stay. Each backend runs in a
process of its own. What it measures:

tutorial  The tutorial's protocol by model.fit, ten seeds, beside the reference's ranges: deterministic, ten dropout
          passes, SNGP with its factor of pi / 8; the ensemble is of the ten seeds' deterministic networks. The first
          seed's surfaces are kept in data/work/keras, for keras_pictures.py.
mnist     The Keras recipe as it is written (ten epochs, 100 passes).
cost      A training step and the 10,000 points of the grid, as ratios to the deterministic network's in the same run.
memory    By how much the process grows at its most while SNGP answers about 10,000, 100,000 and 1,000,000 points with
          their variances, in MiB, after a first answer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "keras_face.json"
SURFACES = Path(__file__).parents[1] / "data" / "work" / "keras"
BACKENDS, PARTS = ("tensorflow", "jax", "torch"), ("tutorial", "mnist", "cost", "memory")
SEEDS = range(10)
# FIELD: the reference layers on this protocol, least and most of ten seeds.
REFERENCE = {
    "SNGP": {
        "final_loss": (0.0901, 0.0985),
        "u_train": (0.230, 0.252),
        "u_ood": (0.937, 0.999),
        "u_corners": (0.987, 1.0),
        "auroc": (0.997, 1.0),
        "accuracy": (0.999, 1.0),
    },
    "deterministic": {"final_loss": (0.0114, 0.0257)},
    "ensemble": {"final_loss": (0.0130, 0.0201)},
}


def figures(probs: dict[str, Any], labels: Any) -> dict[str, float]:
    """Answers what the reference was measured by, of the probabilities of train, test, ood and grid points."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    u = {name: 4 * of[:, 0] * of[:, 1] for name, of in probs.items()}
    corners = u["grid"].reshape(100, 100)[[0, 0, -1, -1], [0, -1, 0, -1]]
    of_truth = probs["test"][np.arange(len(labels)), labels]
    return {
        "u_train": float(u["train"].mean()),
        "u_ood": float(u["ood"].mean()),
        "u_corners": float(corners.mean()),
        "auroc": float(roc_auc_score([0] * len(u["test"]) + [1] * len(u["ood"]), np.r_[u["test"], u["ood"]])),
        "accuracy": float((probs["test"].argmax(1) == labels).mean()),
        "nll": float(-np.log(np.maximum(of_truth, 1e-30)).mean()),
    }


def tutorial() -> dict[str, Any]:
    """Trains the tutorial's networks and answers their figures, least, median and most of the seeds."""
    import numpy as np
    from _keras_tutorial import BATCH, EPOCHS, DeepResNet, DeepResNetSNGP, cloud, compiled, grid, moons

    import keras
    from hesitant.keras import SNGP, DeepEnsemble, Deterministic, MCDropout, ResetCovarianceCallback

    rows: dict[str, list[dict[str, float]]] = {"deterministic": [], "MC dropout": [], "SNGP": []}
    members, surfaces = [], {}
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        x, y = moons(seed)
        test, labels = moons(seed + 1000)
        points = {"train": x, "test": test, "ood": cloud(seed), "grid": grid()}

        def asked(method: Any, points: dict[str, Any] = points, labels: Any = labels) -> dict[str, float]:
            return figures(
                {name: method.predict(given, batch_size=1000).probs for name, given in points.items()}, labels
            )

        plain = compiled(DeepResNet())
        plain.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
        members.append(plain)
        rows["deterministic"].append({"final_loss": plain.history.history["loss"][-1], **asked(Deterministic(plain))})
        rows["MC dropout"].append(asked(MCDropout(plain, 10)))
        model = compiled(DeepResNetSNGP())
        model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[ResetCovarianceCallback()])
        rows["SNGP"].append({"final_loss": model.history.history["loss"][-1], **asked(SNGP(model))})
        if seed == SEEDS[0]:
            of_seed = {"deterministic": Deterministic(plain), "MC dropout": MCDropout(plain, 10), "SNGP": SNGP(model)}
            surfaces = {name: method.predict(grid(), batch_size=1000).probs for name, method in of_seed.items()}
        print(f"  seed {seed}: {rows['SNGP'][-1]}", file=sys.stderr, flush=True)
    ensemble = asked(DeepEnsemble(members))
    surfaces["ensemble"] = DeepEnsemble(members).predict(grid(), batch_size=1000).probs
    SURFACES.mkdir(parents=True, exist_ok=True)
    np.savez(SURFACES / f"{keras.backend.backend()}.npz", **surfaces)
    summary = {name: {key: spread([row[key] for row in of]) for key in of[0]} for name, of in rows.items()}
    return {"seeds": len(SEEDS), **summary, "ensemble": ensemble, "outside the reference": outside(summary)}


def spread(values: list[float]) -> list[float]:
    """Answers least, median and most."""
    return [min(values), statistics.median(values), max(values)]


def outside(summary: dict[str, Any]) -> list[str]:
    """Answers the medians that do not lie within the reference's ten seeds."""
    found = []
    for method, ranges in REFERENCE.items():
        for key, (least, most) in ranges.items():
            if method in summary and not least <= summary[method][key][1] <= most:
                found.append(f"{method} {key}: {summary[method][key][1]:.4g} of [{least}, {most}]")
    return found


def mnist() -> dict[str, Any]:
    """Trains the Keras recipe and answers accuracy, and mean and standard deviation over 100 passes."""
    import numpy as np

    import keras
    from hesitant.keras import predict_with_uncertainty

    (x, y), (test, labels) = (mnist_arrays(part) for part in ("train", "t10k"))
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dropout(0.2),
            layers.Dense(500, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(250, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, keras.utils.to_categorical(y, 10), batch_size=128, epochs=10, verbose=0)
    plain = model.predict(test, batch_size=1000, verbose=0)
    began = time.perf_counter()
    mean, std = predict_with_uncertainty(model, test, num_iterations=100, seed=0)
    seconds = time.perf_counter() - began
    wrong = mean.argmax(1) != labels
    of_label = std[np.arange(len(std)), mean.argmax(1)]
    return {
        "accuracy": float((plain.argmax(1) == labels).mean()),
        "accuracy of the mean": float(1 - wrong.mean()),
        "std of the answered class, right": float(of_label[~wrong].mean()),
        "std of the answered class, wrong": float(of_label[wrong].mean()),
        "seconds of 100 passes": seconds,
    }


def mnist_arrays(part: str) -> tuple[Any, Any]:
    """Answers images ``(N, 784)`` in [0, 1] and labels, of the files that `make data` puts there."""
    import numpy as np

    folder = Path(__file__).parents[1] / "data" / "MNIST" / "raw"
    images = np.frombuffer((folder / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images.reshape(-1, 784).astype(np.float32) / 255, labels.astype(np.int64)


def cost() -> dict[str, Any]:
    """Answers a training epoch's and the grid's time as ratios to the deterministic network's, taking turns."""
    from _keras_tutorial import BATCH, DeepResNet, DeepResNetSNGP, compiled, grid, moons

    import keras
    from hesitant.keras import SNGP, Deterministic, fit_covariance

    keras.utils.set_random_seed(0)
    x, y = moons(0)
    plain, summing, model = compiled(DeepResNet()), compiled(DeepResNetSNGP()), compiled(DeepResNetSNGP(None))
    points = grid()
    tasks = {
        "step": lambda of: of.fit(x, y, batch_size=BATCH, epochs=2, verbose=0),
        "grid": lambda of: asked[id(of)].predict(points, batch_size=1000),
    }
    for of in (plain, summing, model):
        tasks["step"](of)
    asked = {id(plain): Deterministic(plain), id(model): SNGP(model)}
    answer: dict[str, Any] = {}
    for name, task, measured in (
        ("step that sums the covariance", tasks["step"], summing),
        ("step before an exact pass", tasks["step"], model),
        ("grid", tasks["grid"], model),
    ):
        if name == "grid":
            fit_covariance(measured, x)
        for of in (plain, measured):
            task(of)
        ratios, ours, theirs = [], [], []
        for _ in range(15):
            ours.append(timed(task, measured))
            theirs.append(timed(task, plain))
            ratios.append(ours[-1] / theirs[-1])
        answer[name] = {
            "ratio": statistics.median(ratios),
            "SNGP ms": 1e3 * statistics.median(ours),
            "deterministic ms": 1e3 * statistics.median(theirs),
        }
    return answer


def memory() -> dict[str, float]:
    """Answers by how many MiB the peak of this process rises with each number of points, after a first answer."""
    import resource

    import numpy as np
    from _keras_tutorial import DeepResNetSNGP, compiled, grid, moons

    from hesitant.keras import SNGP, fit_covariance

    x, _ = moons(0)
    model = compiled(DeepResNetSNGP(None))
    model(x[:1])
    fit_covariance(model, x)
    method = SNGP(model)
    method.predict(grid(), batch_size=1000)
    answer, before = {}, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in (10_000, 100_000, 1_000_000):
        points = np.resize(grid(), (number, 2))
        method.predict(points, batch_size=1000)
        answer[f"{number} points"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return answer


def timed(task: Any, model: Any) -> float:
    """Answers the seconds that a task takes."""
    began = time.perf_counter()
    task(model)
    return time.perf_counter() - began


def main() -> None:
    """Runs each backend in a process of its own, and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--within", action="store_true", help="run in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.within:
        for part in arguments.parts:
            print(
                json.dumps({part: {"tutorial": tutorial, "mnist": mnist, "cost": cost, "memory": memory}[part]()}),
                flush=True,
            )
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for backend in arguments.backends:
        for part in arguments.parts:
            print(f"{backend}, {part}", flush=True)
            command = [sys.executable, __file__, "--within", "--backends", backend, "--parts", part]
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            ran = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            results.setdefault(backend, {}).update(json.loads(ran.stdout.splitlines()[-1]))
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
