"""What sums over data that no machine holds cost, and what a covariance of each class takes: figures in one run.

    python benchmarks/covariance_sums.py                    # everything, about ten minutes on one core
    python benchmarks/covariance_sums.py --parts update     # some parts

Writes benchmarks/results/covariance_sums.json. Tasks of a part take turns; a ratio is the median over the rounds of a
task's time over the baseline's in the same round. The parts:

update      `CovarianceSums.update` beside a plain forward pass over the same rows, 1,024 random features: a network on
            embeddings of 384 numbers, and ResNet-18 of 224 x 224 (timm).
reduce      What travels between workers: bytes of the sums, and the milliseconds to write, to read and to merge them.
classes     A covariance of each of 1,000 classes, 1,024 random features, rank 32: by how much it raises the peak memory
            of the process; the cost of adding a row, of the factor, and of an answer, beside a shared covariance's.
error       Variances of low rank beside the exact ones of 15 of 150 classes: CLINC150's embeddings (its training split;
            asked of its validation split and of noise), and the same as if there were a hundred times the data.
extent      From the rates of `update`, `reduce` and `classes`: bytes and seconds up to 10^9 rows and 10^5 classes.

Data and weights are random but for `error`: milliseconds do not depend on them.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measuring import gflops, in_turns, machine, medians, peak, ratio, resident, save
from _sentences import clinc150_texts, embeddings
from torch import Tensor, nn

import hesitant
from hesitant import SNGP, CovarianceSums
from hesitant.nn import LaplaceCovariance, RandomFeatureGaussianProcess

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "covariance_sums.json"
CLASSES, FEATURES, RANK = 1000, 1024, 32
ROWS, MANY_CLASSES = (10**6, 10**7, 10**8, 10**9), (10, 100, 1000, 10_000, 100_000)


def seeded(seed: int = 0) -> torch.Generator:
    """Answers a generator."""
    return torch.Generator().manual_seed(seed)


def update() -> dict[str, Any]:
    """Adding rows, beside a forward pass."""
    import timm

    networks: dict[str, tuple[nn.Module, Tensor, int]] = {
        "embeddings": (
            nn.Sequential(nn.Linear(384, 512), nn.ReLU(), nn.Linear(512, 150)),
            torch.randn(8192, 384, generator=seeded()),
            3,
        ),
        "resnet18": (timm.create_model("resnet18"), torch.randn(32, 3, 224, 224, generator=seeded()), 1),
    }
    answer = {}
    for name, (network, x, repeats) in networks.items():
        model = SNGP(network, num_inducing=FEATURES).eval()
        model.prepare_covariance(x[:256])
        sums = CovarianceSums(model)

        @torch.no_grad()
        def forward(model: SNGP = model, x: Tensor = x) -> None:
            for batch in x.split(1024):
                model.model(batch)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the covariance is not fitted
            tasks: dict[str, Callable[[], Any]] = {
                "forward": forward,
                "update": lambda sums=sums, x=x: sums.update(x, batch_size=1024),
            }
            durations = in_turns(tasks, rounds=5, repeats=repeats, warm_up=1)
        answer[name] = {
            "rows": len(x),
            "milliseconds_a_row": {task: value / len(x) for task, value in medians(durations).items()},
            "to_forward": ratio(durations, "update", "forward"),
        }
    return answer


def reduce() -> dict[str, Any]:
    """Sums as bytes, and merged."""
    answer = {}
    options: dict[str, dict[str, Any]] = {
        "shared, 1024": {"num_inducing": 1024},
        "shared, 2048": {"num_inducing": 2048},
        "1000 classes, rank 32": {"num_inducing": 1024, "likelihood": "softmax", "covariance_rank": RANK},
    }
    for name, chosen in options.items():
        model = SNGP(nn.Linear(64, CLASSES), norm_bound=None, **chosen).eval()
        x = torch.randn(256, 64, generator=seeded())
        model.prepare_covariance(x)
        sums = CovarianceSums(model).update(x)
        content = sums.to_bytes()
        other = CovarianceSums.from_bytes(content)
        tasks = {
            "to_bytes": sums.to_bytes,
            "from_bytes": lambda content=content: CovarianceSums.from_bytes(content),
            "merge": lambda sums=sums, other=other: sums.merge(other),
        }
        answer[name] = {"bytes": len(content), "milliseconds": medians(in_turns(tasks, 5, 1, warm_up=1))}
    return answer


@torch.no_grad()
def classes() -> dict[str, Any]:
    """A thousand classes."""
    gp: Any = None
    x = torch.randn(1024, 512, generator=seeded())
    before = resident("VmRSS")

    def make_and_fit() -> None:
        nonlocal gp
        options: dict[str, Any] = {"likelihood": "softmax", "covariance_rank": RANK, "kernel_scale": 512.0}
        gp = RandomFeatureGaussianProcess(512, CLASSES, num_inducing=FEATURES, **options).eval()
        gp.laplace.aim(gp.features(x))
        total = torch.zeros_like(gp.laplace.data_precision)
        gp.add_contribution(total, x)
        gp.replace_covariance(total, len(x))

    raised = peak(make_and_fit)
    held = resident("VmRSS") - before
    total = torch.zeros_like(gp.laplace.data_precision)
    shared = RandomFeatureGaussianProcess(512, CLASSES, num_inducing=FEATURES, kernel_scale=512.0).eval()
    shared_total = torch.zeros_like(shared.laplace.data_precision)
    adding = in_turns(
        {
            "shared": lambda: shared.add_contribution(shared_total, x),
            "each class": lambda: gp.add_contribution(total, x),
        },
        rounds=3,
        repeats=1,
        warm_up=1,
    )
    shared.replace_covariance(shared_total, len(x))
    answering: dict[str, Any] = {}
    for size in (1, 32):
        batch = x[:size]
        durations = in_turns(
            {
                "mean": lambda batch=batch: gp.mean(batch),
                "shared": lambda batch=batch: shared.posterior(batch),
                "each class": lambda batch=batch: gp.posterior(batch),
            },
            rounds=5,
            repeats=3,
            warm_up=1,
        )
        answering[str(size)] = medians(durations)
    factor = in_turns({"factor": lambda: gp.replace_covariance(total, len(x))}, 3, 1, warm_up=0)
    return {
        "classes": CLASSES,
        "random_features": FEATURES,
        "rank": RANK,
        "peak_mib": raised,
        "held_mib": held,
        "sums_mib": total.numel() * 8 / 2**20,
        "exact_sums_mib": CLASSES * FEATURES**2 * 8 / 2**20,
        "milliseconds_a_row": {name: value / len(x) for name, value in medians(adding).items()},
        "seconds_of_the_factor": medians(factor)["factor"] / 1e3,
        "milliseconds_of_an_answer_to_inputs": answering,
    }


@torch.no_grad()
def error() -> dict[str, Any]:
    """Low rank beside the exact variances."""
    kept = ROOT / "data" / "embeddings"
    splits = {
        name: embeddings(
            kept / f"clinc150-{name}.npz", lambda name=name: clinc150_texts(ROOT / "data" / "clinc150", name)
        )
        for name in ("train", "val")
    }
    (x, y), (asked, _) = splits["train"], splits["val"]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(384, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 150))
    model = SNGP(network, num_inducing=FEATURES, generator=seeded()).eval()
    with torch.enable_grad():
        hesitant.fit(model, (x, y), epochs=10, batch_size=64, progress=False)
    model.eval()

    def features(inputs: Tensor) -> Tensor:
        return model.gp.features(network[:-1](inputs)).double()

    phi, p = features(x), model.gp.mean(network[:-1](x)).double().softmax(1)
    chosen = list(range(0, 150, 10))
    noise = torch.randn(500, 384, generator=seeded(1)) * asked.std()
    questions = {"validation": features(asked[:500]), "noise": features(noise)}
    answer: dict[str, Any] = {}
    for times in (1, 100):
        weights = (p * (1 - p))[:, chosen] * times
        matrices = [phi.T @ (phi * weights[:, c : c + 1]) for c in range(len(chosen))]
        exact = {name: _variances(matrices, asked) for name, asked in questions.items()}
        found = {}
        for rank in (8, 16, 32, 64):
            for how in ("aimed", "drawn"):
                laplace = LaplaceCovariance(
                    FEATURES, num_classes=len(chosen), covariance_rank=rank, generator=seeded(2)
                )
                if how == "aimed":
                    laplace.aim(phi[torch.randperm(len(phi), generator=seeded(3))[:2048]])
                total = torch.zeros_like(laplace.data_precision)
                for rows, of_rows in zip(phi.split(2048), weights.split(2048), strict=True):
                    laplace.add_products(total, rows, of_rows, 1.0)
                laplace.replace(total, len(phi))
                factor = laplace.factorize(torch.float64)
                ratios = {name: factor.variance(asked) / exact[name] for name, asked in questions.items()}
                bound = laplace.overstatement
                assert bound is not None
                found[f"rank {rank}, {how}"] = {
                    **{name: _spread(values) for name, values in ratios.items()},
                    "bound": {"median": float(bound.median()), "max": float(bound.max())},
                }
        answer[f"{times} times the data"] = found
    return answer


def _variances(matrices: list[Tensor], features: Tensor) -> Tensor:
    columns = []
    for matrix in matrices:
        lower = torch.linalg.cholesky(matrix + torch.eye(len(matrix), dtype=matrix.dtype))
        columns.append(torch.linalg.solve_triangular(lower, features.T, upper=False).square().sum(0))
    return torch.stack(columns, 1)


def _spread(values: Tensor) -> dict[str, float]:
    values = values.flatten()
    return {
        "min": float(values.min()),
        "median": float(values.median()),
        "p99": float(values.quantile(0.99)),
        "max": float(values.max()),
    }


def extent() -> dict[str, Any]:
    """What of more rows and classes breaks first, by the rates that were measured."""
    measured = json.loads(RESULTS.read_text())
    a_row = measured["classes"]["milliseconds_a_row"]
    embedded = measured["update"]["embeddings"]["milliseconds_a_row"]
    images = measured["update"]["resnet18"]["milliseconds_a_row"]
    merging = measured["reduce"]["shared, 1024"]["milliseconds"]
    rows = {
        f"{count:.0e}": {
            "core_hours_of_embeddings": embedded["update"] * count / 3.6e6,
            "core_hours_of_resnet18": images["update"] * count / 3.6e6,
            "bytes_of_the_sums": 8 * FEATURES**2,
            "seconds_to_merge_1000_workers": sum(merging.values()),
            "relative_rounding_at_most": (1024 + count / 1024) * 2.0**-53,  # in batches of 1,024, one after another
        }
        for count in ROWS
    }
    by_classes = {
        f"{count:.0e}": {
            "bytes_exact": 8 * count * FEATURES**2,
            "bytes_low_rank_sums": 8 * count * (FEATURES + 1) * (RANK + 1),
            "bytes_low_rank_factor_float32": 4 * count * FEATURES * RANK,
            "milliseconds_a_row": a_row["shared"] + (a_row["each class"] - a_row["shared"]) * count / CLASSES,
            "core_hours_of_10^6_rows": (a_row["each class"] * count / CLASSES) * 1e6 / 3.6e6,
        }
        for count in MANY_CLASSES
    }
    breaks = {
        "rows": "nothing in bytes, for the sums of any number of rows are 8 M^2. Time, most of which is the model's"
        " forward pass. Rounding reaches 1e-9 at 9e9 rows.",
        "classes, exact": "memory: 8 C M^2 is 8.6 GB at 1,000 classes.",
        "classes, low rank": "time: each row costs C M r; then memory, 27 GB of sums at 10^5 classes.",
    }
    return {"rows": rows, "classes": by_classes, "what_breaks_first": breaks}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "classes": classes,  # first, for its memory
    "update": update,
    "reduce": reduce,
    "error": error,
    "extent": extent,
}


def main() -> None:
    """Measures, and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    save(RESULTS, {"machine": machine(torch.device("cpu")), "threads": arguments.threads, "gflops": gflops()})
    for name in PARTS:
        if name in arguments.parts:
            found = PARTS[name]()
            save(RESULTS, {name: found})
            print(name, json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
