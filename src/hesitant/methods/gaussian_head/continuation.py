"""What a model makes of its classifier's logits: all of them, one position's, or something linear in them.

Let ``g`` be what the classifier answers within a model and ``a`` what the model answers. A Gaussian over ``g`` is one
over ``a`` where ``a`` is linear in it; elsewhere the predictive distribution is known, and not the variance of logits.
Which it is, values alone tell: those of the forward pass and, where these do not, what the model answers once its
classifier is made to answer something else. The forward passes that this takes:

====================================================  ====================================================
``a``                                                 further passes
====================================================  ====================================================
is ``g``, whatever its shape                          none
is ``g`` up to a constant for each input              none (``log_softmax(g)``)
is a softmax or sigmoid of ``g``, and said to be one  none; 1 where it was clamped or rounded, 4 after a scale
``s * g + c``, numbers for each input and class       2 (``10 * g``, an average of two heads)
``A g + c``, a matrix for each input                  2, and 1 for each class of ``g``, of which 64 at most
====================================================  ====================================================

Where ``g`` are the logits of all positions of a sequence and ``a`` is made of those of one, finding it takes none if
they are the answer and no other position's are; else, with n positions that may be the one, at most 1 + log2 n.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from hesitant.methods.gaussian_head.linear_dependence import LinearDependence, equal, same_layout, steps

Call = TypeVar("Call")


@dataclass(frozen=True)
class Continuation:
    """What a model made of its classifier's logits in one forward pass: for each input, ``s * g + c`` or ``A g + c``.

    Attributes:
        shape: That of the answer ``a``.
        positions: ``(B,)``, which of the T positions of each sequence counts; None if all that there are do.
        scale: ``s``, in the shape of the logits that count; None stands for ones.
        matrix: ``A (B, C', C)``; None stands for none.
        offset: ``c``, one for each number of the answer; None stands for zeros.
    """

    shape: torch.Size
    positions: Tensor | None = None
    scale: Tensor | None = None
    matrix: Tensor | None = None
    offset: Tensor | None = None

    def rows(self, tensor: Tensor) -> Tensor:
        """Answers what counts, ``(B, ...)``, of the classifier's features, logits or variances ``(B, T, ...)``."""
        return at_positions(tensor, self.positions)

    def mean(self, mean: Tensor) -> Tensor:
        """Answers the mean of the answer, in its shape, from that of the classifier's logits, in theirs."""
        return self._plus_offset(self._scaled(self.rows(mean), self.scale, self.matrix)).reshape(self.shape)

    def variance(self, variance: Tensor) -> Tensor:
        """Answers the variances of the answer, in its shape, from those of the logits, independent of each other."""
        scale, matrix = (None if factor is None else factor.square() for factor in (self.scale, self.matrix))
        return self._scaled(self.rows(variance), scale, matrix).reshape(self.shape)

    def draws(self, samples: Tensor) -> Tensor:
        """Answers draws ``(S, *shape)`` of the answer from draws ``(S, B, C)`` of the logits that count."""
        drawn = self._plus_offset(self._scaled(samples, self.scale, self.matrix))
        return drawn.reshape(len(samples), *self.shape)

    def _plus_offset(self, values: Tensor) -> Tensor:
        return values if self.offset is None else values + self.offset.to(values.dtype)

    @staticmethod
    def _scaled(values: Tensor, scale: Tensor | None, matrix: Tensor | None) -> Tensor:
        if matrix is not None:
            return torch.einsum("bij,...bj->...bi", matrix.to(values.dtype), values)
        return values if scale is None else scale.to(values.dtype) * values


def only_call(calls: Sequence[Call]) -> Call:
    """Answers what was noted of the one call of the classifier in a forward pass.

    Raises:
        ValueError: There was none, or more than one.
    """
    if len(calls) != 1:
        raise ValueError(
            f"predict: the model ran its classifier {len(calls)} times in one forward pass: the variance of what it"
            " makes of that is not known. softmax(model(x)) is the predictive distribution all the same."
        )
    return calls[0]


@torch.no_grad()
def continuation(
    logits: Tensor, answer: Tensor, again: Callable[[Tensor], Tensor], *, probabilities: bool = False
) -> Continuation:
    """Answers how what a model answered depends on its classifier's logits, at these inputs.

    Args:
        logits: ``g``, what the classifier answered in this forward pass: ``(B, C)``, ``(B, T, C)``.
        answer: ``a``, what the model answered: ``(B, C')``, ``(B,)``, or in the shape of the logits.
        again: Runs the model once more with the values given, in the shape of ``logits``, as what its classifier
            answers, and answers what the model answers.
        probabilities: Whether the model answers with probabilities: then ``a`` is a softmax of ``s * g + c`` with one
            ``s`` for each input, or the sigmoid of a single logit; mean and variance are those of the softmax's logits.

    Raises:
        ValueError: It depends in a way that carries no variance, on several positions or on another input's logits, or
            not at all.
    """
    if not probabilities and _is(logits, answer):
        return Continuation(answer.shape)
    positions = picked_positions(logits, answer, again)
    rows = at_positions(logits, positions)
    if positions is not None and not probabilities and _is(rows, answer):
        return Continuation(answer.shape, positions)

    def again_with(values: Tensor) -> Tensor:
        if positions is None:
            return again(values)
        changed = logits.clone()
        changed[torch.arange(len(values), device=values.device), positions] = values
        return again(changed)

    if not same_layout(rows, answer) and not (rows.ndim == 2 and answer.ndim in (1, 2) and len(answer) == len(rows)):
        raise _unknown(logits, answer, "there is not one answer for each input")
    if not bool(rows.isfinite().all()):
        raise _unknown(logits, answer, "the process answered NaN or Inf, from which nothing can be told")
    dependence = LinearDependence(rows, answer, again_with)
    found = dependence.as_probabilities() if probabilities else dependence.as_logits()
    if found is None:
        what = "a softmax or sigmoid of them" if probabilities else "them"
        why = f"the answer differs in value from {what}, and is not linear in them for each input by itself"
        raise _unknown(logits, answer, why + dependence.not_asked)
    scale, matrix, offset = found
    return Continuation(answer.shape, positions, scale, matrix, offset)


@torch.no_grad()
def picked_positions(logits: Tensor, answer: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Answers of which position ``(B,)`` of each sequence the classifier's ``logits`` ``(B, T, C)`` make the answer.

    Language models classify a sequence by the logits of its last token, which their padding decides. None says that
    there are no positions to choose from, or that the answer has them too.

    Args:
        logits: What the classifier answered.
        answer: What the model answered, ``(B, C')`` or ``(B,)``.
        again: As in :func:`continuation`.

    Raises:
        ValueError: The answer is not one for each sequence, or depends on several positions.
    """
    if logits.ndim != 3 or same_layout(logits, answer):
        return None
    batch, length, _ = logits.shape
    if answer.ndim not in (1, 2) or len(answer) != batch:
        raise _unknown(logits, answer, "there is not one answer for each sequence")
    candidates = torch.ones(batch, length, dtype=torch.bool, device=logits.device)
    if same_layout(logits[:, 0], answer):
        fits = equal(logits.to(answer.dtype), answer.reshape(batch, 1, -1)).all(-1)  # (B, T)
        counts = fits.sum(1)
        if bool((counts == 1).all()):
            return fits.int().argmax(1)
        if bool((counts > 0).all()):
            candidates = fits
    moved = logits + steps(logits, alike=False, seed=0).to(logits.dtype)

    def changes(chosen: Tensor) -> Tensor:  # (B, T) -> (B,)
        answered = again(torch.where(chosen.unsqueeze(-1), moved, logits))
        return ~equal(answered, answer).reshape(batch, -1).all(1)

    rank = candidates.cumsum(1) - 1
    code = torch.zeros(batch, dtype=torch.long, device=logits.device)
    for bit in range((int(rank.max())).bit_length()):
        code += changes(candidates & (rank >> bit & 1).bool()).long() << bit
    picked = candidates & (rank == code.unsqueeze(1))
    if bool((~picked.any(1) | changes(~picked)).any()):
        raise _unknown(logits, answer, "the answer depends on several positions, whose logits are not independent")
    return picked.int().argmax(1)


def at_positions(tensor: Tensor, positions: Tensor | None) -> Tensor:
    """Answers the rows ``(B, ...)`` of ``tensor`` ``(B, T, ...)`` at the positions ``(B,)``, or all of it."""
    return tensor if positions is None else tensor[torch.arange(len(tensor), device=tensor.device), positions]


def _is(logits: Tensor, answer: Tensor) -> bool:
    if not same_layout(logits, answer):
        return False
    logits = logits.reshape(answer.shape).to(answer.dtype)
    same = torch.equal(logits, answer) or bool(equal(logits, answer).all())
    return same and bool(logits.any())  # zeros are any multiple of themselves


def _unknown(logits: Tensor, answer: Tensor, why: str) -> ValueError:
    return ValueError(
        f"the model answered {tuple(answer.shape)}, and its Gaussian process {tuple(logits.shape)}: {why}. What is not"
        " known is the variance of the answer: softmax(model(x)) is the predictive distribution all the same. Make the"
        " classifier the last operation of the model, or name another, classifier=..."
    )
