"""The score histogram: how well a score parts the known from the new, and what a threshold on it does."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from hesitant.evaluation.metrics import as_scores
from hesitant.plots.style import CLASS_COLORS, INK, LEGEND_SIZE, OOD_COLOR, as_label, given_or_new, open_frame

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = NDArray[Any]

DECADES: Final = 3  # scores that span more of them are drawn over their logarithm
REST: Final = 0.001  # of a group on either side: what few scores lie far away does not set the scale


def score_histogram(
    in_domain_scores: "Tensor | ArrayLike",
    ood_scores: "Tensor | ArrayLike",
    ax: Axes | None = None,
    *,
    threshold: float | None = None,
    names: tuple[str, str] | None = ("in-domain", "out-of-domain"),
    num_bins: int = 30,
    log: bool | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
    label: str = "uncertainty",
) -> Axes:
    """Draws how often each score occurs, in-domain against out-of-domain, and how much of either a threshold rejects.

    Args:
        in_domain_scores: `(N,)` numbers, higher the less in-domain an input looks; infinite ones are allowed.
        ood_scores: `(K,)` numbers.
        ax: Where to draw; a new one by default.
        threshold: Drawn as a line; the shares of the scores from it on, which are handed over, stand in the legend.
        names: Of the two groups, in the legend; `None` draws no legend.
        num_bins: Bins of equal width between the limits.
        log: Bins of equal width in the logarithm; by default where no score is negative and most of them span more than
            three decades, as those of a confident model do.
        limits: Where the axis ends; by default at the scores, but for the one in a thousand of either group that may
            lie far away. Scores outside, and on a logarithmic axis zeros, are counted in the outermost bins, and the
            label says so.
        title: Stands above.
        label: Stands below the axis.

    Returns:
        The axes; heights are per cent of the respective inputs.

    Raises:
        TypeError: If the scores are not real numbers.
        ValueError: If there are none, one is NaN, or the axis cannot be logarithmic; if `num_bins`, `limits` or
            `threshold` make no sense.
    """
    groups = (
        as_scores("in_domain_scores", in_domain_scores).numpy(),
        as_scores("ood_scores", ood_scores).numpy(),
    )
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, expected at least 1: 30 show the shape of most scores")
    if threshold is not None and np.isnan(threshold):
        raise ValueError("threshold is nan, expected a number: pass the score from which an input is handed over")
    if log is None:
        log = (limits is None or limits[0] > 0) and _span_decades(groups)
    low, high = _drawn(groups, threshold, log) if limits is None else _checked(limits, log)
    edges = np.geomspace(low, high, num_bins + 1) if log else np.linspace(low, high, num_bins + 1)
    edges[[0, -1]] = low, high  # rounding must not leave the least and the greatest score outside
    ax = given_or_new(ax)
    styles = ((CLASS_COLORS[0], None), (OOD_COLOR, "////"))
    for values, (color, hatch), name in zip(groups, styles, names or ("", ""), strict=True):
        percent = 100.0 * np.histogram(np.clip(values, low, high), edges)[0] / len(values)
        face = colors.to_rgba(color, 0.45 if hatch is None else 0.12)
        share = "" if threshold is None else f": {_percent(float((values >= threshold).mean()))} handed over"
        if hatch is not None:  # an SVG hides hatching that has a face
            ax.stairs(percent, edges, fill=True, facecolor=face, label="_face")
            face = colors.to_rgba(color, 0.0)
        ax.stairs(
            percent,
            edges,
            fill=True,
            facecolor=face,
            edgecolor=color,
            hatch=hatch,
            linewidth=1.2,
            label=as_label(f"{name}{share}") if names else "_scores",
        )
    if threshold is not None:
        ax.axvline(min(max(threshold, low), high), color=INK, linewidth=1.4, linestyle="--", clip_on=False,
                   label=f"{'' if names else '_'}threshold {threshold:.3g}")  # fmt: skip
    outside = any(bool(((values < low) | (values > high)).any()) for values in groups)
    if log:
        ax.set_xscale("log")
    ax.set(xlim=(low, high), ylabel="% of inputs")
    ax.set_xlabel(as_label(f"{label}\nthe outermost bins hold all scores beyond" if outside else label))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.margins(y=0.1)
    if names:
        ax.legend(fontsize=LEGEND_SIZE, loc="best", framealpha=0.9)
    return open_frame(ax, title)


def _span_decades(groups: tuple[Array, Array]) -> bool:
    positive = [values[(values > 0) & np.isfinite(values)] for values in groups]
    if any((values < 0).any() for values in groups) or any(len(values) == 0 for values in positive):
        return False
    least = min(np.quantile(values, 0.05) for values in positive)
    greatest = max(np.quantile(values, 0.95) for values in positive)
    return bool(greatest > least * 10.0**DECADES)


def _drawn(groups: tuple[Array, Array], threshold: float | None, log: bool) -> tuple[float, float]:
    """Where the axis ends if nobody says it: at the scores, but for the few that lie far away."""
    if log and any((values < 0).any() for values in groups):
        raise ValueError("log is True, but a score is negative, which has no logarithm: leave log out")
    shown = [values[np.isfinite(values) & ((values > 0) | (not log))] for values in groups]
    shown = [values for values in shown if len(values) > 0]
    ends = [np.quantile(values, REST, method="lower") for values in shown]
    ends += [np.quantile(values, 1 - REST, method="higher") for values in shown]
    if threshold is not None and np.isfinite(threshold) and (threshold > 0 or not log):
        ends.append(np.float64(threshold))
    if not ends:
        kind = "positive and finite" if log else "finite"
        raise ValueError(f"no score is {kind}, so there is no axis to draw them on: pass limits=(low, high)")
    low, high = float(min(ends)), float(max(ends))
    if low < high:
        return low, high
    # All scores are one: it stands in the middle.
    return (low / 10, low * 10) if log else (low - max(0.5, abs(low) / 2), low + max(0.5, abs(low) / 2))


def _checked(limits: tuple[float, float], log: bool) -> tuple[float, float]:
    low, high = limits
    if not (low < high and np.isfinite([low, high]).all()) or (log and low <= 0):
        kind = "two positive numbers" if log else "two finite numbers"
        raise ValueError(f"limits is {limits}, expected {kind}, the smaller first: leave it out to show all scores")
    return low, high


def _percent(share: float) -> str:
    text = f"{100 * share:.1f}"
    if text == "0.0" and share > 0:
        text = "< 0.1"
    if text == "100.0" and share < 1:
        text = "> 99.9"
    return f"{text} %"
