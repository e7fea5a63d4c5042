import io

import numpy as np
import pytest

from hesitant.demos.digits_figure import MethodUncertainties, Scans, digits_figure
from hesitant.demos.two_moons_figure import MethodSurfaces, two_moons_figure

EXTENT = (-3.5, 3.5, -2.5, 2.5)


def surfaces(name="SNGP", *, distance=True):
    half = np.full((5, 5), 0.5)
    return MethodSurfaces(
        name=name,
        probability=half,
        uncertainty=2 * half,
        distance=half if distance else None,
        distance_name="logit variance" if distance else "it has none",
        distance_figures="out-of-domain .84" if distance else "",
        u_held_out=0.02,
        u_corners=0.99,
        u_ood=0.987,
        nll=0.0137,
    )


def moons(methods):
    generator = np.random.default_rng(0)
    return two_moons_figure(
        generator.normal(size=(40, 2)), np.arange(40) % 2, generator.normal(size=(9, 2)), methods, extent=EXTENT
    )


def scans():
    uncertainty = np.linspace(0.0, 1.0, 80)
    return Scans(
        method="SNGP",
        images=np.zeros((80, 8, 8)),
        labels=np.zeros(80, dtype=int),
        confidence=1 - uncertainty,
        uncertainty=uncertainty,
        is_ood=np.arange(80) % 2 == 0,
        targets=np.where(np.arange(80) % 2 == 0, -1, 0),
    )


def uncertainties(name):
    return MethodUncertainties(
        name=name, in_domain=np.array([0.1, 0.2]), ood=np.array([0.9]), auroc=0.991, accuracy=0.97
    )


def words(figure):
    texts = [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(texts)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_two_moons_has_every_method_its_surfaces_and_key_figures(count):
    methods = [surfaces(f"method {index}", distance=index != 0) for index in range(count)]
    figure = moons(methods)
    images = [image for ax in figure.axes for image in ax.images]
    assert len(images) == 3 * count - 1
    assert all(method.name in words(figure) for method in methods)
    assert "u out-of-domain .99, on data .02" in words(figure)
    assert "held-out NLL .014" in words(figure)


def test_two_moons_with_no_distance_at_all_has_no_colour_bar_for_it():
    assert "How far from the data" not in words(moons([surfaces(distance=False)]))
    assert "How far from the data" in words(moons([surfaces(distance=False), surfaces()]))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_panel_lies_upon_another_or_outside(count):
    for figure in (moons([surfaces()] * count), digits_figure(scans(), [uncertainties("SNGP")] * count)):
        boxes = [ax.get_position() for ax in figure.axes]
        for index, box in enumerate(boxes):
            assert min(box.x0, box.y0) > 0
            assert max(box.x1, box.y1) < 1
            for other in boxes[index + 1 :]:
                assert box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0


@pytest.mark.parametrize("figure", [moons([surfaces()]), digits_figure(scans(), [uncertainties("SNGP")])])
def test_every_word_stays_within_the_picture(figure):
    # pyplot would have made a window of it; these belong to none, and can be written all the same.
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    frame = figure.bbox
    for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")):
        if text.get_visible() and text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= frame.x0 - 1, text.get_text()
            assert box.x1 <= frame.x1 + 1, text.get_text()
            assert box.y0 >= frame.y0 - 1, text.get_text()
            assert box.y1 <= frame.y1 + 1, text.get_text()


def test_least_sure_come_first_and_can_be_of_the_domain_alone():
    assert scans().least_sure(3).tolist() == [79, 78, 77]
    assert scans().least_sure(3, in_domain_only=True).tolist() == [79, 77, 75]


def test_digits_marks_the_classes_never_seen():
    marked = [ax for ax in digits_figure(scans(), [uncertainties("SNGP")]).axes if ax.get_xlabel().startswith("✕")]
    assert len(marked) == 18


@pytest.mark.parametrize("draw", [lambda: moons([]), lambda: digits_figure(scans(), [])])
def test_a_picture_of_no_method_is_an_error(draw):
    with pytest.raises(ValueError, match="methods is empty"):
        draw()
