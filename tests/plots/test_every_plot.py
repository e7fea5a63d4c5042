import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from hesitant import Prediction
from hesitant.plots import (
    points,
    reliability_diagram,
    risk_coverage_curves,
    scan,
    score_histogram,
    surface,
    uncertainty_surface,
)

EXTENT = (-1.0, 1.0, -2.0, 2.0)
PREDICTION = Prediction.from_logits(torch.linspace(-6, 6, 40), targets=torch.arange(40) // 15 % 2)
ONE_INPUT = PREDICTION[0]
SCORES = ([0.1, 0.2, 1e-9], [0.9, 0.3])
LONG = "A name that is as long as the names of methods get"


def of_plane(inputs):
    return Prediction.from_logits(inputs)


DRAWINGS = {
    "surface": lambda ax: surface(np.eye(3), ax, extent=EXTENT, label="u"),
    "points": lambda ax: points(np.zeros((4, 2)), np.array([0, 0, 1, 1]), ax, ood=np.ones((2, 2))),
    "scan": lambda ax: scan(np.eye(8), ax),
    "reliability": lambda ax: reliability_diagram(PREDICTION, ax, title="SNGP"),
    "reliability-adaptive": lambda ax: reliability_diagram(PREDICTION, ax, adaptive=True),
    "reliability-one-input": lambda ax: reliability_diagram(ONE_INPUT, ax),
    "risk-coverage": lambda ax: risk_coverage_curves({"SNGP": PREDICTION, LONG: PREDICTION}, ax, max_risk=0.1),
    "risk-coverage-one-input": lambda ax: risk_coverage_curves({"SNGP": ONE_INPUT}, ax),
    "histogram": lambda ax: score_histogram(*SCORES, ax, threshold=0.25),
    "histogram-log": lambda ax: score_histogram(*SCORES, ax, threshold=0.25, log=True),
    "model": lambda ax: uncertainty_surface(of_plane, ax, extent=EXTENT, resolution=8),
}
MONEY, TURNED, HIDDEN = "cost $5 and $6", "abc\u202edef", "_hidden"
NAMED = {
    "surface": lambda ax: surface(np.eye(3), ax, extent=EXTENT, label=MONEY, title=TURNED),
    "scan": lambda ax: scan(np.eye(8), ax, caption=f"{MONEY} {TURNED}"),
    "reliability": lambda ax: reliability_diagram(PREDICTION, ax, title=f"{MONEY}\n{TURNED}"),
    "risk-coverage": lambda ax: risk_coverage_curves(dict.fromkeys((MONEY, TURNED, HIDDEN), PREDICTION), ax),
    "histogram": lambda ax: score_histogram(
        *SCORES, ax, names=(MONEY, TURNED), title=MONEY, label=TURNED, threshold=0.25
    ),
    "histogram, hidden": lambda ax: score_histogram(*SCORES, ax, names=(MONEY, HIDDEN), title=TURNED),
    "model": lambda ax: uncertainty_surface(
        of_plane, ax, extent=EXTENT, resolution=8, title=MONEY, label=f"{MONEY} {TURNED}"
    ),
}


@pytest.mark.parametrize("draw", NAMED.values(), ids=NAMED)
def test_names_are_drawn_as_text(draw, ax):
    draw(ax)
    ax.figure.draw_without_rendering()
    texts = [text for text in ax.findobj(Text) if text.get_text()]
    drawn = [text._preprocess_math(text.get_text()) for text in texts]  # as they are drawn, and how
    assert {how for what, how in drawn if "5" in what or "abc" in what} == {False}
    joined = "\n".join(what for what, _ in drawn)
    assert MONEY in joined
    assert "\u202e" not in joined
    assert "abcdef" in joined
    if ax.get_legend() is not None and HIDDEN in joined:
        assert any(HIDDEN in text.get_text() for text in ax.get_legend().get_texts())


every_plot = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)


@every_plot
def test_draws_on_the_axes_it_is_given_opens_no_other_figure_and_leaves_the_style_alone(draw, ax):
    before = dict(mpl.rcParams)
    assert draw(ax) is ax
    assert ax.figure.axes == [ax]
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


@every_plot
def test_makes_its_own_axes_where_none_is_given(draw):
    assert draw(None).figure is plt.gcf()
    assert len(plt.get_fignums()) == 1


@every_plot
def test_everything_stays_within_a_picture_of_usual_or_small_size(draw):
    for width, height in ((6.4, 4.8), (4.0, 3.2)):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        figure.draw_without_rendering()
        box = figure.get_tightbbox()  # in inches
        assert 0 <= box.x0 <= box.x1 <= width
        assert 0 <= box.y0 <= box.y1 <= height
