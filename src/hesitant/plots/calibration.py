"""The reliability diagram: whether a confidence of .9 is right nine times in ten."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from hesitant.evaluation.metrics import Reliability, reliability
from hesitant.plots.style import CLASS_COLORS, INK, LEGEND_SIZE, MUTED, OOD_COLOR, given_or_new, open_frame, short
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

STRIP: Final = 0.34  # how deep below 0 the counts go
TALLEST: Final = 0.15  # of the counts; what is left of the strip is for the numbers
HEAD: Final = 1.17  # the legend stands above 1, where it hides nothing
LEAST_WIDTH: Final = 0.006  # of a count, where a bin is narrower than what can be seen
MOST_NUMBERS: Final = 20  # of bins; of more, the numbers would lie upon each other


def reliability_diagram(
    prediction: Prediction,
    ax: Axes | None = None,
    *,
    targets: "Tensor | ArrayLike | None" = None,
    num_bins: int = 15,
    adaptive: bool = False,
    title: str = "",
) -> Axes:
    """Draws the accuracy of each bin of confidence, how far it is from the confidence, and how many inputs the bin has.

    A bar is as high as the accuracy of its bin, and the hatched gap goes from there to the mean confidence: above the
    bar where the model is too sure, within it where it is not sure enough. The ECE is the mean of these gaps, weighted
    by the counts below. A bin without inputs is left empty. Adaptive bins hold equally many inputs each and may be too
    narrow for a bar: each is a point at its mean confidence and accuracy. Guo et al. 2017, figure 1,
    https://arxiv.org/abs/1706.04599.

    Args:
        prediction: Of `B >= 1` inputs.
        ax: Where to draw; a new one by default.
        targets: `(B,)` integers in [0, C); by default those of `prediction`.
        num_bins: At least 1.
        adaptive: Bins of equal counts in place of equal width.
        title: Stands above, and above the ECE.

    Returns:
        The axes. The bars and gaps are its `containers`; what is below 0 are the counts.

    Raises:
        TypeError: If `targets` are not integers.
        ValueError: If there are no inputs or no targets, the targets do not fit, or `num_bins` is below 1.
    """
    bins = reliability(prediction, targets, num_bins, adaptive)
    ax = given_or_new(ax)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle="--", label="_perfect", zorder=2.5)
    _points(bins, ax) if adaptive else _bars(bins, ax)
    _counts(bins, ax, adaptive)
    ax.axhline(0.0, color=INK, linewidth=0.8)
    ax.set(xlim=(0, 1), ylim=(-STRIP, HEAD), xlabel="confidence")
    ax.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    ax.set_ylabel("accuracy", y=_height(0.5), ha="center")
    heading = f"{'adaptive ' if adaptive else ''}ECE {short(bins.ece, 3)}, {_inputs(int(bins.counts.sum()))}"
    ax.legend(fontsize=LEGEND_SIZE, loc="upper left", ncols=2, frameon=False, borderpad=0.1, borderaxespad=0.2,
              columnspacing=1.2)  # fmt: skip
    return open_frame(ax, f"{title}\n{heading}" if title else heading)


def _bars(bins: Reliability, ax: Axes) -> None:
    edges, accuracy, confidence, filled = _arrays(bins)
    place = {"x": edges[:-1][filled], "width": np.diff(edges)[filled], "align": "edge"}
    pale, face = colors.to_rgba(CLASS_COLORS[0], 0.45), colors.to_rgba(OOD_COLOR, 0.12)
    ax.bar(height=accuracy, facecolor=pale, edgecolor="white", linewidth=0.6, label="accuracy", **place)
    gap = {**place, "height": confidence - accuracy, "bottom": accuracy}
    ax.bar(facecolor=face, label="_face", **gap)  # by itself: as one with the hatching, an SVG would hide that
    ax.bar(facecolor="none", edgecolor=OOD_COLOR, hatch="////", linewidth=0.8, label="gap", **gap)
    ax.hlines(accuracy, edges[:-1][filled], edges[1:][filled], color=CLASS_COLORS[0], linewidth=2.4, zorder=3)


def _points(bins: Reliability, ax: Axes) -> None:
    _, accuracy, confidence, _ = _arrays(bins)
    ax.plot(confidence, accuracy, "o", color=CLASS_COLORS[0], markeredgecolor="white", markersize=6, label="accuracy",
            zorder=3, clip_on=False)  # fmt: skip
    ax.vlines(confidence, accuracy, confidence, color=OOD_COLOR, linewidth=1.6, label="gap")


def _counts(bins: Reliability, ax: Axes, adaptive: bool) -> None:
    edges, _, confidence, filled = _arrays(bins)
    counts = bins.counts.numpy()[filled]
    tall = TALLEST * counts / counts.max()
    left, wide = edges[:-1][filled], np.diff(edges)[filled]
    if adaptive:
        left, wide = confidence - LEAST_WIDTH / 2, np.full(len(confidence), LEAST_WIDTH)
    ax.bar(left, tall, wide, bottom=-STRIP, align="edge", color="#B5B5B5", edgecolor="white", linewidth=0.4,
           label="_counts")  # fmt: skip
    ax.text(-0.015, _height(-STRIP / 2), "inputs", transform=ax.transAxes, rotation=90, fontsize=8, color=MUTED,
            ha="right", va="center")  # fmt: skip
    if adaptive:
        least, most = int(counts.min()), int(counts.max())
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        bins_of = "1 bin" if len(counts) == 1 else f"{len(counts)} bins"
        ax.text(0.02, -STRIP / 2, f"{bins_of} of {each}", fontsize=8, color=MUTED, va="center")
    elif len(edges) - 1 <= MOST_NUMBERS:
        for x, height, count in zip(left + wide / 2, tall, counts, strict=True):
            ax.text(x, height - STRIP + 0.012, _compact(int(count)), rotation=90, fontsize=7, color=INK, ha="center",
                    va="bottom")  # fmt: skip


def _arrays(bins: Reliability) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The edges of all bins, accuracy and confidence of those that have inputs, and which these are."""
    filled = bins.counts.numpy() > 0
    return bins.edges.numpy(), bins.accuracy.numpy()[filled], bins.confidence.numpy()[filled], filled


def _height(y: float) -> float:
    """The height `y` as a share of that of the axes."""
    return (y + STRIP) / (HEAD + STRIP)


def _inputs(count: int) -> str:
    return f"{count:,} input{'' if count == 1 else 's'}"


def _compact(count: int) -> str:
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if count >= 0.9995 * unit:
            value = count / unit
            return f"{value:.1f}{name}" if value < 9.95 else f"{value:.0f}{name}"
    return str(count)
