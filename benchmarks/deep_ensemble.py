"""The cost of a deep ensemble beside the loop that a user would write, in one run.

    python benchmarks/deep_ensemble.py                     # everything, about five minutes on two cores
    python benchmarks/deep_ensemble.py --parts training    # one part
    python benchmarks/deep_ensemble.py --device cuda       # on a GPU

Writes benchmarks/results/deep_ensemble.json (deep_ensemble_cuda.json on a GPU), each part in a process of its own. The
loop trains one model after another and has torch's own dropout and the fused AdamW that fit uses too. What is measured:

training    Ten of the SNGP tutorial's networks, 1,000 points, batches of 128, 100 epochs, as fit trains by default.
prediction  The ten networks over the tutorial's grid of 10,000 points: in a fresh process, where the C library maps
            the loop's large tensors page by page each time, and after a larger block was freed: then it keeps them.
quality     Training loss and held-out accuracy of the members of both ways: they are to be drawn from one distribution.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import gflops, in_turns, machine, medians, ratio, save
from torch import Tensor, nn

from hesitant import DeepEnsemble, fit
from hesitant.data import two_moons, two_moons_grid
from hesitant.nn.models import DeepResNet
from hesitant.training.history import EnsembleHistory

RESULTS = Path(__file__).parent / "results"
MEMBERS, POINTS, BATCH_SIZE, LEARNING_RATE = 10, 1000, 128, 1e-3


def user_loop(members: nn.ModuleList, x: Tensor, y: Tensor, epochs: int) -> None:
    """Trains one model after another, as people write it."""
    for model in members:
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        for _ in range(epochs):
            for chosen in torch.randperm(len(x), device=x.device).split(BATCH_SIZE):
                optimizer.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimizer.step()


def user_prediction(members: nn.ModuleList, inputs: Tensor) -> Tensor:
    """Answers the mean of the members' probabilities, as people write it."""
    members.eval()
    with torch.no_grad():
        return torch.stack([torch.softmax(model(inputs), -1) for model in members]).mean(0)


def build(seed: int, device: torch.device) -> DeepEnsemble:
    """Answers ten fresh networks."""
    return DeepEnsemble.from_builder(DeepResNet, MEMBERS, seed=seed).to(device)


def trained(seed: int, x: Tensor, y: Tensor, epochs: int) -> DeepEnsemble:
    """Answers ten networks that fit has trained together."""
    ensemble = build(seed, x.device)
    history = fit(
        ensemble, (x, y), epochs=epochs, batch_size=BATCH_SIZE, seed=seed, device=x.device.type, progress=False
    )
    assert isinstance(history, EnsembleHistory)
    if history.one_by_one is not None:
        raise RuntimeError(f"the members were trained one by one: {history.one_by_one}")
    return ensemble


def training(device: torch.device, epochs: int, rounds: int) -> dict[str, Any]:
    """Answers the seconds that each way takes, and how many times the loop takes as long."""
    x, y = moons(0, device)
    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: user_loop(build(0, device).members, x, y, epochs),
        "fit": lambda: trained(0, x, y, epochs),
    }
    user_loop(build(0, device).members, x, y, 1)
    trained(0, x, y, 1)
    durations = in_turns({name: waiting(way, device) for name, way in ways.items()}, rounds, repeats=1, warm_up=0)
    return {
        "epochs": epochs,
        "seconds": {name: value / 1e3 for name, value in medians(durations).items()},
        "times_faster": ratio(durations, "loop", "fit"),
        "gflops_2048": gflops(),
    }


def prediction(device: torch.device, rounds: int) -> dict[str, Any]:
    """Answers the milliseconds of each way for the grid, and how many times the loop takes as long."""
    ensemble, grid = build(0, device), two_moons_grid(100).to(device)
    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: user_prediction(ensemble.members, grid),
        "predict": lambda: ensemble.predict(grid),
    }
    torch.testing.assert_close(ways["predict"]().probs, ways["loop"](), rtol=1e-4, atol=1e-5)

    def measured() -> dict[str, Any]:
        durations = in_turns({name: waiting(way, device) for name, way in ways.items()}, rounds, repeats=1)
        return {"milliseconds": medians(durations), "times_faster": ratio(durations, "loop", "predict")}

    fresh = measured()
    torch.empty(31 * 2**20, dtype=torch.uint8)
    return {**fresh, "after_a_large_block_was_freed": measured()}


def quality(device: torch.device, epochs: int, rounds: int) -> dict[str, Any]:
    """Answers median, lowest and highest training loss and held-out accuracy of the members of both ways."""
    x, y = moons(0, device)
    held_out = moons(1, device)
    figures: dict[str, dict[str, list[float]]] = {}
    for seed in range(rounds):
        looped = build(seed, device)
        torch.manual_seed(seed)
        user_loop(looped.members, x, y, epochs)
        for name, ensemble in (("loop", looped), ("fit", trained(seed, x, y, epochs))):
            of_way = figures.setdefault(name, {"training_loss": [], "held_out_nll": [], "held_out_accuracy": []})
            ensemble.eval()
            with torch.no_grad():
                for model in ensemble.members:
                    logits = model(held_out[0])
                    of_way["training_loss"].append(F.cross_entropy(model(x), y).item())
                    of_way["held_out_nll"].append(F.cross_entropy(logits, held_out[1]).item())
                    of_way["held_out_accuracy"].append((logits.argmax(1) == held_out[1]).double().mean().item())
    return {
        way: {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in of_way.items()
        }
        for way, of_way in figures.items()
    }


def moons(seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Answers the tutorial's points and their classes."""
    data = two_moons(POINTS, generator=torch.Generator().manual_seed(seed))
    return data.inputs.to(device), data.targets.to(device)


def waiting(task: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """Answers the task, waiting for the device to have done it."""

    def run() -> None:
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["training", "prediction", "quality"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    out = arguments.out or RESULTS / (
        "deep_ensemble.json" if device.type == "cpu" else f"deep_ensemble_{device.type}.json"
    )
    parts: dict[str, Callable[[], Any]] = {
        "training": lambda: training(device, arguments.epochs, arguments.rounds),
        "prediction": lambda: prediction(device, 8 * arguments.rounds),
        "quality": lambda: quality(device, arguments.epochs, 3),
    }
    for name, measure in parts.items():
        if name in arguments.parts and len(arguments.parts) > 1:
            options = ["--device", arguments.device, "--epochs", str(arguments.epochs), "--out", str(out)]
            command = [sys.executable, __file__, "--parts", name, "--rounds", str(arguments.rounds), *options]
            subprocess.run(command, check=True)
        elif name in arguments.parts:
            answer = measure()
            print(name, answer)
            save(out, {name: answer, "machine": machine(device)})


if __name__ == "__main__":
    main()
