"""What the benchmarks measure with: tasks that take turns, medians and ratios, and the memory of a process."""

import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hesitant.demos.result import versions


def in_turns(
    tasks: dict[str, Callable[[], Any]],
    rounds: int,
    repeats: int,
    warm_up: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Answers the milliseconds of each task in each round, the tasks taking turns: a slow moment hits all alike."""
    durations: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        for _ in range(warm_up):
            task()
    for _ in range(rounds):
        for name, task in tasks.items():
            began = clock()
            for _ in range(repeats):
                task()
            durations[name].append((clock() - began) / repeats * 1e3)
    return durations


def medians(durations: dict[str, list[float]]) -> dict[str, float]:
    """Answers the median milliseconds of each task."""
    return {name: statistics.median(values) for name, values in durations.items()}


def ratio(durations: dict[str, list[float]], task: str, baseline: str) -> float:
    """Answers the median over the rounds of a task's time over the baseline's in the same round."""
    return statistics.median(a / b for a, b in zip(durations[task], durations[baseline], strict=True))


def gflops() -> float:
    """Answers what this machine multiplies matrices at, to compare with other machines."""
    a = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    return 2 * 2048**3 / medians(in_turns({"matmul": lambda: a @ a}, rounds=5, repeats=2))["matmul"] / 1e6


def peak(task: Callable[[], Any]) -> float:
    """Answers the MiB by which a task raises the peak of this process (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed before, which the task would else use unseen
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    task()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Answers a field of this process's memory in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def machine(device: torch.device) -> dict[str, str]:
    """Answers what the figures were taken on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {**versions(), "device": str(device), "processor": name}


def save(path: Path, results: dict[str, Any]) -> None:
    """Adds results to those in a JSON file."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**kept, **results}, indent=2) + "\n")
