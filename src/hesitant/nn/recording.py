"""What a Gaussian process answers in one call of a model, given to the caller and to nobody else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hesitant.nn.gaussian_logits import GaussianLogits


@dataclass(frozen=True, eq=False)
class GaussianProcessCall:
    """One forward of a Gaussian-process layer."""

    layer: nn.Module
    inputs: Tensor  # (..., D)
    posterior: GaussianLogits | None  # in eval mode, where the covariance is fitted
    output: Tensor  # (..., C), what forward answered


@dataclass(eq=False)
class Recording:
    """What is recorded, and what the layers are asked to answer meanwhile."""

    plain: bool
    decides: bool
    answering: Iterator[Tensor] | None
    calls: list[GaussianProcessCall] = field(default_factory=list)

    def note(self, layer: nn.Module, inputs: Tensor, posterior: GaussianLogits | None, output: Tensor) -> None:
        """Notes a call, with a copy of its inputs: the model may write over them afterwards."""
        self.calls.append(GaussianProcessCall(layer, inputs.detach().clone(), posterior, output))

    def answer(self) -> Tensor | None:
        """Answers what the next forward is to answer, or None: its own.

        Raises:
            ValueError: There is no next one.
        """
        if self.answering is None:
            return None
        given = next(self.answering, None)
        if given is None:
            raise ValueError(
                f"answering holds {len(self.calls)} tensors, and the model calls its Gaussian process more often: give"
                " one for each call."
            )
        return given


_CURRENT: ContextVar[Recording | None] = ContextVar("gaussian_process_recording", default=None)


def current_recording() -> Recording | None:
    """Answers the innermost recording of this context; None outside of any, and while a graph is traced."""
    return None if torch.compiler.is_compiling() else _CURRENT.get()


@contextmanager
def recorded(
    *, plain: bool = False, decides: bool = False, answering: Sequence[Tensor] | None = None
) -> Iterator[list[GaussianProcessCall]]:
    """Gives the list of the calls of Gaussian-process layers that this context (thread, task) makes within.

    It travels with the context and is on no layer: another thread's calls are not in it, and of nested recordings the
    innermost alone gets a call. Hold it around one call of the model, not around code of others, such as an iterator
    over their data. What is compiled records nothing.

    Args:
        plain: Layers answer plain logits whatever their mode and state, and nothing comes of it: no warning, no update
            of a running covariance, no kernel scale, no factor.
        decides: Whether layers decide their kernel scale by what they are given, if they have not: for who knows that
            it is training data, also where gradients come later (activation checkpointing).
        answering: What the layers answer, one after the other, instead of their own output, ``(..., C)`` each.

    Raises:
        ValueError: A layer is called more often than there are tensors in ``answering``.
    """
    recording = Recording(plain, decides, None if answering is None else iter(answering))
    token = _CURRENT.set(recording)
    try:
        yield recording.calls
    finally:
        _CURRENT.reset(token)
