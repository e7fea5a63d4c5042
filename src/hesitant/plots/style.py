"""The look of every picture: colours, marks, and figures as papers print them. No global style is touched."""

import textwrap
from typing import Final

from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from hesitant.evaluation import decimals, without_controls

# The palette of Okabe and Ito, which colour-blind readers tell apart; each colour goes with a shape of its own.
CLASS_COLORS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#222222")
CLASS_MARKERS: Final = ("o", "^", "s", "D", "v", "P", "*")
OOD_COLOR: Final = "#C2185B"
OOD_MARKER: Final = "X"
UNCERTAINTY_MAP: Final = "cividis"
# Blue means class 0, orange class 1, and what is white the model does not decide. Lightness falls evenly to both sides.
PROBABILITY_MAP: Final = colors.LinearSegmentedColormap.from_list(
    "hesitant_probability", ["#0462A0", "#2794DC", "#8BC7EE", "#FBFBFA", "#F2B55A", "#C87C0B", "#875303"]
)
INK: Final = "#222222"
MUTED: Final = "#6B6B6B"
TITLE_SIZE: Final = 11
TITLE_WIDTH: Final = 44  # letters, of axes four inches wide
LEGEND_SIZE: Final = 9
_NOTHING: Final = "\u200b"  # a space without a width, which is drawn as nothing


def as_label(text: str) -> str:
    """The text, to be given to matplotlib, that is drawn as it is: a `$` begins no mathematics, a `_` hides no legend.

    Controls of the direction are left out, for pictures have none; lines stay apart.
    """
    lines = [without_controls(line) for line in text.split("\n")]
    shown = "\n".join(lines).replace("$", r"\$")
    return f"{_NOTHING}{shown}" if shown.startswith("_") else shown


def short(value: float, digits: int = 2) -> str:
    """A figure without its leading zero, as papers print it: 0.987 is `.99`.

    What is not 0 never reads as 0, and what falls short of 1 never as 1: those are `< .01` and `> .99`.
    """
    text = f"{value:.{digits}f}"
    if float(text) == 0.0 and value > 0.0:
        return f"< {short(10.0**-digits, digits)}"
    if float(text) == 1.0 and value < 1.0:
        return f"> {short(1.0 - 10.0**-digits, digits)}"
    return decimals(value, digits)


def given_or_new(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure."""
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


def open_frame(ax: Axes, title: str) -> Axes:
    """Titles the axes, and takes away the two sides of their frame that carry no scale."""
    lines = [textwrap.fill(line, TITLE_WIDTH) for line in title.splitlines()]
    ax.set_title(as_label("\n".join(lines)), fontsize=TITLE_SIZE, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
