"""Risk-coverage curves: how many errors are left when the inputs that a method is least sure of are handed over."""

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from hesitant.detection import Score
from hesitant.evaluation.metrics import RiskCoverage, risk_coverage
from hesitant.plots.style import (
    CLASS_COLORS,
    CLASS_MARKERS,
    INK,
    LEGEND_SIZE,
    MUTED,
    as_label,
    given_or_new,
    open_frame,
    short,
)
from hesitant.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = NDArray[Any]

COLUMNS: Final = 4096  # more than a picture has pixels: within one, a curve is drawn as its least and greatest risk
LEAST_COVERAGE: Final = 0.1  # below it a single error can be a risk of 1, which would press all else to the ground
LABEL_WIDTH: Final = 36  # of a legend that leaves room for the curves, in letters
STEPS: Final = 512  # in which a curve is drawn where many inputs have one score
LINE_STYLES: Final = ("-", "--", "-.", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))


def risk_coverage_curves(
    predictions: Mapping[str, Prediction],
    ax: Axes | None = None,
    *,
    score: Score = "confidence",
    targets: "Tensor | ArrayLike | None" = None,
    max_risk: float | None = None,
    title: str = "",
) -> Axes:
    """Draws the error rate among the answered inputs over the share that is answered, the surest first; low is good.

    The thin lines are the best that an order of the inputs could do with the errors that each method makes: none at all
    until its errors are all that is left, then `1 - (1 - error rate) / coverage`. The area under a curve, its AURC, is
    in the legend; among inputs of equal score, the curve is the mean over their orders, as the AURC is. Risks of less
    than a tenth of the inputs are drawn, but do not set the height. Geifman and El-Yaniv 2017, section 2,
    https://arxiv.org/abs/1705.08500.

    Args:
        predictions: Of the same inputs, by the name of the method.
        ax: Where to draw; a new one by default.
        score: What the inputs are ordered by, as in `hesitant.evaluation.uncertainty`.
        targets: `(B,)` integers in [0, C); by default those of each prediction.
        max_risk: The risk that is allowed, in [0, 1], drawn as a line.
        title: Stands above.

    Returns:
        The axes. A curve is the line with the method's name in its label; of many inputs, it has as many points as a
        picture can show.

    Raises:
        TypeError: If `predictions` is no mapping, or `targets` are not integers.
        ValueError: If there is no prediction, one has no inputs or no targets, or `max_risk` is not in [0, 1].
        UnavailableError: If a method does not have that score.
    """
    if not isinstance(predictions, Mapping):
        raise TypeError(
            f"predictions is a {type(predictions).__name__}, expected a dict of Predictions by the name of the method: "
            'pass {"SNGP": prediction}'
        )
    if not predictions:
        raise ValueError('predictions is empty, expected one Prediction or more: pass {"SNGP": prediction}')
    if max_risk is not None and not 0.0 <= max_risk <= 1.0:
        raise ValueError(f"max_risk is {max_risk}, expected an error rate in [0, 1]: .01 allows one error in a hundred")
    curves = {name: risk_coverage(prediction, targets, score) for name, prediction in predictions.items()}
    ax = given_or_new(ax)
    for place, (name, curve) in enumerate(curves.items()):
        _curve(ax, place, name, curve)
    ax.plot([], [], color=MUTED, linewidth=0.8, label="best possible orders")
    if max_risk is not None:
        ax.axhline(max_risk, color=INK, linewidth=1.0, linestyle=(0, (2, 3)), label=f"max risk {max_risk:g}")
    tops = [float(curve.risk[curve.coverage >= LEAST_COVERAGE].max()) for curve in curves.values()]
    top = max(*tops, max_risk or 0.0)
    ax.set(
        xlim=(0, 1),
        ylim=(-0.02 * top, 1.2 * top) if top > 0 else (-0.02, 1.0),
        xlabel="coverage: share of the inputs answered" + ("" if score == "confidence" else f", by {_words(score)}"),
        ylabel="risk: error rate among these",
    )
    # Curves rise to the right; what matplotlib calls best lies on a flat one, whose ends alone it looks at.
    ax.legend(fontsize=LEGEND_SIZE, loc="upper left" if top > 0 else "center left", framealpha=0.9, labelspacing=0.3)
    return open_frame(ax, title)


def _curve(ax: Axes, place: int, name: str, curve: RiskCoverage) -> None:
    color = CLASS_COLORS[place % len(CLASS_COLORS)]
    coverage, risk = thinned(*_expected(curve.coverage.numpy(), curve.risk.numpy(), curve.num_inputs))
    ax.plot(
        coverage, risk, color=color, linestyle=LINE_STYLES[place % len(LINE_STYLES)], linewidth=1.8,
        marker=CLASS_MARKERS[place % len(CLASS_MARKERS)], markersize=6, markeredgecolor="white", markeredgewidth=0.6,
        markevery=(0.04 + 0.03 * (place % 4), 0.14), zorder=3,
        label=as_label(fill(f"{name}, AURC {short(curve.aurc, 4)}", LABEL_WIDTH)),
    )  # fmt: skip
    error_rate = float(curve.risk[-1])
    best = (np.array([1.0 - error_rate, 1.0]), np.array([0.0, error_rate]))
    ax.plot(*_expected(*best, curve.num_inputs), color=color, linewidth=0.8, alpha=0.8, label=f"_best of {name}")


def _expected(coverage: Array, risk: Array, num_inputs: int) -> tuple[Array, Array]:
    """The curve through these points; between them, where inputs of equal score lie, its mean over their orders.

    The number of errors then grows evenly with that of the inputs. It is the curve whose area is the AURC.
    """
    between = np.linspace(1.0 / num_inputs, 1.0, STEPS)
    answered = np.union1d(coverage[coverage > 0], between)
    errors = np.interp(answered, np.r_[0.0, coverage], np.r_[0.0, coverage * risk])
    return answered, errors / answered


def thinned(x: Array, y: Array, columns: int = COLUMNS) -> tuple[Array, Array]:
    """The points `(x, y)`, x increasing in [0, 1], that a picture of so many columns shows.

    Of those that fall into one column the first, the last, the lowest and the highest are kept: the curve through them
    covers the same pixels.
    """
    if len(x) <= 4 * columns:
        return x, y
    column = np.minimum((x * columns).astype(np.int64), columns - 1)
    starts = np.flatnonzero(np.r_[True, np.diff(column) > 0])
    ends = np.r_[starts[1:], len(x)] - 1
    order = np.lexsort((y, column))  # within each column from the lowest to the highest
    kept = np.unique(np.concatenate([starts, ends, order[starts], order[ends]]))
    return x[kept], y[kept]


def _words(score: Score) -> str:
    return score.replace("_", " ")
