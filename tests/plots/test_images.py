import numpy as np

from hesitant.plots import scan


def test_out_of_domain_scans_are_marked_without_colour(ax):
    scan(np.eye(8), ax, caption="3?", out_of_domain=True)
    assert ax.get_xlabel() != "3?"
    assert ax.spines["left"].get_linewidth() > 2
