"""What `calibrate` costs, and what a sample of the data costs its answer.

    python benchmarks/calibrate_cost.py                    # everything, about two minutes on one core
    python benchmarks/calibrate_cost.py --parts sample     # one part: fit, memory or sample

Writes benchmarks/results/calibrate_cost.json. What it measures:

fit      Seconds of `calibrate` beside the model's passes, by size: of logits that are there already, held and fitted,
         the machine's seconds and those of the process on all its cores; and of the plain formula at one temperature
         (`log_softmax` in float64), which is what one look at the data costs without any care.
memory   50,000 inputs of 100 passes over 1,000 classes, drawn as they are asked for: the inputs used and asked, MiB
         held, and MiB by which the peak of the process grows, with its bound.
sample   On data sorted by difficulty, by class, or easy and hard in turns: the error of log T, against all data, of the
         random sample (root mean square over 50 seeds, and mean) and of as many inputs at a regular stride; beside
         them that of 50 random halves, quarters and eighths of the data drawn without any stream.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measuring import machine, peak, save
from torch import Tensor

from hesitant.evaluation.calibration.components import Components
from hesitant.evaluation.calibration.likelihood import fitted, likelihood
from hesitant.evaluation.calibration.sample import BYTES_HELD, NUMBERS_ASKED, Held
from hesitant.inputs import Batch

RESULTS = Path(__file__).parent / "results" / "calibrate_cost.json"
SIZES = {"1 x 10": (50_000, 10, 1), "1 x 1000": (20_000, 1000, 1), "100 x 150": (3000, 150, 100)}  # S x C: N, C, S
SEEDS = 50


def passes(targets: Tensor, classes: int, samples: int, generator: torch.Generator) -> Tensor:
    """Answers log-probabilities ``(S, B, C)`` of passes that scatter around logits which tend to their targets."""
    logits = 3 * torch.randn(len(targets), classes, generator=generator)
    logits[torch.arange(len(targets)), targets] += 2 * math.sqrt(2 * math.log(classes))
    scattered = torch.randn(samples, len(targets), classes, generator=generator).add_(logits)
    return torch.log_softmax(scattered, -1)


def leaves_of(logits: Tensor, targets: Tensor | None) -> Components:
    """Answers them as of passes of equal weight."""
    each = torch.ones(len(logits), dtype=torch.float64)
    return Components(logits, None, 0 * each, each / len(each), targets)


def timed(task: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Answers what a task answers, its seconds, and the seconds of the process's cores."""
    began = time.perf_counter(), time.process_time()
    answer = task()
    return answer, {"seconds": time.perf_counter() - began[0], "core_seconds": time.process_time() - began[1]}


def measure_fit() -> dict[str, Any]:
    """Answers the seconds by size."""
    found: dict[str, Any] = {}
    for name, (size, classes, samples) in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(0, classes, (size,), generator=generator)
        batches = [(passes(part, classes, samples, generator), part) for part in targets.split(500)]

        def calibrated(batches: list[tuple[Tensor, Tensor]] = batches) -> tuple[int, float]:
            held = Held()
            for batch in batches:
                held.append(leaves_of(*batch))
            likelihood(held, 1.0, None)  # the NLL before
            return held.num_inputs, fitted(held, None, 1.0).likelihood.temperature

        def plainly(batches: list[tuple[Tensor, Tensor]] = batches) -> None:
            for logits, targets in batches:
                log_probs = torch.log_softmax(logits.double(), -1).logsumexp(0) - math.log(len(logits))
                log_probs.gather(1, targets.unsqueeze(1)).mean()

        (used, temperature), cost = timed(calibrated)
        _, plain = timed(plainly)
        found[name] = {"inputs": size, "used": used, "temperature": temperature, **cost, "plain": plain}
        ratio = cost["core_seconds"] / plain["core_seconds"]
        print(
            f"{name}, {used:,} inputs: {cost['seconds']:.2f} s, {cost['core_seconds']:.2f} s of a core, {ratio:.1f}"
            " looks of the plain formula",
            flush=True,
        )
    return found


