"""How often a deferral policy breaks its promise, and how much it answers, over simulated calibration sets.

    python benchmarks/deferral.py                          # everything, about ten minutes on one core
    python benchmarks/deferral.py --parts cost             # one part: promise or cost
    python benchmarks/deferral.py --parts promise --sets 500

Writes benchmarks/results/deferral.json. What it measures:

promise  Over populations whose risk at every threshold is known (tests/evaluation/populations.py): the share of
         calibration sets whose policy answers with a risk above `max_risk`, to be at most delta = .05, and the mean
         share of the population that is answered: by ours, by the oracle that knows the population, by a union bound
         over all thresholds (delta / N each), by the selection with guaranteed risk of Geifman and El-Yaniv 2017
         (a binary search, delta / ceil(log2 N) each), and by one sequence without further beginnings. These others
         over a tenth of the sets.
cost     Seconds to calibrate on a million inputs, and to accept or refuse as many; the memory added, in MiB.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _measuring import machine, peak, save
from scipy.stats import binomtest

from hesitant import Prediction
from hesitant.evaluation.deferral.fixed_sequence import FixedSequences, RankedErrors
from hesitant.evaluation.deferral.policy import DeferralPolicy
from hesitant.evaluation.deferral.risk_bounds import error_tail, smallest_counts, tolerated_errors

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.evaluation.populations

if TYPE_CHECKING:
    from tests.evaluation.populations import Population

RESULTS = Path(__file__).parent / "results" / "deferral.json"
SETTINGS = ((30, 0.1), (300, 0.1), (2000, 0.05), (5000, 0.01), (50_000, 0.01))  # inputs, max_risk
LARGE = 50_000  # inputs, of which a fiftieth of the sets is drawn
DELTA = 0.05


def union_bound(ranked: RankedErrors, max_risk: float) -> int:
    """Answers the most inputs that can be accepted when delta is shared among all thresholds."""
    below = np.unique(ranked.below(np.arange(1, len(ranked) + 2)))
    passed = error_tail(ranked.errors[below], below, max_risk) <= DELTA / len(ranked)
    return int(below[passed].max(initial=0))


def guaranteed_risk(ranked: RankedErrors, max_risk: float) -> int:
    """Answers what Geifman and El-Yaniv's algorithm 2 accepts: a binary search that pays for each of its steps."""
    steps = math.ceil(math.log2(len(ranked)))
    low, high, most = 1, len(ranked), 0
    for _ in range(steps):
        rank = math.ceil((low + high) / 2)
        below = ranked.below(np.array([rank + 1]))
        if error_tail(ranked.errors[below], below, max_risk)[0] <= DELTA / steps:
            low, most = rank, max(most, int(below[0]))
        else:
            high = rank
    return most


def one_sequence(num_inputs: int, max_risk: float) -> FixedSequences:
    """Answers the sequence that begins where a rejection is first possible, with all of delta."""
    most = int(tolerated_errors(np.array([num_inputs]), max_risk, DELTA)[0])
    fewest = smallest_counts(np.arange(most + 1), max_risk, DELTA)
    return FixedSequences((np.append(fewest, num_inputs),), max_risk, DELTA, int(fewest[0]))


def simulate(population: "Population", num_inputs: int, max_risk: float, sets: int) -> dict[str, Any]:
    """Answers how often the promise is broken, and the coverages."""
    from tests.evaluation.populations import ranked, threshold_of

    plan, alone = FixedSequences.plan(num_inputs, max_risk, DELTA), one_sequence(num_inputs, max_risk)
    ways: dict[str, Callable[[RankedErrors], int]] = {
        "fixed sequences": plan.largest_accepted,
        "one sequence": alone.largest_accepted,
        "Geifman and El-Yaniv": lambda scores: guaranteed_risk(scores, max_risk),
        "union bound": lambda scores: union_bound(scores, max_risk),
    }
    generator = np.random.default_rng(0)
    broken = 0
    coverages: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(sets):
        u, wrong = population.sample(num_inputs, generator)
        scores = ranked(u, wrong)
        for name, choose in ways.items() if index < sets // 10 else [("fixed sequences", plan.largest_accepted)]:
            accepted = choose(scores)
            threshold = threshold_of(u, accepted) if accepted else 0.0
            coverages[name].append(threshold)
            if name == "fixed sequences" and accepted:
                broken += population.risk_below(threshold) > max_risk
    return {
        "sets": sets,
        "broken": broken / sets,
        "p_value_of_at_most_delta": float(binomtest(broken, sets, DELTA, alternative="greater").pvalue),
        "coverage": {
            "oracle": population.oracle_coverage(max_risk),
            **{name: float(np.mean(values)) if values else None for name, values in coverages.items()},
        },
    }


def promise(sets: int) -> dict[str, Any]:
    """Measures all populations in all settings."""
    from tests.evaluation.populations import populations

    results: dict[str, Any] = {}
    for num_inputs, max_risk in SETTINGS:
        setting = f"{num_inputs} inputs, max_risk {max_risk:g}"
        drawn = sets // 50 if num_inputs >= LARGE else sets
        results[setting] = {
            name: simulate(population, num_inputs, max_risk, drawn)
            for name, population in populations(max_risk).items()
        }
        for name, result in results[setting].items():
            print(setting, name, result, flush=True)
    return results


def cost() -> dict[str, float]:
    """Measures a million inputs of ten classes."""
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(1_000_000, 10, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    prediction = Prediction.from_logits(logits, targets=targets)
    DeferralPolicy.calibrate(prediction[:1000], max_risk=0.1)  # imports
    began = time.perf_counter()
    policy = DeferralPolicy.calibrate(prediction)
    calibrated = time.perf_counter()
    policy.accept(prediction)
    accepted = time.perf_counter()
    return {
        "calibrate_seconds": calibrated - began,
        "accept_seconds": accepted - calibrated,
        "calibrate_mebibytes": peak(lambda: DeferralPolicy.calibrate(prediction)),
        "coverage": policy.coverage,
    }


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["promise", "cost"], default=["promise", "cost"])
    parser.add_argument("--sets", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for part in arguments.parts:
        result = promise(arguments.sets) if part == "promise" else cost()
        save(arguments.out, {part: result, "machine": machine(torch.device("cpu"))})
        print(part, result)


if __name__ == "__main__":
    main()
