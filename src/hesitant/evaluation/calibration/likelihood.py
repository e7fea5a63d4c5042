"""The temperature of least negative log-likelihood, for one distribution an input or the mean of several."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from hesitant.evaluation.calibration.components import Components
from hesitant.evaluation.calibration.sample import Held

BOUNDS = (1 / 100, 100.0)

_STARTS = 17  # of the mean of several, which may have more than one minimum
_FIRST_LOOK = 256  # inputs that show which of the starts are worth a look at all
_DOUBT = 4.0  # standard errors by which a start must be worse there to be left out
_PRECISION = 1e-9  # of log T
_ALMOST_0 = 1e-12  # a temperature at which each distribution votes for one class


class Likelihood(NamedTuple):
    """What a temperature and a mean-field factor make of the calibration data.

    Attributes:
        temperature: The temperature.
        losses: ``(N,)`` float64, the negative log-likelihood of each input.
        slope: The derivative of their mean by log T.
        curvature: The second derivative.
    """

    temperature: float
    losses: Tensor
    slope: float
    curvature: float

    @property
    def mean(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())


class Fit(NamedTuple):
    """A temperature that was fitted.

    Attributes:
        likelihood: The temperature, with the likelihood at it.
        bounded: Whether there is no minimum within the bounds.
        separated: Whether there is none because every target is the most probable class.
    """

    likelihood: Likelihood
    bounded: bool = False
    separated: bool = False


def likelihood(held: Iterable[Components], temperature: float, factor: float | None) -> Likelihood:
    """Answers the likelihood of the data at a temperature and a mean-field factor; None is each leaf's own factor."""
    return likelihoods(held, [temperature], factor)[0]


def likelihoods(held: Iterable[Components], temperatures: Sequence[float], factor: float | None) -> list[Likelihood]:
    r"""Answers the likelihood of the data at several temperatures ``T = 1 / beta``, in one pass through them.

    The loss of an input is ``-log sum_s w_s softmax(beta l_s)_t``. With ``d_s = l_st - sum_c p_sc l_sc`` and ``r_s``,
    the share of each of the S distributions in the probability of the target ``t``, its first derivative by ``beta`` is
    ``-sum_s r_s d_s``, and its second ``sum_s r_s Var_c[l_s] - Var_s[d_s]``, the variances under ``p_s`` and ``r``.
    All in float64, with one exponential for each number and temperature.
    """
    found: list[list[Tensor]] = [[] for _ in temperatures]  # (3, b) of each part
    for part in held:
        logits, of_target = _shifted(part, factor)
        for terms, temperature in zip(found, temperatures, strict=True):
            terms.append(_terms(logits, of_target, part.weights, 1 / temperature))
    answer = []
    for terms, temperature in zip(found, temperatures, strict=True):
        losses, slopes, curvatures = torch.cat(terms, 1)
        answer.append(Likelihood(temperature, losses, float(slopes.mean()), float(curvatures.mean())))
    return answer


def fitted(held: Held, factor: float | None, start: float, *, first: bool = True) -> Fit:
    """Answers the temperature within BOUNDS of the least mean loss, found to nine digits.

    One distribution an input has one minimum, for the loss is convex in ``1 / T``; the mean of several may have more,
    so that the first search begins at the best of 17 places and ``start``, and another near it. Of the places, those
    that a random sample of 256 inputs shows to be worse by more than four standard errors are not looked at with all.

    Data in which every target is the most probable class, of one at least of several distributions, may have none: the
    loss falls as long as T does. There it answers the temperature at which the mean confidence is what N inputs without
    an error support, ``(N + 1) / (N + 2)`` (Laplace's rule of succession; for several distributions less what they
    disagree by at T = 0), or 1 if that is lower. Elsewhere it answers the bound, or 1 if the loss is the same at every
    temperature.
    """

    def at(temperature: float) -> Likelihood:
        return likelihood(held, temperature, factor)

    begin = _best_start(held, factor, start) if first and held.several else at(start)
    found, is_minimum = _descended(at, begin)
    if is_minimum:
        return Fit(found)
    if found.slope < 0 or not _separated(held, factor):
        at_1 = at(1.0)
        return Fit(at_1 if found.slope == at_1.slope == 0 else found, bounded=True)
    supported = _doubt(held, _ALMOST_0, factor) + 1 / (held.num_inputs + 2)

    @cache  # the ends are asked for twice
    def excess(log_temperature: float) -> float:
        # Of the logarithms, which are nearer to a straight line: fewer looks at the data.
        return math.log(max(_doubt(held, math.exp(log_temperature), factor), 1e-300) / supported)

    low = math.log(BOUNDS[0])
    log_temperature = 0.0
    if excess(0.0) > 0:
        log_temperature = _root(excess, low, 0.0) if excess(low) < 0 else low
    return Fit(at(math.exp(log_temperature)), bounded=True, separated=True)


