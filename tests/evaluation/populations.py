"""Populations of inputs whose risk at every threshold is known, to hold promises against."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hesitant.evaluation.deferral.fixed_sequence import RankedErrors
from hesitant.prediction import Prediction

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Population:
    """Inputs with `u` uniform in [0, 1), more uncertain the larger, wrong with probability `risk_at(u)`.

    `errors_below(t)` is the integral of `risk_at` up to `t`. Between two `edges` all inputs tie, at the lower one.
    """

    risk_at: Function
    errors_below: Function
    edges: tuple[float, ...] = ()

    def sample(self, num_inputs: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        u = generator.random(num_inputs)
        wrong = generator.random(num_inputs) < self.risk_at(u)
        if self.edges:
            u = np.array(self.edges)[np.searchsorted(self.edges, u, side="right") - 1]
        return u, wrong

    def risk_below(self, threshold: float) -> float:
        return float(self.errors_below(np.array(threshold))) / threshold

    def oracle_coverage(self, max_risk: float) -> float:
        thresholds = np.array([*self.edges[1:], 1.0]) if self.edges else np.linspace(1e-4, 1, 10_000)
        within = self.errors_below(thresholds) <= max_risk * thresholds
        return float(thresholds[within].max(initial=0))


def constant(risk: float, edges: tuple[float, ...] = ()) -> Population:
    return Population(lambda u: np.full_like(u, risk), lambda t: risk * t, edges)


def steps(ends: tuple[float, ...], risks: tuple[float, ...], edges: tuple[float, ...] = ()) -> Population:
    """Of risk `risks[i]` up to `ends[i]`."""
    starts = (0.0, *ends[:-1])
    return Population(
        lambda u: np.array(risks)[np.searchsorted(ends, u, side="right")],
        lambda t: sum(
            risk * np.clip(t - start, 0, end - start) for start, end, risk in zip(starts, ends, risks, strict=True)
        ),
        edges,
    )


def growing(floor: float, edges: tuple[float, ...] = ()) -> Population:
    return Population(lambda u: floor + 0.5 * u**3, lambda t: floor * t + 0.125 * t**4, edges)


def populations(max_risk: float) -> dict[str, Population]:
    """By name, made hard at `max_risk`; only the order of the scores counts, so any that grow with the risk do."""
    r = max_risk
    return {
        "calibrated": growing(0.0),
        "label noise": growing(r / 4),
        "overconfident with ties": growing(r / 8, (0.0, 0.25, *np.linspace(0.3, 0.99, 70).tolist())),
        "discrete": growing(0.0, (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)),
        # What is called too risky must exceed the promise, however little.
        "all at the limit": constant(r * (1 + 1e-9)),
        "all at the limit, tied": constant(r * (1 + 1e-9), (0.0, 0.05, 0.5, 0.7)),
        "confident errors": steps((0.02, 0.7, 1.0), (10 * r, r / 4, 0.5)),
        "risky, safe, risky again": steps((0.3, 0.36, 0.8, 1.0), (0.0, 8 * r, 0.0, 0.5)),
        "risky tie, then safe": steps((0.5, 1.0), (1.99 * r, 0.0101 * r + 1e-9), (0.0, 0.5)),
        "one clean input in two": steps((0.4, 0.8, 1.0), (0.6 * r, 1.4001 * r, 0.9), (0.0, 0.4, 0.8)),
    }


def ranked(u: np.ndarray, wrong: np.ndarray) -> RankedErrors:
    order = np.argsort(u, kind="stable")
    return RankedErrors(u[order], np.concatenate([[0], wrong[order].cumsum()]))


def threshold_of(u: np.ndarray, num_accepted: int) -> float:
    """The `u` below which exactly so many are accepted."""
    return float(np.sort(u)[num_accepted]) if num_accepted < len(u) else 1.0


def as_prediction(u: np.ndarray, wrong: np.ndarray) -> Prediction:
    """Of confidence `1 - u / 2` and label 0."""
    rest = torch.from_numpy(u) / 2
    return Prediction(torch.stack([1 - rest, rest], dim=-1), targets=torch.from_numpy(wrong).long())
