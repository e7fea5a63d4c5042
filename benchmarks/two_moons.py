"""The figures of the two-moons job: quality over ten seeds, and the cost beside the plain network, in one run.

    python benchmarks/two_moons.py                  # everything, about ten minutes on two cores
    python benchmarks/two_moons.py --parts cost     # one part: choose, quality, cost or memory

Writes benchmarks/results/two_moons.json. What it measures:

choose   The mean-field factor of the demo's SNGP, from in-domain data of other seeds alone: the most cautious of a
         ladder whose held-out NLL is still no worse than that of the tutorial's deterministic network.
quality  The tutorial's literal protocol (beside the reference's ranges) and the demo's defaults, over ten seeds.
cost     A training step and a prediction of the 10,000-point grid, as ratios to the deterministic network's.
memory   What `predict` adds to the peak memory, each number of points in a process of its own.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import gflops, in_turns, machine, medians, peak, ratio
from torch import nn
from torch.utils.data import TensorDataset

from hesitant import SNGP, Deterministic, fit
from hesitant.data import two_moons, two_moons_grid, two_moons_ood
from hesitant.demos.methods import METHODS, Method, Predictor, Task
from hesitant.demos.result import Figures, run_method
from hesitant.demos.two_moons import EPOCHS, LEARNING_RATE, SNGP_SETTINGS, two_moons_task
from hesitant.nn import SpectralBoundWarning, mean_field_logits
from hesitant.nn.models import DeepResNet
from hesitant.training import History

RESULTS = Path(__file__).parent / "results" / "two_moons.json"
FACTORS = (math.pi / 8, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
# FIELD.md section 6: the reference layers on the tutorial's protocol, ten seeds, [min, max].
REFERENCE = {
    "training_loss": (0.0901, 0.0985),
    "u_training": (0.230, 0.252),
    "u_ood": (0.937, 0.999),
    "u_corners": (0.987, 1.0),
    "auroc": (0.997, 1.0),
    "accuracy": (0.999, 1.0),
}
REFERENCE_MEDIANS = {"nll": 0.0687, "ece": 0.0656, "variance_training": 0.032, "variance_held_out": 0.033}
CORNERS = torch.tensor([[-3.5, -2.5], [-3.5, 2.5], [3.5, -2.5], [3.5, 2.5]])


def tutorial_adam(parameters: Any) -> torch.optim.Optimizer:
    """The tutorial's optimizer."""
    return torch.optim.Adam(parameters, lr=1e-4, eps=1e-7)


def train_tutorial_sngp(task: Task) -> tuple[Predictor, History]:
    """SNGP by the letter of the tutorial: the covariance is summed while training, and reset before each epoch."""
    generator = task.generator()
    model = SNGP(
        task.build_network(generator),
        norm_bound=0.9,
        kernel_scale=1.0,
        momentum=1.0,
        l2_penalty=1e-6,
        random_features="gaussian",
        parametrization="standard",
        generator=generator,
    )
    # Weights that were loaded are not started from the network's own classifier, of which the tutorial knows nothing.
    model.load_state_dict(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralBoundWarning)
        return model, _tutorial_fit(model, task)


def train_tutorial_deterministic(task: Task) -> tuple[Predictor, History]:
    """The plain network by the letter of the tutorial."""
    model = Deterministic(task.build_network(task.generator()))
    return model, _tutorial_fit(model, task)


def _tutorial_fit(model: nn.Module, task: Task) -> History:
    return fit(
        model,
        task.train_data,
        epochs=100,
        batch_size=128,
        optimizer=tutorial_adam,
        scheduler=None,
        seed=task.seed,
        device=task.device,
        progress=False,
    )


VARIANTS = {
    "tutorial deterministic": Method("Deterministic, tutorial's protocol", train_tutorial_deterministic),
    "tutorial sngp": Method("SNGP, tutorial's protocol", train_tutorial_sngp),
    **METHODS,
}
SECONDS = ("training_seconds", "predict_milliseconds")  # which `cost` measures, side by side


def choose(seeds: range) -> dict[str, Any]:
    """Answers the held-out NLL of each factor, and the most cautious one no worse than the tutorial's plain network."""
    plain, by_factor = [], {factor: [] for factor in FACTORS}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        task = two_moons_task(generator, seed=seed)
        held_out = two_moons(1000, generator=generator)
        deterministic, _ = train_tutorial_deterministic(task)
        plain.append(F.cross_entropy(deterministic.predict(held_out.inputs).logits, held_out.targets).item())
        sngp, _ = METHODS["sngp"].train(task)
        prediction = sngp.predict(held_out.inputs)
        for factor in FACTORS:
            logits = mean_field_logits(prediction.logits, prediction.logit_variance, factor)
            by_factor[factor].append(F.cross_entropy(logits, held_out.targets).item())
        print(f"choose, seed {seed}: plain {plain[-1]:.4f}, factors {[round(v[-1], 4) for v in by_factor.values()]}")
    limit = statistics.median(plain)
    medians = {factor: statistics.median(values) for factor, values in by_factor.items()}
    allowed = [factor for factor, value in medians.items() if value <= limit]
    return {
        "seeds": list(seeds),
        "tutorial_deterministic_nll": limit,
        "sngp_nll": {f"{factor:.4g}": value for factor, value in medians.items()},
        "chosen": max(allowed) if allowed else None,
    }