def _shifted(part: Components, factor: float | None) -> tuple[Tensor, Tensor]:
    """Answers the logits ``(S, b, C)``, the greatest of each distribution 0, and the targets' ``(S, b)``."""
    assert part.targets is not None
    logits = part.mean_field(factor)
    logits = logits - logits.amax(-1, keepdim=True)
    return logits, logits.gather(-1, part.targets.view(1, -1, 1).expand(len(logits), -1, 1)).squeeze(-1)


def _powers(logits: Tensor, beta: float) -> Tensor:
    """Answers ``exp(beta l)``, ``(S, b, C)``; 1e-304 for what is less, for numbers that underflow take longer."""
    return (logits * beta).clamp_(min=-700.0).exp_()


def _terms(logits: Tensor, of_target: Tensor, weights: Tensor, beta: float) -> Tensor:
    """Answers the loss of each input, and its derivatives by log T, ``(3, b)``."""
    powers = _powers(logits, beta)
    total = powers.sum(-1)
    mean = powers.mul_(logits).sum(-1) / total
    spread = powers.mul_(logits).sum(-1) / total - mean.square()
    log_shares = beta * of_target - total.log() + weights.log().unsqueeze(-1)
    losses = -log_shares.logsumexp(0)
    shares = (log_shares + losses).exp()
    pull = of_target - mean
    mean_pull = (shares * pull).sum(0)
    bend = (shares * (spread - (pull - mean_pull).square())).sum(0)
    return torch.stack([losses, beta * mean_pull, beta * beta * bend - beta * mean_pull])


def _best_start(held: Held, factor: float | None, start: float) -> Likelihood:
    low, high = (math.log(bound) for bound in BOUNDS)
    places = [math.exp(low + (high - low) * index / (_STARTS - 1)) for index in range(_STARTS)]
    if held.num_inputs > _FIRST_LOOK:
        seen = torch.stack([each.losses for each in likelihoods(held.fewer(_FIRST_LOOK), places, factor)])
        excess = seen - seen[seen.mean(1).argmin()]  # (17, 256)
        hopeful = excess.mean(1) <= _DOUBT * excess.std(1) / math.sqrt(seen.shape[1])
        places = [place for place, is_hopeful in zip(places, hopeful.tolist(), strict=True) if is_hopeful]
    return min(likelihoods(held, [start, *places], factor), key=lambda each: each.mean)


def _descended(at: Callable[[float], Likelihood], here: Likelihood) -> tuple[Likelihood, bool]:
    """Answers the next minimum downhill, or the bound before which there is none, and whether it is a minimum.

    Newton's steps in log T. Until the minimum lies between two places, steps that do not shrink by half are doubled
    instead (where the loss falls for ever, Newton's would go on for ever); from then on they halve what lies between.
    """
    low, high = (math.log(bound) for bound in BOUNDS)
    place, last = math.log(here.temperature), 0.0
    left: float | None = None  # where the loss falls with T
    right: float | None = None  # where it rises
    while True:
        if here.slope < 0:
            left = place
        elif here.slope > 0 or left is None:  # downwards where it is flat, as it is at last in what has no minimum
            right = place
        else:
            return here, True
        newton = -here.slope / here.curvature if here.curvature > 0 else math.inf
        shrinks = last != 0 and abs(newton) <= abs(last) / 2
        if left is not None and right is not None:
            if abs(newton) < _PRECISION or right - left < _PRECISION:
                return here, True
            step = newton if shrinks and left < place + newton < right else (left + right) / 2 - place
        else:
            if (right is None and place >= high) or (left is None and place <= low):
                return here, False
            if shrinks and abs(newton) < _PRECISION:
                return here, True
            size = abs(newton) if shrinks else max(0.5, 2 * abs(last))
            if last == 0:
                size = min(abs(newton) if newton else 0.5, 0.5)
            step = math.copysign(size, 1.0 if right is None else -1.0)
        last = step
        place = min(max(place + step, low), high)
        here = at(math.exp(place))


def _separated(held: Iterable[Components], factor: float | None) -> bool:
    """Answers whether each target is the one most probable class, of one at least of the S distributions."""
    for part in held:
        assert part.targets is not None
        logits, of_target = _shifted(part, factor)
        place = part.targets.view(1, -1, 1).expand(len(logits), -1, 1)
        others = logits.scatter(-1, place, -math.inf).amax(-1)
        if not bool((of_target > others).any(0).all()):
            return False
    return True


def _doubt(held: Iterable[Components], temperature: float, factor: float | None) -> float:
    """Answers the mean probability of what is not the label."""
    doubts = []
    for part in held:
        powers = _powers(_shifted(part, factor)[0], 1 / temperature)
        shares = part.weights.unsqueeze(-1) / powers.sum(-1)  # (S, b)
        mean = powers.mul_(shares.unsqueeze(-1)).sum(0)  # (b, C)
        doubts.append(mean.scatter(1, mean.argmax(1, keepdim=True), 0.0).sum(1))
    return float(torch.cat(doubts).mean())


def _root(function: Callable[[float], float], left: float, right: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(function, left, right, xtol=_PRECISION))
