import numpy as np
import pytest

from hesitant.plots import CLASS_COLORS, points, surface

EXTENT = (-1.0, 1.0, -2.0, 2.0)


def test_surface_puts_row_0_at_the_bottom_and_the_limits_at_the_ends_of_the_map(ax):
    image = surface([[0.0, 0.5], [1.0, 0.5]], ax, extent=EXTENT, limits=(-1.0, 2.0)).images[-1]
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == EXTENT
    assert image.get_clim() == (-1.0, 2.0)


def test_surface_with_a_label_has_a_colour_bar_as_tall_as_itself(ax):
    surface(np.eye(3), ax, extent=EXTENT, label="u")
    ax.figure.draw_without_rendering()
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "u"
    assert bar.get_window_extent().bounds[1::2] == pytest.approx(ax.get_window_extent().bounds[1::2])


def test_surface_of_something_that_is_no_matrix_says_what_to_do(ax):
    with pytest.raises(ValueError, match=r"values has shape \(9,\).*reshape"):
        surface(np.zeros(9), ax, extent=EXTENT)


@pytest.mark.parametrize("num_classes", [1, 2, len(CLASS_COLORS)])
def test_classes_and_out_of_domain_differ_in_shape_as_well_as_in_colour(ax, num_classes):
    points(np.zeros((14, 2)), np.arange(14) % num_classes, ax, ood=np.ones((2, 2)))
    shapes = {collection.get_paths()[0].vertices.tobytes() for collection in ax.collections}
    tints = {tuple(collection.get_facecolor()[0]) for collection in ax.collections}
    assert len(shapes) == len(tints) == len(ax.collections) == num_classes + 1


def test_no_point_is_left_out(ax):
    points(np.zeros((20, 2)), np.array([0, 0, 3, 5, 5] * 4), ax)
    assert [len(collection.get_offsets()) for collection in ax.collections] == [8, 4, 8]
    assert [collection.get_label() for collection in ax.collections] == ["class 0", "class 3", "class 5"]


@pytest.mark.parametrize("wrong", [-1, len(CLASS_COLORS)])
def test_a_class_without_a_colour_is_an_error_and_not_left_out(ax, wrong):
    with pytest.raises(ValueError, match=f"targets holds {wrong}"):
        points(np.zeros((2, 2)), np.array([0, wrong]), ax)


def test_max_points_bounds_what_hides_the_surface(ax):
    targets = np.arange(1000) % 2
    points(np.zeros((1000, 2)), targets, ax, max_points=100)
    assert all(100 <= len(collection.get_offsets()) < 200 for collection in ax.collections)


def test_points_keep_the_aspect_of_the_surface_that_they_are_drawn_on(ax):
    assert points(np.zeros((2, 2)), np.arange(2), ax).get_aspect() == 1.0
    ax.clear()
    surface(np.eye(3), ax, extent=EXTENT).set_aspect("auto")
    assert points(np.zeros((2, 2)), np.arange(2), ax).get_aspect() == "auto"