def quality(seeds: range) -> dict[str, Any]:
    """Answers median [min, max] of each figure, for each variant."""
    rows: dict[str, list[Figures]] = {key: [] for key in VARIANTS}
    for seed in seeds:
        for key, method in VARIANTS.items():
            generator = torch.Generator().manual_seed(seed)
            task = two_moons_task(generator, seed=seed)
            held_out, ood = two_moons(1000, generator=generator), two_moons_ood(500, generator=generator)
            figures, _ = run_method(
                method,
                task,
                held_out=TensorDataset(held_out.inputs, held_out.targets),
                ood=ood,
                timed=two_moons_grid(100),
                corners=CORNERS,
            )
            rows[key].append(figures)
            print(
                f"quality, seed {seed}, {key}: acc {figures.accuracy:.4f} nll {figures.nll:.4f} ece {figures.ece:.4f}"
                f" u train {figures.u_training:.3f} ood {figures.u_ood:.4f} corners {figures.u_corners:.4f}"
                f" auroc {figures.auroc:.5f} loss {figures.training_loss:.4f} {figures.training_seconds:.1f} s"
            )
    answer: dict[str, Any] = {"seeds": list(seeds)}
    for key, figures_of in rows.items():
        answer[key] = {}
        for name, first in asdict(figures_of[0]).items():
            if isinstance(first, float) and name not in SECONDS:
                values = [getattr(figures, name) for figures in figures_of]
                answer[key][name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    answer["reference"] = {
        name: {
            "reference": list(bounds),
            "ours": answer["tutorial sngp"][name],
            "median_inside": bounds[0] <= answer["tutorial sngp"][name]["median"] <= bounds[1],
        }
        for name, bounds in REFERENCE.items()
    }
    answer["reference_medians"] = REFERENCE_MEDIANS
    return answer


def cost() -> dict[str, Any]:
    """Answers the time of a step and of the grid, and their ratios to the plain network's, taken in turns."""
    data = two_moons(128, generator=torch.Generator().manual_seed(0))
    grid = two_moons_grid(100)
    plain = DeepResNet(2, 2, generator=torch.Generator().manual_seed(1))
    sngp = SNGP(DeepResNet(2, 2, generator=torch.Generator().manual_seed(1)), **SNGP_SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralBoundWarning)
        fit(sngp, (data.inputs, data.targets), epochs=50, batch_size=128, device="cpu", progress=False)

    def step_of(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
        model.train()

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs), data.targets).backward()
            optimizer.step()

        return step

    def grid_forward() -> None:
        with torch.no_grad():
            plain(grid)

    steps = in_turns({"deterministic": step_of(plain), "sngp": step_of(sngp)}, rounds=30, repeats=20)
    train = two_moons(1000, generator=torch.Generator().manual_seed(0))
    sngp.fit_covariance(train.inputs)
    plain.eval()
    predictions = in_turns(
        {
            "deterministic forward": grid_forward,
            "deterministic predict": lambda: Deterministic(plain).predict(grid),
            "sngp predict": lambda: sngp.predict(grid),
        },
        rounds=40,
        repeats=1,
    )
    return {
        "step_milliseconds": medians(steps),
        "step_ratio": ratio(steps, "sngp", "deterministic"),
        "grid_milliseconds": medians(predictions),
        "grid_ratio": ratio(predictions, "sngp predict", "deterministic forward"),
        "posterior_rank": posterior_rank(sngp),
        "gflops_2048": gflops(),
    }


def posterior_rank(sngp: SNGP) -> int | None:
    """Answers how many directions the data informed; None where the factor is dense."""
    factor = sngp.gp.laplace.factor
    return None if factor is None or factor.gains is None else len(factor.gains)


def memory(points: tuple[int, ...] = (10_000, 100_000, 1_000_000)) -> dict[str, float]:
    """Answers the MiB that `predict` adds to the peak, for each number of points, each in a process of its own."""
    command = [sys.executable, __file__, "--peak"]
    return {
        str(n): float(subprocess.run([*command, str(n)], check=True, capture_output=True, text=True).stdout)
        for n in points
    }


def print_peak(num_points: int) -> None:
    """Prints the MiB by which predicting so many points raises the peak of this process (Linux)."""
    sngp = SNGP(DeepResNet(2, 2), **SNGP_SETTINGS)
    sngp.fit_covariance(two_moons(1000, generator=torch.Generator().manual_seed(0)).inputs)
    inputs = torch.rand(num_points, 2, generator=torch.Generator().manual_seed(0))
    sngp.predict(inputs[:10])
    print(peak(lambda: sngp.predict(inputs)))


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["choose", "quality", "cost", "memory"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak is not None:
        print_peak(arguments.peak)
        return
    parts: dict[str, Callable[[], Any]] = {
        "cost": cost,
        "memory": memory,
        "choose": lambda: choose(range(100, 100 + arguments.seeds)),
        "quality": lambda: quality(range(arguments.seeds)),
    }
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, measure in parts.items():
        if name in arguments.parts:
            results[name] = measure()
            results["machine"] = machine(torch.device("cpu"))
            results["settings"] = {"sngp": SNGP_SETTINGS, "learning_rate": LEARNING_RATE, "epochs": EPOCHS}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
            print(json.dumps(results[name], indent=2))


if __name__ == "__main__":
    main()
