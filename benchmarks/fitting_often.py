"""What a fit of the covariance before each evaluation costs, and whether a sample of the data does as well.

    python benchmarks/fitting_often.py                      # both parts; several minutes on a CPU
    python benchmarks/fitting_often.py --parts sentences    # or images

Writes benchmarks/results/fitting_often.json. After each epoch the covariance is fitted to all training data and to
samples of 1,024 to 8,192 inputs (`fit_covariance(num_inputs=...)`, M = 1,024), each timed beside that epoch, and the
validation NLL is taken; that of the plain logits, which a loop without a fit goes by, stands beside it, and the mean
variance of the logits beside that of all data. Parts:

sentences  CLINC150 on the kept embeddings of MiniLM (15,000 to train on, 3,000 to validate): a network 384-512-150 that
           costs next to nothing, so that a fit costs relatively much.
images     20,000 digits of MNIST and two convolutions; 5,000 other training images validate.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import machine, save
from _sentences import clinc150_texts, embeddings
from torch import Tensor, nn

from hesitant import SNGP, Prediction
from hesitant.data import mnist, split
from hesitant.evaluation import nll

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fitting_often.json"
SAMPLES = (1024, 2048, 4096, 8192)
BATCH_SIZE, LEARNING_RATE = 128, 1e-3
Data = tuple[Tensor, Tensor]


def sentences(folder: Path) -> tuple[nn.Module, Data, Data]:
    """Answers a network of sentences' embeddings, the training and the validation data."""
    train, val = (
        embeddings(folder / f"clinc150-{name}.npz", lambda name=name: clinc150_texts(ROOT / "data" / "clinc150", name))  # type: ignore[misc]
        for name in ("train", "val")
    )
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(384, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 150)), train, val


def images(folder: Path) -> tuple[nn.Module, Data, Data]:
    """Answers a network of digits, the training and the validation data."""
    train, val, _ = split(mnist(ROOT / "data").train, [1 / 3, 1 / 12, 7 / 12])
    pair = [next(iter(torch.utils.data.DataLoader(part, batch_size=len(part)))) for part in (train, val)]
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
    network = nn.Sequential(*convolutions, nn.Linear(1568, 256), nn.ReLU(), nn.Linear(256, 10))
    return network, *[(x.reshape(len(x), 1, 28, 28).float(), y) for x, y in pair]


PARTS: dict[str, tuple[Callable[[Path], tuple[nn.Module, Data, Data]], int]] = {
    "sentences": (sentences, 8),
    "images": (images, 4),
}


def epoch(model: SNGP, optimizer: torch.optim.Optimizer, data: Data, generator: torch.Generator) -> None:
    """Trains once on all data."""
    model.train()
    for rows in torch.randperm(len(data[0]), generator=generator).split(BATCH_SIZE):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
        optimizer.step()


def timed(task: Callable[[], Any]) -> float:
    """Answers how many seconds a task takes."""
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def measure(part: str, folder: Path) -> dict[str, Any]:
    """Answers the figures of one part."""
    build, epochs = PARTS[part]
    network, train, validation = build(folder)
    model = SNGP(network, generator=torch.Generator().manual_seed(0))
    optimizer, generator = torch.optim.AdamW(model.parameters(), LEARNING_RATE), torch.Generator().manual_seed(0)
    kinds: dict[str, int | None] = {"all": None} | {str(number): number for number in SAMPLES}
    seconds: dict[str, list[float]] = {name: [] for name in ("epoch", *kinds)}
    losses: dict[str, list[float]] = {name: [] for name in kinds}
    variances: dict[str, list[float]] = {name: [] for name in kinds}
    plain: list[float] = []
    for _ in range(epochs):
        seconds["epoch"].append(timed(lambda: epoch(model, optimizer, train, generator)))
        for name, number in kinds.items():
            seconds[name].append(timed(lambda number=number: model.fit_covariance(train, num_inputs=number)))  # type: ignore[misc]
            prediction = model.predict(validation)
            losses[name].append(nll(prediction))
            variances[name].append(float(prediction.logit_variance.double().mean()))
        plain.append(nll(Prediction.from_logits(prediction.logits, targets=prediction.targets)))
        print(part, {name: round(values[-1], 4) for name, values in losses.items()}, flush=True)
    best = {name: min(range(epochs), key=values.__getitem__) + 1 for name, values in losses.items()}
    beside = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["epoch"], strict=True)) for name in kinds
    }
    gaps = {
        name: max(abs(a - b) for a, b in zip(losses[name], losses["all"], strict=True)) for name in kinds if kinds[name]
    }
    wider = {
        name: statistics.median(a / b for a, b in zip(variances[name], variances["all"], strict=True)) for name in gaps
    }
    return {
        "training_inputs": len(train[0]),
        "epochs": epochs,
        "num_inducing": model.gp.num_inducing,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "fit_beside_an_epoch": beside,
        "validation_nll": losses,
        "validation_nll_of_plain_logits": plain,
        "largest_gap_of_validation_nll": gaps,
        "mean_variance_beside_that_of_all": wider,
        "best_epoch": best,
    }


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--embeddings", type=Path, default=ROOT / "data" / "embeddings", help="made where they lack")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for part in arguments.parts:
        found = {**machine(torch.device("cpu")), "threads": torch.get_num_threads()}
        save(arguments.out, {part: {**measure(part, arguments.embeddings), "machine": found}})


if __name__ == "__main__":
    main()
