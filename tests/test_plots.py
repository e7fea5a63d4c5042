import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hesitant.plots import PROBABILITY_MAP, points, scan, short, surface, uncertainty_histogram

EXTENT = (-1.0, 1.0, -2.0, 2.0)


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(autouse=True)
def headless_and_tidy():
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


DRAWINGS = {
    "surface": lambda ax: surface(np.eye(3), ax, extent=EXTENT),
    "points": lambda ax: points(np.zeros((4, 2)), np.array([0, 0, 1, 1]), ax, ood=np.ones((2, 2))),
    "histogram": lambda ax: uncertainty_histogram([0.1, 0.2], [0.9], ax),
    "scan": lambda ax: scan(np.eye(8), ax),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_draws_on_the_axes_it_is_given_and_answers_with_it(draw, ax):
    assert draw(ax) is ax


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_makes_its_own_axes_where_none_is_given(draw):
    assert draw(None).figure is plt.gcf()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_leaves_the_global_style_alone(draw, ax):
    before = dict(mpl.rcParams)
    draw(ax)
    assert dict(mpl.rcParams) == before


def test_surface_puts_row_0_at_the_bottom_and_the_limits_at_the_ends_of_the_map(ax):
    image = surface([[0.0, 0.5], [1.0, 0.5]], ax, extent=EXTENT, limits=(-1.0, 2.0)).images[-1]
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == EXTENT
    assert image.get_clim() == (-1.0, 2.0)


def test_surface_with_a_label_has_a_colour_bar(ax):
    surface(np.eye(3), ax, extent=EXTENT, label="u")
    assert [other.get_ylabel() for other in ax.figure.axes if other is not ax] == ["u"]


def test_surface_of_something_that_is_no_matrix_says_what_to_do(ax):
    with pytest.raises(ValueError, match=r"values has shape \(9,\).*reshape"):
        surface(np.zeros(9), ax, extent=EXTENT)


def test_classes_and_out_of_domain_differ_in_shape_as_well_as_in_colour(ax):
    points(np.zeros((4, 2)), np.array([0, 0, 1, 1]), ax, ood=np.ones((2, 2)))
    shapes = {collection.get_paths()[0].vertices.tobytes() for collection in ax.collections}
    tints = {tuple(collection.get_facecolor()[0]) for collection in ax.collections}
    assert len(shapes) == len(tints) == len(ax.collections) == 3


def test_max_points_bounds_what_hides_the_surface(ax):
    targets = np.arange(1000) % 2
    points(np.zeros((1000, 2)), targets, ax, max_points=100)
    assert all(100 <= len(collection.get_offsets()) < 200 for collection in ax.collections)


def test_histogram_heights_are_per_cent_of_each_group_and_nothing_is_lost(ax):
    generator = np.random.default_rng(0)
    uncertainty_histogram(generator.random(50), np.array([0.0, 1.0, 1.0 + 1e-7]), ax, num_bins=10)
    for patch in ax.patches:
        assert patch.get_data().values.sum() == pytest.approx(100.0)


def test_histogram_tells_its_groups_apart_without_colour(ax):
    uncertainty_histogram([0.1], [0.9], ax)
    assert len({patch.get_hatch() for patch in ax.patches}) == 2


def test_out_of_domain_scans_are_marked_without_colour(ax):
    scan(np.eye(8), ax, caption="3?", out_of_domain=True)
    assert ax.get_xlabel() != "3?"
    assert ax.spines["left"].get_linewidth() > 2


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
