"""Inputs that are images, as a person sees them."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from hesitant.plots.style import INK, OOD_COLOR, as_label, bare, given_or_new


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
    ax = bare(given_or_new(ax))
    ax.imshow(np.asarray(image), cmap="Greys", interpolation="bicubic")
    ax.set_xlabel(as_label(f"✕ {caption}" if out_of_domain else caption), fontsize=9, labelpad=2,
                  color=OOD_COLOR if out_of_domain else INK)  # fmt: skip
    if out_of_domain:
        for spine in ax.spines.values():
            spine.set(color=OOD_COLOR, linewidth=2.2)
    return ax
