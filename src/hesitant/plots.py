"""Pictures: a class probability or an uncertainty over a plane, labelled points, histograms, images.

Every function takes an `Axes` and returns it (`ax=None` makes one). No global style is touched. Colours come from
perceptually uniform maps and from the Okabe-Ito palette; whatever is told apart by colour also differs in shape or
hatching, so that print and colour-blind readers lose nothing.
"""

from typing import Final

import numpy as np
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

CLASS_COLORS: Final = ("#0072B2", "#E69F00")
CLASS_MARKERS: Final = ("o", "^")
OOD_COLOR: Final = "#C2185B"
OOD_MARKER: Final = "X"
UNCERTAINTY_MAP: Final = "cividis"
# Blue means class 0, orange class 1, and what is white the model does not decide. Lightness falls evenly to both sides.
PROBABILITY_MAP: Final = colors.LinearSegmentedColormap.from_list(
    "hesitant_probability", ["#0462A0", "#2794DC", "#8BC7EE", "#FBFBFA", "#F2B55A", "#C87C0B", "#875303"]
)
INK: Final = "#222222"
MUTED: Final = "#6B6B6B"


def short(value: float, digits: int = 2) -> str:
    """A figure without its leading zero, as papers print it: 0.987 is `.99`.

    What is not 0 never reads as 0, and what falls short of 1 never as 1: those are `< .01` and `> .99`.
    """
    text = f"{value:.{digits}f}"
    if float(text) == 0.0 and value > 0.0:
        return f"< {short(10.0**-digits, digits)}"
    if float(text) == 1.0 and value < 1.0:
        return f"> {short(1.0 - 10.0**-digits, digits)}"
    return text.removeprefix("0") if text.startswith("0.") else text


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    made: Axes = plt.subplots(layout="constrained")[1]
    return made


def bare(ax: Axes) -> Axes:
    """Takes the ticks away and leaves a thin grey frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color="#BBBBBB", linewidth=0.6)
    return ax


def surface(
    values: ArrayLike,
    ax: Axes | None = None,
    *,
    extent: tuple[float, float, float, float],
    cmap: str | colors.Colormap = UNCERTAINTY_MAP,
    limits: tuple[float, float] = (0.0, 1.0),
    title: str = "",
    label: str | None = None,
) -> Axes:
    """Draws a quantity over a plane.

    Args:
        values: `(R, R)` or `(rows, columns)`; row 0 is drawn at the bottom.
        ax: Where to draw; a new one by default.
        extent: Left, right, bottom and top edge.
        cmap: A colour map or its name.
        limits: The values at the two ends of the colour map.
        title: Stands above.
        label: Adds a colour bar with this label.

    Returns:
        The axes; the image is its `images[-1]`.

    Raises:
        ValueError: If `values` is not a matrix.
    """
    matrix = np.asarray(values)
    if matrix.ndim != 2:
        raise ValueError(
            f"values has shape {matrix.shape}; expected a matrix (rows, columns): reshape the predictions to their grid"
        )
    ax = _axes(ax)
    low, high = limits
    image = ax.imshow(
        matrix, origin="lower", extent=extent, cmap=cmap, vmin=low, vmax=high, interpolation="bilinear", aspect="equal"
    )
    ax.set_title(title, fontsize=11, color=INK)
    if label is not None:
        ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def points(
    inputs: ArrayLike,
    targets: ArrayLike,
    ax: Axes | None = None,
    *,
    ood: ArrayLike | None = None,
    size: float = 14.0,
    max_points: int | None = None,
) -> Axes:
    """Draws labelled points of the plane, and points that no class claims.

    Args:
        inputs: `(N, 2)`.
        targets: `(N,)`, 0 or 1.
        ax: Where to draw; a new one by default.
        ood: `(K, 2)` out-of-domain points.
        size: Area of a marker in square points.
        max_points: Draws about that many of each group (evenly picked), so that a surface below stays visible.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    places, classes = np.asarray(inputs), np.asarray(targets)
    groups = [
        (places[classes == c], CLASS_COLORS[c], CLASS_MARKERS[c], f"class {c}", size) for c in range(len(CLASS_COLORS))
    ]
    if ood is not None:
        groups.append((np.asarray(ood), OOD_COLOR, OOD_MARKER, "out-of-domain", 1.6 * size))
    for group, color, marker, name, area in groups:
        shown = group if max_points is None else group[:: max(1, len(group) // max_points)]
        ax.scatter(
            shown[:, 0], shown[:, 1], s=area, c=color, marker=marker, label=name, edgecolors="white", linewidths=0.35
        )
    ax.set_aspect("equal")
    return ax


def uncertainty_histogram(
    in_domain: ArrayLike,
    ood: ArrayLike,
    ax: Axes | None = None,
    *,
    num_bins: int = 20,
    title: str = "",
    label: str = "predictive uncertainty u",
) -> Axes:
    """Draws how often each uncertainty in [0, 1] occurs, in-domain against out-of-domain.

    Args:
        in_domain: `(N,)` uncertainties.
        ood: `(K,)` uncertainties.
        ax: Where to draw; a new one by default.
        num_bins: Bins of equal width between 0 and 1.
        title: Stands above.
        label: Stands below the axis.

    Returns:
        The axes; heights are per cent of the respective inputs.
    """
    ax = _axes(ax)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    for values, color, hatch, name in (
        (np.asarray(in_domain), CLASS_COLORS[0], None, "in-domain"),
        (np.asarray(ood), OOD_COLOR, "////", "out-of-domain"),
    ):
        percent = 100.0 * np.histogram(np.clip(values, 0.0, 1.0), edges)[0] / max(1, len(values))
        face = colors.to_rgba(color, 0.85 if hatch is None else 0.12)
        ax.stairs(percent, edges, fill=True, facecolor=face, edgecolor=color, hatch=hatch, linewidth=1.2, label=name)
    ax.set(xlim=(0, 1), xlabel=label, ylabel="% of inputs")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_title(title, fontsize=11, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def scan(
    image: ArrayLike,
    ax: Axes | None = None,
    *,
    caption: str = "",
    out_of_domain: bool = False,
) -> Axes:
    """Draws a grey image with what was said of it; one that is out-of-domain gets a thick frame and its caption a sign.

    Args:
        image: `(H, W)`; the darkest ink is the greatest value.
        ax: Where to draw; a new one by default.
        caption: Stands below.
        out_of_domain: Whether the model never saw such an input.

    Returns:
        The axes.
    """
    ax = bare(_axes(ax))
    ax.imshow(np.asarray(image), cmap="Greys", interpolation="bicubic")
    ax.set_xlabel(f"✕ {caption}" if out_of_domain else caption, fontsize=9, labelpad=2,
                  color=OOD_COLOR if out_of_domain else INK)  # fmt: skip
    if out_of_domain:
        for spine in ax.spines.values():
            spine.set(color=OOD_COLOR, linewidth=2.2)
    return ax
