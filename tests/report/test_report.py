import re
from html import unescape
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from tests.report.comparisons import NASTY, NUM_OOD, compared, of_pictures, of_rows, of_texts

from hesitant.evaluation.comparison.table import cell
from hesitant.report import report


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def written(comparison, folder, **options):
    return report(comparison, folder / "report.html", **options).read_text(encoding="utf-8")


@pytest.fixture
def words_alone(monkeypatch):
    """Leaves the pictures empty, which take nine tenths of the time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write(b"<svg/>"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return written(of_rows(), tmp_path_factory.mktemp("rows"), max_risk=0.05)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return written(of_pictures(), tmp_path_factory.mktemp("pictures"), max_risk=0.05)


def test_the_verdict_comes_first_and_names_the_method(rows):
    text = Elements(rows).text
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", rows)
    assert headings[0].startswith("Use SNGP: it answers ")
    assert "With 95 % confidence at most 5 % of its answers are wrong" in text
    assert text.index("Use SNGP") < text.index("All figures") < text.index("The inputs themselves")


def test_nothing_is_fetched_and_nothing_runs(pictures):
    for tag, attributes in Elements(pictures).elements:
        assert tag not in ("script", "iframe", "object", "embed", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    style = re.search(r"<style>(.*?)</style>", pictures, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_names_and_texts_are_escaped(tmp_path):
    names = [f"{NASTY} {place}" for place in range(3)]
    page = written(of_texts(), tmp_path, title=NASTY, class_names=names)
    elements = Elements(page)
    assert NASTY not in page
    assert elements.text.count(NASTY) > 10
    assert "a method & <its> name" in elements.text
    assert "far & away" in elements.text


def test_every_picture_has_words_with_figures(pictures):
    alts = [attributes["alt"] for tag, attributes in Elements(pictures).elements if tag == "img"]
    assert len(alts) == 1 + 2 + 2 + 12 + 12 + 12
    assert all(re.search(r"\d", alt) for alt in alts)
    assert len(set(alts[:5])) == 5
    assert all(re.fullmatch(r"Input \d+: SNGP says \d, [\d.]+ %(; it is \d)?", alt) for alt in alts[5:])


@pytest.mark.usefixtures("words_alone")
def test_what_cannot_be_promised_is_said_with_what_could_be(tmp_path):
    text = Elements(written(compared(num_inputs=60), tmp_path)).text
    assert "No method can promise an error rate of 1 % or less." in text
    assert "cannot be promised at delta=0.025 from " in text
    assert "What to go on with" in text


@pytest.mark.usefixtures("words_alone")
def test_a_single_method_is_not_compared(tmp_path):
    text = Elements(written(compared(signals={"SNGP": 6.0}), tmp_path, max_risk=0.05)).text
    assert re.search(r"SNGP answers [\d.]+ % of inputs by itself and hands over", text)
    assert "Why not another" not in text
    assert "Use SNGP" not in text


@pytest.mark.usefixtures("words_alone")
def test_without_inputs_none_are_shown(tmp_path):
    assert "The inputs themselves" not in written(compared(), tmp_path)
    assert "The inputs themselves" not in written(of_rows(), tmp_path, num_shown=0)


def headings_of(page, section):
    body = re.search(rf'aria-labelledby="{section}-heading".*?</section>', page, re.DOTALL)[0]
    table = re.search(r"<table.*?</table>", body, re.DOTALL)[0]
    columns, rows = (re.findall(rf'<th scope="{scope}"[^>]*>(.*?)</th>', unescape(table)) for scope in ("col", "row"))
    return table, columns, rows


@pytest.mark.usefixtures("words_alone")
def test_what_the_method_says_of_a_row_stands_before_its_features_which_have_their_names(rows, tmp_path):
    said = ["input", "says", "confidence", "is", "policy"]
    columns = headings_of(rows, "inputs")[1]
    assert columns == [*said, *(f"x{place}" for place in range(8)), "4 more"]
    page = written(of_rows(2), tmp_path, max_risk=0.05, feature_names=("width", "height & more"))
    assert '<th scope="col">width</th><th scope="col">height &amp; more</th>' in page
    table, columns, _ = headings_of(page, "inputs")
    assert columns == [*said, "width", "height & more"]
    first = re.findall(r"<td[^>]*>(.*?)</td>", table.split("</tr>")[1])
    assert re.fullmatch(r"[012]; [\d.]+ %; [012]; (answers|hands over); -?[\d.]+; -?[\d.]+", "; ".join(first))


@pytest.mark.usefixtures("words_alone")
@pytest.mark.parametrize("num_methods", [6, 7])
def test_more_than_six_methods_are_the_rows_of_the_table(num_methods, tmp_path):
    comparison = compared(signals={f"method {place}": 2 + 0.5 * place for place in range(num_methods)})
    table, columns, rows = headings_of(written(comparison, tmp_path, max_risk=0.05), "figures")
    methods, figures = list(comparison.predictions), [column.heading for column in comparison.columns]
    assert (columns[1:], rows) == ((figures, methods) if num_methods > 6 else (methods, figures))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table)
    expected = [
        [cell(column, name, comparison.figures, comparison.estimates) + "*" * (name in best) for name in methods]
        for column, best in ((column, comparison.best.get(column.key, ())) for column in comparison.columns)
    ]
    assert cells == (np.transpose(expected) if num_methods > 6 else np.array(expected)).ravel().tolist()
    assert any(text.endswith("*") for text in cells)


@pytest.mark.usefixtures("words_alone")
def test_flat_vectors_become_pictures_where_a_shape_is_given_and_anything_by_show(tmp_path):
    rows = np.random.default_rng(0).random((1200, 48)).astype(np.float32)
    flat = compared(rows, rows[:NUM_OOD])
    assert written(flat, tmp_path, image_shape=(3, 4, 4)).count("data:image/png") == 36
    assert "the mean is " in written(flat, tmp_path, show=lambda row: f"the mean is {row.mean():.3f}")
    with pytest.raises(ValueError, match=r"image_shape is \(5, 5\).*shape \(48,\)"):
        written(flat, tmp_path, image_shape=(5, 5))
    with pytest.raises(ValueError, match="feature_names has 1 names, an input has 48"):
        written(flat, tmp_path, feature_names=("one",))


def test_the_same_comparison_gives_the_same_page_and_no_style_is_changed(rows, tmp_path):
    before = dict(matplotlib.rcParams)
    assert written(of_rows(), tmp_path, max_risk=0.05) == rows
    assert dict(matplotlib.rcParams) == before


@pytest.mark.usefixtures("words_alone")
def test_a_verdict_warns_where_nothing_is_noticed(tmp_path):
    sure = compared(signals={"one": 60.0, "other": 50.0})
    text = Elements(written(sure, tmp_path)).text
    assert "No method here is to be relied on to notice inputs like far & away" not in text  # of random logits: noticed
    blind = {"far & away": {name: sure.predictions[name][:NUM_OOD] for name in sure.predictions}}
    unnoticed = type(sure).from_predictions(sure.predictions, ood=blind)
    assert "No method here is to be relied on to notice inputs like far & away" in written(unnoticed, tmp_path).replace(
        "&amp;", "&"
    )


@pytest.mark.usefixtures("words_alone")
def test_mistakes_are_named(tmp_path):
    comparison = compared()
    with pytest.raises(ValueError, match="class_names has 2 names, expected 3"):
        written(comparison, tmp_path, class_names=["a", "b"])
    with pytest.raises(ValueError, match="num_shown is -1"):
        written(comparison, tmp_path, num_shown=-1)
    with pytest.raises(ValueError, match="max_risk is 2"):
        written(comparison, tmp_path, max_risk=2)
    with pytest.raises(FileNotFoundError):
        report(comparison, tmp_path / "nowhere" / "report.html")


TURNED = "abc\u202edef\u2066\u2069"
HEBREW = "\u05d0\u05d1\u05d2"


def with_strange_names(signals, **options):
    texts = [f"{TURNED} {place}" for place in range(1200)]
    return compared(texts, texts[:NUM_OOD], signals=signals, **options)


@pytest.mark.usefixtures("words_alone")
@pytest.mark.parametrize("max_risk", [0.05, 1e-9])
def test_nothing_on_the_page_turns_what_stands_beside_it(max_risk, tmp_path):
    comparison = with_strange_names({TURNED: 3.5, HEBREW: 2.5}, ood_name=f"{TURNED} {HEBREW}")
    page = written(comparison, tmp_path, title=TURNED, class_names=[TURNED, HEBREW, "c"], max_risk=max_risk)
    elements = Elements(page)
    values = [str(value) for _, attributes in elements.elements for value in attributes.values()]
    everything = "".join([elements.text, *values])
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067") & set(everything)
    assert "abcdef" in everything
    # A name from right to left within a sentence stands between the two controls that part it from the others.
    texts = re.findall(r">([^<]+)<", page)
    sentences = [text for text in texts if HEBREW in text and ("handed over" in text or "surest" in text)]
    alts = [attributes["alt"] for tag, attributes in elements.elements if tag == "img" and HEBREW in attributes["alt"]]
    assert alts
    assert sentences
    for text in (*sentences, *alts):
        assert text.count("\u2068") == text.count("\u2069") >= 1


@pytest.mark.usefixtures("words_alone")
def test_names_that_look_alike_without_their_controls_stay_two_methods(tmp_path):
    text = Elements(written(with_strange_names({"abcdef": 3.5, "abc\u202edef": 2.5}), tmp_path, max_risk=0.05)).text
    assert "abcdef did as well" in text or "abcdef answers" in text or "abcdef can promise nothing" in text


def test_a_page_with_money_in_its_names_is_drawn(tmp_path):
    comparison = compared(signals={"cost $5 and $6": 3.5, "$\\undefined$": 2.5}, ood_name="$x_{$")
    text = Elements(written(comparison, tmp_path, max_risk=0.05)).text
    assert "Use cost $5 and $6" in text


@pytest.mark.usefixtures("words_alone")
def test_an_error_or_an_interrupt_leaves_the_page_that_was_there(tmp_path, monkeypatch):
    page = written(compared(), tmp_path)

    def half(self, text, **options):
        self.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", half)
        with pytest.raises(KeyboardInterrupt):
            written(compared(), tmp_path, title="another")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
