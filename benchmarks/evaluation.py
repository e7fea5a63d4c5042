"""What each metric costs at a million inputs: seconds and memory.

    python benchmarks/evaluation.py                # everything, five minutes on one core
    python benchmarks/evaluation.py --parts seconds

Writes benchmarks/results/evaluation.json. What is measured:

seconds    Each metric of 1,000,000 inputs of 10 classes, and of as many scores against as many; the median of three.
memory     What each of a prediction adds to the peak memory, in MiB, in a process of its own; the median of three. The
           probabilities themselves take 38 MiB.
classes    Seconds and MiB of 100,000 inputs of 1,000 classes, whose probabilities take 381 MiB.
bootstrap  Seconds of 1,000 resamples of 10,000 inputs of 10 classes, and of 1,000.
libraries  Seconds of scikit-learn and torchmetrics where they have the metric, on the same million.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measuring import machine, peak, save
from torch import Tensor

from hesitant import evaluation
from hesitant.evaluation import bootstrap, uncertainty
from hesitant.prediction import Prediction

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
OF_PREDICTIONS = ("accuracy", "nll", "brier", "ece", "adaptive_ece", "classwise_ece", "aurc")
OF_SCORES = ("auroc", "aupr", "fpr95")
MILLION, THOUSAND = (1_000_000, 10), (100_000, 1000)


def random_prediction(num_inputs: int, num_classes: int) -> Prediction:
    """Random logits, right three times in four."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(num_inputs, num_classes, generator=generator)
    right = torch.rand(num_inputs, generator=generator) < 0.75
    others = torch.randint(num_classes, (num_inputs,), generator=generator)
    return Prediction.from_logits(logits, targets=torch.where(right, logits.argmax(dim=-1), others))


def random_scores(num_inputs: int) -> tuple[Tensor, Tensor]:
    """In-domain and out-of-domain."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_inputs, generator=generator), 1.5 + torch.randn(num_inputs, generator=generator)


def tasks(num_inputs: int, num_classes: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    prediction, scores = random_prediction(num_inputs, num_classes), random_scores(num_inputs)
    named: dict[str, Callable[[], Any]] = {"uncertainty": partial(uncertainty, prediction)}
    for name in OF_PREDICTIONS:
        named[name] = partial(getattr(evaluation, name), prediction)
    for name in OF_SCORES:
        named[name] = partial(getattr(evaluation, name), *scores)
    return named


def seconds(task: Callable[[], Any], repeats: int = 3) -> float:
    """Answers the median."""
    durations = []
    for _ in range(repeats):
        began = time.perf_counter()
        task()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def peaks(shape: tuple[int, int]) -> dict[str, float]:
    """Answers the MiB that each metric adds to the peak of a process of its own (Linux): the median of three."""

    def once(name: str) -> float:
        command = [sys.executable, __file__, "--peak", name, *map(str, shape)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return {name: statistics.median(once(name) for _ in range(3)) for name in ("uncertainty", *OF_PREDICTIONS)}


def resampling() -> dict[str, float]:
    """Answers the seconds of 1,000 resamples of 10,000 inputs."""
    scores = random_scores(10_000)
    named = {name: partial(bootstrap, getattr(evaluation, name), *scores) for name in OF_SCORES}
    for num_classes in (10, 1000):
        prediction = random_prediction(10_000, num_classes)
        for name in ("accuracy", "nll", "brier", "ece", "adaptive_ece", "aurc", "e_aurc"):
            named[f"{name}, {num_classes} classes"] = partial(bootstrap, getattr(evaluation, name), prediction)
    return {name: seconds(task, 1) for name, task in named.items()}


def libraries() -> dict[str, float]:
    """Answers the seconds of others on the same million."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
    from torchmetrics.functional.classification import multiclass_calibration_error

    prediction, scores = random_prediction(*MILLION), random_scores(MILLION[0])
    truth = torch.cat([torch.zeros_like(scores[0]), torch.ones_like(scores[1])]).numpy()
    both, num_classes = torch.cat(scores).numpy(), MILLION[1]
    named: dict[str, Callable[[], Any]] = {
        "ece (torchmetrics)": lambda: multiclass_calibration_error(prediction.probs, prediction.targets, num_classes),
        "auroc (scikit-learn)": lambda: roc_auc_score(truth, both),
        "aupr (scikit-learn)": lambda: average_precision_score(truth, both),
        "fpr95 (scikit-learn)": lambda: roc_curve(truth, both),
    }
    return {name: seconds(task) for name, task in named.items()}


def main() -> None:
    """Measures what the command line asks for."""
    parts: dict[str, Callable[[], Any]] = {
        "seconds": lambda: {name: seconds(task) for name, task in tasks(*MILLION).items()},
        "memory": lambda: peaks(MILLION),
        "classes": lambda: {
            "seconds": {name: seconds(task, 1) for name, task in tasks(*THOUSAND).items()},
            "memory": peaks(THOUSAND),
        },
        "bootstrap": resampling,
        "libraries": libraries,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak is not None:
        name, num_inputs, num_classes = arguments.peak
        tasks(10, 3)[name]()  # what is loaded at the first call is not the metric's
        print(peak(tasks(int(num_inputs), int(num_classes))[name]))
        return
    for name in arguments.parts:
        result = parts[name]()
        save(arguments.out, {name: result, "machine": machine(torch.device("cpu"))})
        print(name, result)


if __name__ == "__main__":
    main()
