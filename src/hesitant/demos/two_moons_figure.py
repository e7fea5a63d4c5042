"""The two-moons picture: what each method believes over the plane, and how unsure it says it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hesitant.plots import (
    CLASS_COLORS,
    INK,
    MUTED,
    OOD_COLOR,
    PROBABILITY_MAP,
    UNCERTAINTY_MAP,
    bare,
    points,
    short,
    surface,
)

Array = NDArray[Any]
Extent = tuple[float, float, float, float]

QUESTION: Final = "Where there was no data, does the model know that it does not know?"
POINTS_ON_SURFACE: Final = 90  # more of them hide the surface that they are drawn upon

# The layout, in inches: layout engines leave gaps between panels of a fixed aspect, and the gaps are what looks untidy.
PANEL_WIDTH: Final = 3.2
LEFT, RIGHT, TOP, BOTTOM = 1.15, 0.2, 1.45, 0.95
STORY_GAP, COLUMN_GAP, ROW_GAP = 0.6, 0.14, 0.42


@dataclass(frozen=True)
class MethodSurfaces:
    """What one method answers over the plane: its row in `two_moons_figure`.

    Attributes:
        name: The method, as people call it.
        probability: `(R, R)`, probability of class 1 in [0, 1]; row 0 is the smallest second coordinate.
        uncertainty: `(R, R)`, `u = 4 p (1 - p)` in [0, 1].
        distance: `(R, R)` in [0, 1], what the method has that grows with the distance to the data (the variance of
            SNGP's logits, the mutual information of samples), or `None`.
        distance_name: What `distance` is; where there is none, why.
        distance_figures: Stands above `distance`.
        u_held_out: Mean u on held-out points of the data.
        u_corners: Mean u at the corners of the plane.
        u_ood: Mean u on the out-of-domain points.
        nll: Negative log-likelihood on held-out points, in nats.
    """

    name: str
    probability: Array
    uncertainty: Array
    distance: Array | None
    distance_name: str
    distance_figures: str
    u_held_out: float
    u_corners: float
    u_ood: float
    nll: float


def uncertainty_by_region(methods: Sequence[MethodSurfaces], ax: Axes) -> Axes:
    """Draws each method's mean uncertainty on the data, at the corners of the plane and out-of-domain, as bars."""
    regions = (("data", CLASS_COLORS[0], None), ("corners", "#8A8A8A", None), ("out-of-domain", OOD_COLOR, "////"))
    heights: list[float] = []
    for row, method in enumerate(methods):
        top = -4.4 * row
        ax.text(0.0, top + 0.95, method.name, fontsize=11, fontweight="bold", color=INK, va="center")
        values = (method.u_held_out, method.u_corners, method.u_ood)
        for step, ((_, color, hatch), value) in enumerate(zip(regions, values, strict=True)):
            height = top - step
            heights.append(height)
            ax.barh(height, value, height=0.78, color=color, hatch=hatch, edgecolor="white", linewidth=0)
            ax.annotate(short(value), (value, height), (4, 0), textcoords="offset points", va="center", fontsize=10)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set(xlim=(0, 1.14), ylim=(heights[-1] - 0.7, 1.5), xticks=[0, 0.5, 1])
    ax.set_yticks(heights, [name for name, _, _ in regions] * len(methods), fontsize=10, color=INK)
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.set_title("How unsure, on average", fontsize=13, fontweight="bold", color=INK)
    ax.set_xlabel("mean u   (0: certain, 1: a coin flip)", fontsize=11, color=INK)
    return ax


def two_moons_figure(
    inputs: Array, targets: Array, ood: Array, methods: Sequence[MethodSurfaces], *, extent: Extent
) -> Figure:
    """Draws the data, and a row a method: class probability, predictive uncertainty, distance from the data.

    Args:
        inputs: `(N, 2)` training points.
        targets: `(N,)` their classes, 0 or 1.
        ood: `(K, 2)` out-of-domain points.
        methods: One row each.
        extent: Left, right, bottom and top edge of the plane.

    Returns:
        A figure that belongs to no window; a notebook shows it, `savefig` writes it.

    Raises:
        ValueError: If there is no method.
    """
    if not methods:
        raise ValueError("methods is empty; expected one MethodSurfaces or more: pass what the methods answered")
    rows = len(methods)
    panel_height = PANEL_WIDTH * (extent[3] - extent[2]) / (extent[1] - extent[0])
    width = LEFT + 4 * PANEL_WIDTH + STORY_GAP + 2 * COLUMN_GAP + RIGHT
    height = TOP + rows * panel_height + (rows - 1) * ROW_GAP + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.suptitle(QUESTION, y=1 - 0.42 / height, va="center", fontsize=19, fontweight="bold", color=INK)

    def place(row: int, column: int, row_span: int = 1) -> Axes:
        left = LEFT + column * (PANEL_WIDTH + COLUMN_GAP) + (STORY_GAP - COLUMN_GAP) * (column > 0)
        tall = row_span * panel_height + (row_span - 1) * ROW_GAP
        bottom = height - TOP - row * (panel_height + ROW_GAP) - tall
        return figure.add_axes((left / width, bottom / height, PANEL_WIDTH / width, tall / height))

    _data_panel(place(0, 0), inputs, targets, ood, extent)
    if rows > 1:
        uncertainty_by_region(methods, place(1, 0, row_span=rows - 1))
    panels = [[place(row, column) for column in (1, 2, 3)] for row in range(rows)]
    for method, row in zip(methods, panels, strict=True):
        for ax in _method_row(row, method, extent):
            points(inputs, targets, bare(ax), ood=ood, size=15, max_points=POINTS_ON_SURFACE)
            ax.set(xlim=extent[:2], ylim=extent[2:])

    # A dict keeps the order of the rows, which a set does not.
    names = dict.fromkeys(method.distance_name for method in methods if method.distance is not None)
    columns: list[tuple[str, str | colors.Colormap, str]] = [
        ("What it believes", PROBABILITY_MAP, "probability of class 1  (white: undecided)"),
        ("How unsure it says it is", UNCERTAINTY_MAP, "predictive uncertainty  u = 4p(1 - p)"),
        ("How far from the data", UNCERTAINTY_MAP, "; ".join(names)),
    ]
    for column, (heading, cmap, label) in enumerate(columns):
        if column == 2 and all(method.distance is None for method in methods):
            continue
        box = panels[0][column].get_position()
        middle = (box.x0 + box.x1) / 2
        figure.text(middle, box.y1 + 0.34 / height, heading, ha="center", fontsize=14, fontweight="bold", color=INK)
        bar_axes = figure.add_axes((box.x0 + 0.05 * box.width, 0.66 / height, 0.9 * box.width, 0.13 / height))
        bar = figure.colorbar(ScalarMappable(colors.Normalize(0, 1), cmap), cax=bar_axes, orientation="horizontal")
        bar.set_label(label, fontsize=11, color=INK)
        bar_axes.spines["outline"].set_visible(False)
    return figure


def _data_panel(ax: Axes, inputs: Array, targets: Array, ood: Array, extent: Extent) -> None:
    points(inputs, targets, ax, ood=ood, size=11)
    bare(ax).set(xlim=extent[:2], ylim=extent[2:])
    ax.set_title("The data", fontsize=13, fontweight="bold", color=INK)
    # Names beside the things named: nobody has to walk to a legend and back.
    upper, lower = inputs[targets == 0], inputs[targets == 1]
    style: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}
    ax.text(
        float(upper[:, 0].mean()), float(upper[:, 1].max()) + 0.12, "class 0", color="#005A8E", ha="center", **style
    )
    ax.text(
        float(lower[:, 0].min()) + 0.2, float(lower[:, 1].min()) + 0.05, "class 1", color="#9A5B00", ha="right", **style
    )
    ax.annotate(
        "out-of-domain:\nnever trained on", (float(ood[:, 0].min()) - 0.08, float(ood[:, 1].mean())), (-16, 0),
        textcoords="offset points", color=OOD_COLOR, ha="right", va="center",
        arrowprops={"arrowstyle": "-|>", "color": OOD_COLOR, "shrinkB": 0}, **style,
    )  # fmt: skip


def _method_row(panels: Sequence[Axes], method: MethodSurfaces, extent: Extent) -> list[Axes]:
    """Draws the surfaces of a method and answers with the axes that got one."""
    belief, doubt, distance = panels
    title = f"held-out NLL {short(method.nll, 3)}"
    surface(method.probability, belief, extent=extent, cmap=PROBABILITY_MAP, title=title)
    belief.set_ylabel(method.name, fontsize=15, fontweight="bold", color=INK, labelpad=8)
    title = f"u out-of-domain {short(method.u_ood)}, on data {short(method.u_held_out)}"
    surface(method.uncertainty, doubt, extent=extent, title=title)
    if method.distance is not None:
        surface(np.clip(method.distance, 0.0, 1.0), distance, extent=extent, title=method.distance_figures)
        return [belief, doubt, distance]
    distance.set_axis_off()
    distance.text(
        0.5, 0.5, method.distance_name, ha="center", va="center", fontsize=12, color=MUTED, style="italic",
        transform=distance.transAxes,
    )  # fmt: skip
    return [belief, doubt]
