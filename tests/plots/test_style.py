import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure

from hesitant.plots import CLASS_COLORS, CLASS_MARKERS, PROBABILITY_MAP, short
from hesitant.plots.style import as_label


@pytest.mark.parametrize("name", ["cividis", "probability"])
def test_colour_maps_are_even_in_lightness(name):
    cmap = PROBABILITY_MAP if name == "probability" else colormaps[name]
    linear = np.asarray(cmap(np.linspace(0, 1, 64)))[:, :3] ** 2.2
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    steps = np.diff(lightness)
    if name == "probability":  # falls to both sides of the middle, and as far to one as to the other
        assert (steps[:31] > 0).all()
        assert (steps[32:] < 0).all()
        assert lightness[0] == pytest.approx(lightness[-1], abs=1.5)
        sides = np.abs(np.delete(steps, 31))  # the step across the middle falls and rises
        assert np.ptp(sides) < 0.6 * sides.mean()
    else:
        assert (steps > 0).all()


def test_each_class_has_a_colour_and_a_shape_of_its_own():
    assert len(set(CLASS_COLORS)) == len(set(CLASS_MARKERS)) == len(CLASS_COLORS) == len(CLASS_MARKERS)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.987, 2, ".99"),
        (1.0, 2, "1.00"),
        (0.9956, 2, "> .99"),
        (1.04, 1, "1.0"),
        (0.0, 2, ".00"),
        (1e-19, 2, "< .01"),
        (0.0137, 3, ".014"),
        (12.5, 1, "12.5"),
    ],
)
def test_short_prints_figures_as_papers_do(value, digits, text):
    assert short(value, digits) == text


@pytest.mark.parametrize(
    "text", ["cost $5 and $6", "$", "$$", "a\\$b", "\\$x$", "_hidden $x_1$", "50 % & more", "{a}^2"]
)
def test_a_label_is_drawn_as_the_text_that_it_is(text):
    figure = Figure()
    drawn = figure.text(0, 0, as_label(text))
    assert drawn._preprocess_math(drawn.get_text()) == (text if text[0] != "_" else f"\u200b{text}", False)


def test_a_label_has_no_controls():
    assert as_label("abc\u202edef\x1b\nnext\u2066 line") == "abcdef\ufffd\nnext line"
