"""A class probability or an uncertainty over a plane, and labelled points upon it."""

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from hesitant.plots.style import (
    CLASS_COLORS,
    CLASS_MARKERS,
    INK,
    OOD_COLOR,
    OOD_MARKER,
    TITLE_SIZE,
    UNCERTAINTY_MAP,
    as_label,
    given_or_new,
)


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
    ax = given_or_new(ax)
    low, high = limits
    image = ax.imshow(
        matrix, origin="lower", extent=extent, cmap=cmap, vmin=low, vmax=high, interpolation="bilinear", aspect="equal"
    )
    ax.set_title(as_label(title), fontsize=TITLE_SIZE, color=INK)
    if label is not None:
        # Beside the axes wherever their aspect puts them, and exactly as tall.
        ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0.0, 0.045, 1.0)), label=as_label(label))
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
        targets: `(N,)` classes, 0 to 6: there are seven that a reader tells apart.
        ax: Where to draw; a new one by default.
        ood: `(K, 2)` out-of-domain points.
        size: Area of a marker in square points.
        max_points: Draws about that many of each group (evenly picked), so that a surface below stays visible.

    Returns:
        The axes.

    Raises:
        ValueError: If a target has no colour.
    """
    places, classes = np.asarray(inputs), np.asarray(targets)
    outside = set(np.unique(classes)) - set(range(len(CLASS_COLORS)))
    if outside:
        raise ValueError(
            f"targets holds {min(outside)}, expected classes from 0 to {len(CLASS_COLORS) - 1}: draw the points of "
            "the classes that the picture is about"
        )
    ax = given_or_new(ax)
    groups = [(places[classes == c], CLASS_COLORS[c], CLASS_MARKERS[c], f"class {c}", size) for c in np.unique(classes)]
    if ood is not None:
        groups.append((np.asarray(ood), OOD_COLOR, OOD_MARKER, "out-of-domain", 1.6 * size))
    for group, color, marker, name, area in groups:
        shown = group if max_points is None else group[:: max(1, len(group) // max_points)]
        ax.scatter(
            shown[:, 0], shown[:, 1], s=area, c=color, marker=marker, label=name, edgecolors="white", linewidths=0.35
        )
    if not ax.images:  # a surface below has an aspect of its own
        ax.set_aspect("equal")
    return ax
