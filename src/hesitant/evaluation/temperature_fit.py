"""The temperature of least negative log-likelihood, for one distribution an input or the mean of several."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hesitant.methods.leaves import Leaves

BOUNDS = (1 / 100, 100.0)

_NUMBERS_HELD = 2**27  # 512 MiB in float32
_NUMBERS_AT_ONCE = 2**20
_STARTS = 17  # of the mean of several, which may have more than one minimum
_PRECISION = 1e-9  # of log T
_ALMOST_0 = 1e-12  # a temperature at which each distribution votes for one class
_LEAST_LOG = -104.0  # below the logarithm of the least positive float32


class Held:
    """The leaves of the calibration data; where they are too many numbers, those of every second input, fourth ...

    Attributes:
        num_inputs: How many inputs are held.
        num_impossible: How many targets had the probability 0.
    """

    def __init__(self, limit: int = _NUMBERS_HELD) -> None:
        self._limit = limit
        self._parts: list[tuple[Tensor, Leaves]] = []
        self._seen = 0
        self._stride = 1
        self.num_impossible = 0

    @property
    def num_inputs(self) -> int:
        """How many inputs are held."""
        return sum(len(places) for places, _ in self._parts)

    def append(self, leaves: Leaves) -> None:
        """Adds a batch.

        Raises:
            ValueError: It has no targets, a logit is not a number, or a target is no class.
        """
        logits, targets = leaves.logits, leaves.targets
        if targets is None:
            raise ValueError("data has no targets: expected (x, target) pairs or dicts with 'labels'.")
        if bool(logits.isnan().any()) or bool((logits == math.inf).any()):
            raise ValueError("the model answered NaN or Inf: look for the input or weight that made it.")
        num_classes = logits.shape[-1]
        targets = _as_classes(targets, logits.shape[1], num_classes)
        of_target = logits.gather(-1, targets.to(logits.device).view(1, -1, 1).expand(len(logits), -1, 1))
        self.num_impossible += int((of_target == -math.inf).all(0).sum())
        # A probability that rounds to 0 has a logarithm all the same.
        leaves = leaves._replace(logits=logits.clamp(min=torch.finfo(logits.dtype).min), targets=targets)
        leaves = leaves._replace(logits=torch.where(logits == -math.inf, _LEAST_LOG, leaves.logits))
        places = torch.arange(self._seen, self._seen + len(targets))
        self._seen += len(targets)
        self._parts.append(_every(self._stride, places, leaves))
        while self._numbers() > self._limit and self.num_inputs > 1:
            self._stride *= 2
            self._parts = [_every(self._stride, *part) for part in self._parts]

    @property
    def several(self) -> bool:
        """Whether an input has several distributions."""
        return len(self._parts[0][1].weights) > 1

    def parts(self) -> Iterator[Leaves]:
        """Gives what is held, a few inputs at a time."""
        for _, leaves in self._parts:
            rows = max(1, _NUMBERS_AT_ONCE // max(1, leaves.logits[:, 0].numel() if leaves.logits.shape[1] else 1))
            for start in range(0, leaves.logits.shape[1], rows):
                yield leaves.rows(slice(start, start + rows))

    def _numbers(self) -> int:
        return sum(leaves.logits.numel() * (1 if leaves.variance is None else 2) for _, leaves in self._parts)


class Likelihood(NamedTuple):
    """What a temperature and a mean-field factor make of the calibration data.

    Attributes:
        losses: ``(N,)`` float64, the negative log-likelihood of each input.
        slope: The derivative of their mean by log T.
        doubt: The mean probability of what is not the label.
        separated: Whether each target is the one most probable class, of one at least of the S distributions.
    """

    losses: Tensor
    slope: float
    doubt: float
    separated: bool


def likelihood(held: Held, temperature: float, factor: float | None) -> Likelihood:
    r"""Answers the likelihood of the data at a temperature ``T = 1 / beta`` and a mean-field factor.

    ``-log sum_s w_s softmax(beta l_s)_t``, whose derivative by ``beta`` is ``-sum_s r_s (l_st - sum_c p_sc l_sc)``,
    ``r`` the share of each of the S distributions in the probability of the target ``t``. In float64.
    """
    beta = 1 / temperature
    losses, slopes, doubts, separated = [], [], [], True
    for part in held.parts():
        assert part.targets is not None
        logits = part.mean_field(factor)
        logits = logits - logits.amax(-1, keepdim=True)  # (S, b, C)
        log_probs = torch.log_softmax(logits * beta, -1)
        place = part.targets.view(1, -1, 1).expand(len(logits), -1, 1)
        of_target = log_probs.gather(-1, place).squeeze(-1) + part.weights.log().unsqueeze(-1)  # (S, b)
        loss = -torch.logsumexp(of_target, 0)
        shares = (of_target + loss).exp()
        pull = logits.gather(-1, place).squeeze(-1) - (log_probs.exp() * logits).sum(-1)
        mean = torch.logsumexp(log_probs + part.weights.log().view(-1, 1, 1), 0)  # (b, C)
        others = log_probs.scatter(-1, place, -math.inf).amax(-1)
        separated = separated and bool((log_probs.gather(-1, place).squeeze(-1) > others).any(0).all())
        label = mean.argmax(1, keepdim=True)
        doubts.append(mean.scatter(1, label, -math.inf).exp().sum(1))
        losses.append(loss)
        slopes.append((shares * pull).sum(0))
    return Likelihood(
        torch.cat(losses), beta * float(torch.cat(slopes).mean()), float(torch.cat(doubts).mean()), separated
    )


def fitted(held: Held, factor: float | None, start: float, *, first: bool = True) -> tuple[float, bool]:
    """Answers the temperature within BOUNDS of the least mean loss, and whether there is no finite one within them.

    One distribution an input has one minimum, for the loss is convex in ``1 / T``; the mean of several may have more,
    so that the first search begins at the best of 17, and another near it. Data in which every target is the most
    probable class, of one at least of several distributions, may have none: the loss falls as long as T does. There it
    answers the temperature at which the mean confidence is what N inputs without an error support,
    ``(N + 1) / (N + 2)`` (Laplace's rule of succession; for several distributions less what they disagree by at T = 0),
    or 1 if that is lower. Elsewhere it answers the bound, or 1 if the loss is the same at every temperature.
    """

    def slope(log_temperature: float) -> float:
        return likelihood(held, math.exp(log_temperature), factor).slope

    low, high = (math.log(bound) for bound in BOUNDS)
    begin = math.log(start)
    if first and held.several:
        points = [low + (high - low) * index / (_STARTS - 1) for index in range(_STARTS)]
        begin = min(points, key=lambda point: float(likelihood(held, math.exp(point), factor).losses.mean()))
    left, right = _bracket(slope, begin, low, high)
    if left < right:
        return math.exp(_root(slope, left, right)), False
    limit = likelihood(held, _ALMOST_0, factor)
    if right == high or not limit.separated:
        return (1.0 if slope(left) == slope(0.0) == 0 else math.exp(left)), True
    supported = limit.doubt + 1 / (held.num_inputs + 2)

    def excess(log_temperature: float) -> float:
        return likelihood(held, math.exp(log_temperature), factor).doubt - supported

    if excess(0.0) <= 0:
        return 1.0, True
    return (math.exp(_root(excess, low, 0.0)) if excess(low) < 0 else math.exp(low)), True


def _bracket(slope: Callable[[float], float], begin: float, low: float, high: float) -> tuple[float, float]:
    """Answers two places between which the slope turns from negative to positive; twice a bound if there are none."""
    here, step = begin, 0.5
    direction = 1.0 if slope(begin) < 0 else -1.0  # downwards where it is 0, as it is at last in what has no optimum
    while True:
        there = min(max(here + direction * step, low), high)
        at_there = slope(there)
        if at_there * direction > 0:
            return (here, there) if direction > 0 else (there, here)
        if there in (low, high):
            return there, there
        here, step = there, 2 * step


def _root(function: Callable[[float], float], left: float, right: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(function, left, right, xtol=_PRECISION))


def _as_classes(targets: Tensor, num_inputs: int, num_classes: int) -> Tensor:
    if targets.numel() != num_inputs or (targets.is_floating_point() and not bool((targets == targets.round()).all())):
        raise ValueError(
            f"targets of a batch have shape {tuple(targets.shape)} and dtype {targets.dtype}: expected one class index"
            f" for each of its {num_inputs} inputs."
        )
    targets = targets.reshape(-1).long()
    if bool(((targets < 0) | (targets >= num_classes)).any()):
        raise ValueError(
            f"targets lie in [{int(targets.min())}, {int(targets.max())}]: expected 0 to {num_classes - 1}, as the"
            f" model has {num_classes} classes."
        )
    return targets


def _every(stride: int, places: Tensor, leaves: Leaves) -> tuple[Tensor, Leaves]:
    if stride == 1:
        return places, leaves
    chosen = places % stride == 0
    return places[chosen], leaves.rows(chosen)
