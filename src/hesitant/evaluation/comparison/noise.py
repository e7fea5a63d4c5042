"""Which of several methods has the best figure, as far as the data can tell."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["indistinguishable"]

_NUM_RESAMPLES = 100
_MOST_INPUTS = 5_000
_NOISE = 1.96  # standard errors: 95 % of normal noise stays within


def indistinguishable(
    summaries: Mapping[str, tuple[Tensor, ...]],
    value: Callable[..., float],
    *,
    higher_is_better: bool,
    generator: torch.Generator,
) -> tuple[str, ...]:
    """The methods whose figure is the best or differs from it by noise; none if that is all of them.

    A paired bootstrap: inputs are drawn again with replacement, the same for all methods, and a difference counts as
    noise within 1.96 standard errors, the standard deviation over 100 draws of the difference from the best method's
    figure. Of more than 5,000 inputs the draws take 5,000, and the standard error shrinks with the root of the number
    (Politis and Romano 1994).

    Args:
        summaries: of each method a tensor for each data set, whose last axis is the inputs, in one order for all.
        value: the figure of such tensors.
        higher_is_better: or lower.
        generator: draws the inputs.
    """
    names = list(summaries)
    if len(names) < 2:
        return ()
    sizes = [summary.shape[-1] for summary in summaries[names[0]]]
    figures = torch.tensor([value(*summaries[name]) for name in names], dtype=torch.float64)
    sign = 1.0 if higher_is_better else -1.0
    best = int((sign * figures).argmax())
    taken = [min(size, _MOST_INPUTS) for size in sizes]
    draws = torch.empty(_NUM_RESAMPLES, len(names), dtype=torch.float64)
    for number in range(_NUM_RESAMPLES):
        rows = [torch.randint(size, (take,), generator=generator) for size, take in zip(sizes, taken, strict=True)]
        for column, name in enumerate(names):
            parts = zip(summaries[name], rows, strict=True)
            draws[number, column] = value(*(summary[..., chosen] for summary, chosen in parts))
    shrink = max(take / size for size, take in zip(sizes, taken, strict=True)) ** 0.5
    noise = _NOISE * shrink * (draws - draws[:, best : best + 1]).std(dim=0)
    alike = ~(sign * (figures[best] - figures) > noise)  # two infinite figures differ by NaN, and are alike
    return () if bool(alike.all()) else tuple(name for name, same in zip(names, alike.tolist(), strict=True) if same)
