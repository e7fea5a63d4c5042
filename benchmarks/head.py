"""How fast the Gaussian process learns beside the Linear that it replaces, and what it keeps of a trained one.

    python benchmarks/head.py                    # both parts, a few minutes; data/clinc150 and MiniLM's package
    python benchmarks/head.py --parts rates      # or start
    python benchmarks/head.py --table            # what was measured, as Markdown for docs/figures.md

Writes benchmarks/results/head.json. CLINC150's training queries as embeddings of MiniLM, each feature of unit variance,
as a pooler's are; the validation queries to compare answers on. Nothing out-of-domain has a part in it.

rates   The training NLL of a Linear, of the layer in SNGP's parametrization ("linear") and in the reference's
        ("standard"), after the same steps of the same optimizer on the same batches of 128, three seeds.
start   A Linear that was trained is wrapped by SNGP, and only its covariance is fitted: how it answers then.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import machine, save
from _real_data import read
from _sentences import clinc150_texts, embeddings
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from hesitant import SNGP
from hesitant.nn import RandomFeatureGaussianProcess

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "head.json"
SEEDS, STEPS, BATCH_SIZE, NUM_CLASSES = (0, 1, 2), (250, 1000), 128, 150
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "AdamW 5e-5": lambda parameters: AdamW(parameters, lr=5e-5),
    "AdamW 1e-3": lambda parameters: AdamW(parameters, lr=1e-3),
    "AdamW 1e-2": lambda parameters: AdamW(parameters, lr=1e-2),
    "SGD 1e-3": lambda parameters: SGD(parameters, lr=1e-3),
    "SGD 3e-2": lambda parameters: SGD(parameters, lr=3e-2),
    "SGD 1e-2, momentum .9": lambda parameters: SGD(parameters, lr=1e-2, momentum=0.9),
}


def head(kind: str, width: int, seed: int) -> nn.Module:
    """Answers an untrained Linear, or the layer in one of its parametrizations."""
    torch.manual_seed(seed)
    if kind == "Linear":
        return nn.Linear(width, NUM_CLASSES)
    return RandomFeatureGaussianProcess(
        width,
        NUM_CLASSES,
        kernel_scale="median",
        random_features="orthogonal",
        parametrization="linear" if kind == "linear" else "standard",
    )


def losses(model: nn.Module, make: Callable[..., Optimizer], data: tuple[Tensor, Tensor], seed: int) -> list[float]:
    """Answers the training NLL of all data after each of STEPS."""
    (x, y), optimizer, answer = data, make(model.parameters()), []
    rows = torch.randint(len(x), (max(STEPS), BATCH_SIZE), generator=torch.Generator().manual_seed(seed))
    for step, chosen in enumerate(rows, start=1):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if step in STEPS:
            with torch.no_grad():
                logits = model(x) if isinstance(model, nn.Linear) else model.mean(x)  # type: ignore[operator]
                answer.append(float(F.cross_entropy(logits, y)))
    return answer


def measure_rates(train: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Answers the medians over seeds, and the ratio of each layer's to the Linear's."""
    answer: dict[str, Any] = {}
    for name, make in OPTIMIZERS.items():
        of_kind = {}
        for kind in ("Linear", "linear", "standard"):
            found = [losses(head(kind, train[0].shape[1], seed), make, train, seed) for seed in SEEDS]
            of_kind[kind] = [statistics.median(each) for each in zip(*found, strict=True)]
        for place, steps in enumerate(STEPS):
            values = {kind: each[place] for kind, each in of_kind.items()}
            answer[f"{name}, {steps} steps"] = {**values, "ratio": values["linear"] / values["Linear"]}
        print(name, {key: value for key, value in answer.items() if key.startswith(name)}, flush=True)
    return answer


def measure_start(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Answers how nearly an SNGP around a trained Linear answers as that does, without a step."""
    x, y = validation
    linear = head("Linear", x.shape[1], 0)
    losses(linear, OPTIMIZERS["AdamW 1e-3"], train, 0)
    with torch.no_grad():
        before = linear(x)
    method = SNGP(linear, generator=torch.Generator().manual_seed(0))
    method.fit_covariance(train)
    after = method.predict(x).logits
    return {
        "validation_accuracy": {name: float((z.argmax(1) == y).float().mean()) for name, z in _both(before, after)},
        "validation_nll": {name: float(F.cross_entropy(z, y)) for name, z in _both(before, after)},
        "same_label": float((before.argmax(1) == after.argmax(1)).float().mean()),
        "explained_variance": float(1 - (after - before).square().mean() / before.var()),
        "inputs_used": min(len(train[0]), 4 * method.gp.num_inducing),
    }


def _both(before: Tensor, after: Tensor) -> list[tuple[str, Tensor]]:
    return [("Linear", before), ("SNGP", after)]


def table(results: dict[str, Any]) -> str:
    """Answers the rates as Markdown."""
    lines = ["| training NLL after | Linear | SNGP's | the reference's | SNGP's / Linear |", "|---|---|---|---|---|"]
    for name, row in results["rates"].items():
        lines.append(
            f"| {name} | {row['Linear']:.4f} | {row['linear']:.4f} | {row['standard']:.4f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["rates", "start"], default=["rates", "start"])
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "clinc150", help="holds data_full.json")
    parser.add_argument("--embeddings", type=Path, default=ROOT / "data" / "embeddings", help="made where they lack")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured, measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        parts = {}
        for name in ("train", "val"):
            kept = arguments.embeddings / f"clinc150-{name}.npz"
            parts[name] = embeddings(kept, lambda name=name: clinc150_texts(arguments.folder, name))  # type: ignore[misc]
        mean, std = parts["train"][0].mean(0), parts["train"][0].std(0)
        train, validation = ((((x - mean) / std), y) for x, y in parts.values())
        found = {
            "rates": lambda: measure_rates(train),
            "start": lambda: measure_start(train, validation),
        }
        measured = {part: found[part]() for part in arguments.parts}
        save(arguments.out, {"machine": machine(torch.device("cpu")), **measured})
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
