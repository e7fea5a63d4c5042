"""The digits picture: the scans that a model is least sure of, and how its uncertainty tells the known from the new."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hesitant.plots import INK, MUTED, OOD_COLOR, scan, score_histogram, short

Array = NDArray[Any]

SURE: Final = 0.05  # the first bin of the histograms: with eight classes, a confidence of about .98

# The layout, in inches.
WALL_COLUMNS: Final = 9
SCAN_SIZE, SCAN_WIDTH, SCAN_HEIGHT = 0.68, 0.86, 0.98
WALL_LEFT, HISTOGRAM_LEFT, HISTOGRAM_WIDTH = 0.45, 9.05, 5.2
WIDTH, HEIGHT, TOP = 14.7, 7.9, 1.5


@dataclass(frozen=True)
class MethodUncertainties:
    """How unsure one method is of each input: its histogram in `digits_figure`.

    Attributes:
        name: The method, as people call it.
        in_domain: `(N,)` uncertainties in [0, 1] of held-out in-domain inputs.
        ood: `(K,)` uncertainties in [0, 1] of out-of-domain inputs.
        auroc: Area under the ROC curve, out-of-domain being the positive class.
        accuracy: Of the held-out in-domain inputs, in [0, 1].
    """

    name: str
    in_domain: Array
    ood: Array
    auroc: float
    accuracy: float


@dataclass(frozen=True)
class Scans:
    """Images with what a method said of them.

    Attributes:
        method: The method, as people call it.
        images: `(N, H, W)` grey values.
        labels: `(N,)` predicted classes.
        confidence: `(N,)` probability of the predicted class, in [0, 1].
        uncertainty: `(N,)` in [0, 1].
        is_ood: `(N,)` whether the model never saw that class.
        targets: `(N,)` true classes; -1 where not known.
    """

    method: str
    images: Array
    labels: Array
    confidence: Array
    uncertainty: Array
    is_ood: Array
    targets: Array

    def least_sure(self, count: int, *, in_domain_only: bool = False) -> Array:
        """Answers with the positions of the `count` scans of greatest uncertainty, the least sure first."""
        order = np.argsort(-self.uncertainty, kind="stable")
        return order[~self.is_ood[order]][:count] if in_domain_only else order[:count]


def digits_figure(scans: Scans, methods: Sequence[MethodUncertainties]) -> Figure:
    """Draws the scans that a method is least sure of, and each method's uncertainty in-domain against out-of-domain.

    Args:
        scans: In-domain and out-of-domain scans, as one method sees them.
        methods: One histogram each.

    Returns:
        A figure that belongs to no window; a notebook shows it, `savefig` writes it.

    Raises:
        ValueError: If there is no method.
    """
    if not methods:
        raise ValueError("methods is empty; expected one MethodUncertainties or more: pass what the methods answered")
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    figure.suptitle(
        "Trained on the digits 0 to 7: what does it say of an 8 or a 9?",
        y=1 - 0.42 / HEIGHT, va="center", fontsize=19, fontweight="bold", color=INK,
    )  # fmt: skip
    shown = scans.least_sure(4 * WALL_COLUMNS)
    strangers = int(scans.is_ood[shown].sum())
    share = "all" if strangers == len(shown) else f"{strangers}"
    _wall(
        figure, scans, shown, top=HEIGHT - TOP, heading=f"The {len(shown)} scans that {scans.method} is least sure of",
        note=f"{share} of them are an 8 or a 9, which it never saw",
    )  # fmt: skip
    known = scans.least_sure(WALL_COLUMNS, in_domain_only=True)
    wrong = int((scans.labels[known] != scans.targets[known]).sum())
    _wall(
        figure, scans, known, top=HEIGHT - TOP - 4 * SCAN_HEIGHT - 0.8,
        heading="Of the digits that it does know, the least sure",
        note=f"{wrong} of these {len(known)} it reads wrongly; a person should look at them",
    )  # fmt: skip
    _histograms(figure, methods)
    return figure


def _wall(figure: Figure, scans: Scans, chosen: Array, *, top: float, heading: str, note: str) -> None:
    left = WALL_LEFT / WIDTH
    figure.text(left, (top + 0.4) / HEIGHT, heading, fontsize=14, fontweight="bold", color=INK)
    figure.text(left, (top + 0.14) / HEIGHT, note, fontsize=11, color=MUTED)
    for place, index in enumerate(chosen):
        row, column = divmod(place, WALL_COLUMNS)
        x, y = WALL_LEFT + column * SCAN_WIDTH, top - row * SCAN_HEIGHT - SCAN_SIZE
        ax = figure.add_axes((x / WIDTH, y / HEIGHT, SCAN_SIZE / WIDTH, SCAN_SIZE / HEIGHT))
        caption = f"{scans.labels[index]}?  {round(100 * float(scans.confidence[index]))} %"
        scan(scans.images[index], ax, caption=caption, out_of_domain=bool(scans.is_ood[index]))


def _histograms(figure: Figure, methods: Sequence[MethodUncertainties]) -> None:
    gap, bottom = 0.9, 0.75
    tall = (HEIGHT - TOP - bottom - gap * (len(methods) - 1)) / len(methods)
    for row, method in enumerate(methods):
        y = HEIGHT - TOP - tall - row * (tall + gap)
        ax = figure.add_axes((HISTOGRAM_LEFT / WIDTH, y / HEIGHT, HISTOGRAM_WIDTH / WIDTH, tall / HEIGHT))
        last = row == len(methods) - 1
        score_histogram(
            method.in_domain,
            method.ood,
            ax,
            names=None,
            num_bins=20,
            limits=(0.0, 1.0),
            label="predictive uncertainty u  (0: certain, 1: no idea)" if last else "",
        )
        sure = f"sure (u < {short(SURE)}) of {100 * float((method.ood < SURE).mean()):.0f} % of the 8s and 9s"
        ax.set_title(method.name, loc="left", fontsize=14, fontweight="bold", color=INK)
        figures = f"AUROC {short(method.auroc, 3)}, accuracy {short(method.accuracy, 3)}\n{sure}"
        ax.set_title(figures, loc="right", fontsize=11, color=INK)
        if row == 0:
            ax.legend(["held-out 0 to 7", "8 and 9, never seen"], frameon=False, fontsize=11, loc="upper center")
    legend = "✕ framed: an 8 or a 9.   Below each scan: what it was read as, and with what confidence."
    figure.text(WALL_LEFT / WIDTH, 0.22 / HEIGHT, legend, fontsize=11, color=OOD_COLOR)
