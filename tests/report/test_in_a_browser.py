import re
from itertools import pairwise

import pytest
from tests.report.browser import console, look_into, printed
from tests.report.comparisons import NASTY, NUM_CLASSES, NUM_INPUTS, compared, of_pictures, of_rows, of_texts

from hesitant.report import report

PAGES = {"pictures": of_pictures, "rows": of_rows, "texts": of_texts}
LEAST_IMAGES = {"pictures": 5 + 24, "rows": 5, "texts": 5}
WIDTHS = (1280, 400)


def written(kind, folder):
    names = [f"{NASTY} {place}" for place in range(NUM_CLASSES)]
    return report(PAGES[kind](), folder / "report.html", title=NASTY, class_names=names, max_risk=0.05)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written("pictures", tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("kind", PAGES)
def test_nothing_on_the_page_is_broken(kind, page, tmp_path):
    whole = page if kind == "pictures" else written(kind, tmp_path)
    for width, found in zip(WIDTHS, look_into(whole, tmp_path, widths=WIDTHS), strict=True):
        assert found["width"] == width
        assert found["scrollWidth"] == width
        assert found["over"] == found["cut"] == []
        assert found["images"] >= LEAST_IMAGES[kind]
        assert found["blank"] == found["unseen"] == found["wordless"] == []
        assert found["headings"][0] == 1
        assert found["headings"].count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(found["headings"]))
        assert found["unlabelled"] == found["dangling"] == found["doubled"] == []
        assert found["requested"] == []
        assert found["faint"] == []
        assert found["language"] == "en"


def test_long_texts_and_names_keep_to_their_place(tmp_path):
    words = "the method of this group as it was trained last"
    signals = {f"{words} {place}": 3.5 for place in range(2)} | {words.replace(" ", "_") * 2: 3.0}
    unbroken = ["longwordwithoutanyspace" * 30] * NUM_INPUTS
    page = report(compared(unbroken, signals=signals), tmp_path / "report.html", max_risk=0.05)
    for found in look_into(page, tmp_path, widths=WIDTHS):
        assert found["scrollWidth"] == found["width"]
        assert found["over"] == found["cut"] == []
        assert found["widestName"] <= min(20 * 16, 0.36 * found["width"])
        if found["width"] == max(WIDTHS):
            assert found["highestHead"] < 150  # pixels: a few lines, not one for each word


def test_in_the_dark_all_text_can_be_read(page, tmp_path):
    (found,) = look_into(page, tmp_path, widths=(1280,), dark=True)
    assert found["background"] != "rgb(255, 255, 255)"
    assert found["faint"] == []


def test_the_console_stays_empty(page):
    assert console(page) == []


def test_it_prints(page, tmp_path):
    pdf = printed(page, tmp_path)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 2


def test_the_probe_finds_what_is_broken(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!DOCTYPE html><html><head><style>p {color: #bbb; background: #fff}</style></head><body><h1>a</h1><h3>b</h3>"
        '<img src="data:image/png;base64,AAAA"><p id="x">faint</p><p id="x" aria-labelledby="nobody">wide</p>'
        '<div style="width: 3000px">wide</div><div style="width: 50px; overflow: hidden">longwordthatiscut</div>'
        '<table><tr><td>1</td></tr></table><img src="https://example.invalid/a.png" alt="a">'
        "<script>nothingOfThatName()</script></body></html>",
        encoding="utf-8",
    )
    (found,) = look_into(broken, tmp_path, widths=(400,))
    assert found["scrollWidth"] > found["width"]
    for key in ("over", "cut", "blank", "wordless", "unlabelled", "dangling", "doubled", "faint", "requested"):
        assert found[key], key
    assert found["headings"] == [1, 3]
    assert any("nothingOfThatName" in line for line in console(broken))