def measure_memory() -> dict[str, Any]:
    """Answers what is held, asked and added to the process."""
    size, classes, samples, batch_size = 50_000, 1000, 100, 1024
    asked = 0
    found: dict[str, Any] = {}

    def ask(batch: Batch, position: int) -> Components:
        nonlocal asked
        assert batch.targets is not None
        asked += len(batch.targets)
        logits = passes(batch.targets, classes, samples, torch.Generator().manual_seed(position))
        return leaves_of(logits, batch.targets)

    def calibrated() -> None:
        targets = torch.arange(size) % classes
        held = Held()
        held.gather((Batch((rows.view(-1, 1),), {}, rows) for rows in targets.split(batch_size)), ask)
        fit, cost = timed(lambda: fitted(held, None, 1.0))
        found.update(used=held.num_inputs, available=held.num_available, held=held.num_bytes / 2**20)
        found.update(temperature=fit.likelihood.temperature, **cost)

    # What answers holds its logits a few times: drawn, normalised, and what is chosen of them.
    found |= {"peak": peak(calibrated), "asked": asked, "bound": (BYTES_HELD + 4 * 4 * NUMBERS_ASKED) / 2**20}
    print(
        f"{size:,} inputs of {samples} x {classes}: {found['used']:,} used, {asked:,} asked, {found['held']:.0f} MiB"
        f" held, {found['peak']:.0f} MiB in all (bound {found['bound']:.0f}), fitted in {found['seconds']:.1f} s",
        flush=True,
    )
    return found


def temperature_of(logits: Tensor, targets: Tensor, *, inputs: int, seed: int = 0) -> float:
    """Answers the temperature by a sample of so many inputs."""
    held = Held(seed, inputs * (4 * logits.shape[-1] + 17))
    for part in torch.arange(len(targets)).split(500):
        held.append(leaves_of(logits[None, part], targets[part]))
    return fitted(held, None, 1.0).likelihood.temperature


def measure_sample() -> dict[str, Any]:
    """Answers the errors of log T."""
    size, classes = 8000, 10
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(size, classes, generator=generator)
    hard = torch.arange(size) % 2 == 1
    wrong = torch.rand(size, generator=generator) < torch.where(hard, 0.5, 0.05)
    targets = torch.where(wrong, torch.randint(0, classes, (size,), generator=generator), logits.argmax(1))
    orders = {
        "in turns": torch.arange(size),
        "by difficulty": hard.long().argsort(stable=True),
        "by class": targets.argsort(stable=True),
    }
    whole = math.log(temperature_of(logits, targets, inputs=size))

    def error(rows: Tensor, inputs: int, seed: int = 0) -> float:
        return math.log(temperature_of(logits[rows], targets[rows], inputs=inputs, seed=seed)) - whole

    def spread(errors: list[float]) -> float:
        return math.sqrt(sum(each * each for each in errors) / len(errors))

    found: dict[str, Any] = {}
    for stride in (2, 4, 8):
        inputs = size // stride
        shuffles = [torch.randperm(size, generator=generator)[:inputs] for _ in range(SEEDS)]
        row: dict[str, Any] = {"shuffled": spread([error(rows, inputs) for rows in shuffles])}
        for name, order in orders.items():
            errors = [error(order, inputs, seed) for seed in range(SEEDS)]
            row[name] = {"stride": error(order[::stride], inputs), "sample": spread(errors)}
            row[name]["sample_mean"] = sum(errors) / SEEDS
        found[f"1 of {stride}"] = row
        figures = "; ".join(f"{name}: {row[name]['stride']:+.3f}, {row[name]['sample']:.3f}" for name in orders)
        print(f"1 of {stride}, error of log T of the stride and of the sample: {figures}", flush=True)
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "fit": measure_fit,
    "memory": measure_memory,
    "sample": measure_sample,
}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for part in arguments.parts:
        where = {"machine": machine(torch.device("cpu")), "threads": torch.get_num_threads()}
        save(arguments.out, {part: {**PARTS[part](), **where}})


if __name__ == "__main__":
    main()
