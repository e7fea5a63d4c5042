"""Whether an answer is linear in a layer's logits and how, told from what further forward passes answer."""

from collections.abc import Callable

import torch
from torch import Tensor

_MOST_CLASSES = 64
_ROUNDINGS = 4  # in epsilons, twice what one rounding misses: what an operation or two, and differences of them, may
_SHARE_OF_ROUNDING = 0.3  # of what is compared: beyond, agreement says nothing
_ROUNDED_PROBABILITY = 1e-3  # what a clamp, an epsilon or a rounding to three decimals may move

Found = tuple[Tensor | None, Tensor | None, Tensor | None]  # scale, matrix, offset
_ITSELF: Found = (None, None, None)


class LinearDependence:
    """How the answers for some inputs depend on the logits of each, as far as that is linear.

    All is compared in float64, within the rounding of what it was computed in.

    Args:
        rows: The logits, ``(B, C)`` or ``(..., C)``.
        answer: The answer, ``(B, C')`` or ``(B,)``, or in the layout of the logits.
        again: Answers what the answer is with other values, in the shape of ``rows``, for the logits.

    Attributes:
        not_asked: Why nothing was found, where that is no matter of linearity.
    """

    def __init__(self, rows: Tensor, answer: Tensor, again: Callable[[Tensor], Tensor]) -> None:
        self._again, self._given = again, rows
        self._alike = same_layout(rows, answer)
        self._shape = rows.shape if self._alike else (len(answer), answer[:1].numel())
        self.rows, self.answer = rows.double(), answer.reshape(self._shape).double()
        self.num_classes = rows.shape[-1]
        self.epsilon = _epsilon(rows, answer)
        self.not_asked = ""

    def ask(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Answers the values, rounded as the classifier's are, and what the model makes of them."""
        values = values.to(self._given.dtype)
        return values.double(), self._again(values).reshape(self._shape).double()

    # -------------------------------------------------------- logits

    def as_logits(self) -> Found | None:
        """Answers what makes the answer of the logits, or None where nothing linear does."""
        if self._alike and self._is_shifted():
            return _ITSELF
        if not self._alike and self.rows.ndim != 2:
            return None
        # By class alone, so that an input's factors are its own; then by input too, on the other side of its logits.
        first = self.ask(self.rows + steps(self.rows, alike=True, seed=0))
        second = self.ask(self.rows - steps(self.rows, alike=False, seed=1))
        fixed = equal(self.answer, first[1]) & equal(self.answer, second[1])
        if bool(fixed.flatten(1).all(1).any()):
            self.not_asked = " (there are inputs whose answer does not depend on it)"
            return None
        found = None
        if self._alike:
            found = self._elementwise(first, second, fixed) or self._scaled_and_shifted(first, second)
        return found or self._matrix(first, second)

    def _is_shifted(self) -> bool:
        """Whether the answer is the logits and a constant for each input: the same distribution over classes."""
        if self.num_classes == 1:
            return False
        rounding = 2 * self.epsilon * (_largest(self.rows) + _largest(self.answer))
        told = _largest(_centred(self.rows)) > 100 * rounding  # equal logits are any multiple of themselves
        return bool((_largest(_centred(self.answer - self.rows)) <= rounding).all()) and bool(told.any())

    def _elementwise(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], fixed: Tensor) -> Found | None:
        (at, answered), (at_other, other) = first, second
        scale = torch.where(fixed, 0.0, (answered - self.answer) / (at - self.rows))
        offset = torch.where(fixed, self.answer, self.answer - scale * self.rows)
        change = other - self.answer
        size = self.answer.abs() + answered.abs() + other.abs()
        size += scale.abs() * (self.rows.abs() + at.abs() + at_other.abs())
        rounding = _ROUNDINGS * self.epsilon * size
        agrees = (change - scale * (at_other - self.rows)).abs() <= rounding
        within = fixed | (agrees & (rounding <= _SHARE_OF_ROUNDING * change.abs()))
        return (scale, None, offset) if bool(within.all()) else None

    def _scaled_and_shifted(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Found | None:
        """``s * g + c`` up to a constant for each input, with one ``s`` for its classes: ``log_softmax(10 * g)``."""
        if self.num_classes == 1:
            return None
        size = _largest(self.answer) + _largest(first[1]) + _largest(second[1])
        scale = _common_scale(
            [(self.rows, self.answer), first, second], _ROUNDINGS * self.epsilon * size, center=_centred
        )
        if scale is None:
            return None
        # The shift, which depends on the logits, is left out.
        return scale.expand_as(self.rows), None, _centred(self.answer - scale * self.rows)

    def _matrix(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Found | None:
        if self.rows.ndim != 2:
            return None
        if self.num_classes > _MOST_CLASSES:
            self.not_asked = (
                f", or not shown to be: with {self.num_classes} classes that takes as many forward passes, and"
                f" {_MOST_CLASSES} are the most"
            )
            return None
        columns, slack = [], []
        for k, step in enumerate(steps(self.rows, alike=True, seed=0).unbind(-1)):
            values = self.rows.clone()
            values[:, k] += step
            at, answered = self.ask(values)
            taken = (at - self.rows)[:, k : k + 1]  # (B, 1)
            columns.append((answered - self.answer) / taken)
            slack.append((answered.abs() + self.answer.abs()) / taken.abs())
        matrix, slack_of = torch.stack(columns, -1), torch.stack(slack, -1)  # (B, C', C)
        for at, answered in (first, second):
            step = (at - self.rows).unsqueeze(1)
            change = answered - self.answer
            error = (change - (matrix * step).sum(-1)).abs()
            size = (slack_of * step).square().sum(-1).sqrt() + self.answer.abs() + answered.abs()
            size += (matrix.abs() * (self.rows.abs() + at.abs()).unsqueeze(1)).sum(-1)
            rounding = _ROUNDINGS * self.epsilon * size
            told = _largest(rounding) <= _SHARE_OF_ROUNDING * _largest(change)
            if not bool((error <= rounding).all() & told.all()):
                return None
        return None, matrix, self.answer - (matrix * self.rows.unsqueeze(1)).sum(-1)

    # -------------------------------------------------------- probabilities

    def as_probabilities(self) -> Found | None:
        """Answers of what made of the logits the answer is a softmax or a sigmoid, or None."""
        if not self._alike:
            return None
        told = _largest(_free(self.rows)) > 1e-2  # near-equal logits give near-equal probabilities at any scale
        if bool(told.any()) and bool(((_probs(self.rows) - self.answer).abs() <= 4 * self.epsilon).all()):
            return _ITSELF
        at, answered = self.ask(0.25 * steps(torch.zeros_like(self.rows), alike=True, seed=0))
        if self._near(self.rows, self.answer) and self._near(at, answered):
            return _ITSELF
        small = [(values, _free(_log_odds(probs))) for values, probs in map(self.ask, self._small_points())]
        size = 1 + torch.stack([_largest(odds) for _, odds in small]).amax(0)
        scale = _common_scale(small, 8 * _ROUNDINGS * self.epsilon * size, center=_free)
        if scale is None:
            return None
        offset = _free(small[0][1] - scale * small[0][0])
        return (scale.expand_as(offset), None, offset) if self._near(scale * self.rows + offset, self.answer) else None

    def _near(self, logits: Tensor, probs: Tensor) -> bool:
        return bool(((_probs(logits) - probs).abs() <= max(_ROUNDED_PROBABILITY, 4 * self.epsilon)).all())

    def _small_points(self) -> list[Tensor]:
        """Answers three points at which a softmax of ten or a hundred times the logits is not saturated."""
        zeros = torch.zeros_like(self.rows)
        first, second = (steps(zeros, alike=True, seed=seed) for seed in (0, 1))
        return [0.025 * first, -0.025 * second, 0.025 * steps(zeros, alike=False, seed=2)]


def _common_scale(
    shown: list[tuple[Tensor, Tensor]], rounding: Tensor, *, center: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """Answers ``s (..., 1)`` of each input, of ``a = s * g + c`` for three pairs of ``g`` and ``a``, but for shifts."""
    (origin, base), *others = shown
    steps = [center(values - origin) for values, _ in others]
    changes = [center(answered - base) for _, answered in others]
    scale = (changes[0] * steps[0]).sum(-1, keepdim=True) / steps[0].square().sum(-1, keepdim=True)
    for step, change in zip(steps, changes, strict=True):
        told = rounding <= _SHARE_OF_ROUNDING * _largest(change)
        if not bool((((change - scale * step).abs() <= rounding).all(-1, keepdim=True) & told).all()):
            return None
    return scale


def steps(logits: Tensor, *, alike: bool, seed: int) -> Tensor:
    """Answers steps of 4 to 8 times the largest logit of each input, up or down, in float64.

    Drawn, so that only what is linear agrees on them, and always the same, so that answers are. A step is wider than
    its logit, so that one up and one down lie on two sides of zero, where functions bend.

    Args:
        logits: ``(..., C)``.
        alike: Whether all inputs take the same steps, relative to their largest logits.
        seed: Of the widths; the signs are always those of the class.
    """
    generator = torch.Generator().manual_seed(seed)
    num_classes = logits.shape[-1]
    sign = (1 - 2 * (torch.arange(num_classes) % 2)).double()
    width = torch.rand((num_classes,) if alike else tuple(logits.shape), generator=generator).double()
    scale = _largest(logits.double())
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
    return (sign * 4 * (1 + width)).to(logits.device) * scale


def same_layout(logits: Tensor, answer: Tensor) -> bool:
    """Whether an answer has as many numbers for as many inputs, in another shape at most."""
    if answer.shape == logits.shape or (logits.shape[-1] == 1 and answer.shape == logits.shape[:-1]):
        return True
    return answer.ndim > 1 and answer.numel() == logits.numel() and answer.shape[-1] == logits.shape[-1]


def equal(some: Tensor, others: Tensor) -> Tensor:
    """Answers where two tensors are the same, NaN included."""
    return (some == others) | (some.isnan() & others.isnan())


def _largest(values: Tensor) -> Tensor:
    return values.abs().amax(-1, keepdim=True)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def _free(logits: Tensor) -> Tensor:
    """Answers logits without the constant that a softmax takes away; a sigmoid takes none."""
    return logits if logits.shape[-1] == 1 else _centred(logits)


def _probs(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) if logits.shape[-1] == 1 else torch.softmax(logits, -1)


def _log_odds(probs: Tensor) -> Tensor:
    return torch.logit(probs) if probs.shape[-1] == 1 else probs.log()


def _epsilon(logits: Tensor, answer: Tensor) -> float:
    """Answers the relative rounding of what was computed with the least precision."""
    dtypes = [logits.dtype, answer.dtype]
    if torch.is_autocast_enabled(logits.device.type):
        dtypes.append(torch.get_autocast_dtype(logits.device.type))
    return max(torch.finfo(dtype).eps for dtype in dtypes)
