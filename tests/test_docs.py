"""The site does as it says: its code runs, its API pages are complete, its pages are whole in a browser."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.markdown import ROOT, blocks
from tests.report.browser import look_into_all

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WITH_CODE = [page for page in PAGES if blocks(page, "python")]
# Their pages go through code of others, which warns of itself.
OF_OTHERS = ("covariance-of-large-data.md", "hugging-face.md", "into-your-service.md", "lightning.md")
DOORS = (
    "hesitant", "hesitant.data", "hesitant.detection", "hesitant.evaluation", "hesitant.keras", "hesitant.methods",
    "hesitant.nn", "hesitant.nn.models", "hesitant.plots", "hesitant.prediction", "hesitant.report",
    "hesitant.training", "hesitant.integrations.export", "hesitant.integrations.lightning",
    "hesitant.integrations.mlflow",
    "hesitant.integrations.scorer", "hesitant.integrations.transformers",
)  # fmt: skip
SHOWN_BY_EXAMPLE = (
    "hesitant.SNGP", "hesitant.MCDropout", "hesitant.DeepEnsemble", "hesitant.Deterministic", "hesitant.Prediction",
    "hesitant.DeferralPolicy", "hesitant.fit", "hesitant.export", "hesitant.data.split",
    "hesitant.nn.RandomFeatureGaussianProcess", "hesitant.nn.SpectralNormalizer",
)  # fmt: skip
# Engines stay on this machine and tell nobody that they run; a virtual machine that compiles less starts sooner.
ENGINES = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0",
    "SPARK_LOCAL_IP": "127.0.0.1", "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}  # fmt: skip
WIDTHS = (1280, 400)


def page_of(door: str) -> Path:
    return DOCS / "api" / f"{door.removeprefix('hesitant.')}.md"


def public(door: ModuleType) -> set[str]:
    own = {name for name, thing in vars(door).items() if getattr(thing, "__module__", None) == door.__name__}
    return set(getattr(door, "__all__", {name for name in own if not name.startswith("_")}))


@pytest.mark.parametrize("door", DOORS)
def test_the_page_of_a_door_documents_every_public_name_and_no_other(door: str) -> None:
    text = page_of(door).read_text()
    documented = re.findall(r"^\.\. auto(?:class|function|exception|data):: (\w+)", text, flags=re.MULTILINE)
    elsewhere = re.findall(r"\{py:obj\}`(hesitant[\w.]*)\.(\w+)`", text)
    module = importlib.import_module(door)
    assert sorted(documented + [name for _, name in elsewhere]) == sorted(public(module))
    for other, name in elsewhere:
        assert getattr(module, name) is getattr(importlib.import_module(other), name)


def test_every_door_has_a_page() -> None:
    assert {page.stem for page in (DOCS / "api").glob("*.md")} - {"index"} == {page_of(door).stem for door in DOORS}


def examples_of(door: str) -> list[doctest.DocTest]:
    module, finder = importlib.import_module(door), doctest.DocTestFinder()
    things: list[Any] = [getattr(module, name) for name in sorted(public(module))]
    documented = [thing for thing in things if inspect.isclass(thing) or inspect.isfunction(thing)]
    found = [test for thing in documented for test in finder.find(thing, f"{door}.{thing.__name__}")]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("door", DOORS)
def test_the_examples_in_docstrings_do_as_they_say(door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with torch.random.fork_rng():
        for example in examples_of(door):
            report: list[str] = []
            assert runner.run(example, out=report.append).failed == 0, "".join(report)


def test_the_main_names_are_shown_by_an_example() -> None:
    shown = {example.name for door in DOORS for example in examples_of(door)}
    assert set(SHOWN_BY_EXAMPLE) <= shown


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page.stem == "into-your-service":
        for name, value in ENGINES.items():
            monkeypatch.setenv(name, value)
    code = compile("\n".join(blocks(page, "python")), page.name, "exec")
    with torch.random.fork_rng(), warnings.catch_warnings():
        if page.name in OF_OTHERS:
            warnings.simplefilter("ignore")
        exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_every_command_and_script_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    extras = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    text = page.read_text()
    shell = [line.split("#")[0].split() for block in blocks(page, "sh") for line in block.splitlines()]
    for words in [words for words in shell if words]:
        assert words[0] in ("make", "pip"), f"{' '.join(words)!r} is no command that a reader has"
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"the Makefile has no target for {' '.join(words)!r}"
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert target in targets
    for named in re.findall(r"'\S*\[([a-z,]+)\]'|`\.\[([a-z,]+)\]`", text):
        assert set("".join(named).split(",")) <= extras, f"pyproject.toml has no extra for {named}"
    for script in re.findall(r"\bbenchmarks/\w+\.py", text):
        assert (ROOT / script).is_file(), script


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, but for the figures of the examples, which run in test_examples.py."""
    built = tmp_path_factory.mktemp("site")
    options = ["-E", "-W", "--keep-going", "-q", "-D", "plot_gallery=0", "-d", str(built / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, "-b", "html", str(DOCS), str(built / "html")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    built /= "html"
    return built


def copied(page: Path, copy: Path) -> Path:
    """A copy of a built page that finds what is beside the page, and says what may scroll by itself."""
    text = page.read_text("utf-8").replace(
        "<head>", f'<head><base href="{page.as_uri()}"><style>.toc-drawer {{display: none}}</style>', 1
    )
    text = text.replace('class="table-wrapper', 'class="scroll table-wrapper').replace("<pre>", '<pre class="scroll">')
    copy.write_text(text, encoding="utf-8")
    return copy


@pytest.mark.slow
def test_nothing_on_the_pages_is_broken(site: Path, tmp_path: Path) -> None:
    pages = [page for page in sorted(site.rglob("*.html")) if page.name != "search.html"]
    assert len(pages) > len(PAGES) + len(DOORS)
    copies = [copied(page, tmp_path / f"page{place}.html") for place, page in enumerate(pages)]
    for page, told in zip(pages, look_into_all(copies, tmp_path, widths=WIDTHS), strict=True):
        for width, found in zip(WIDTHS, told, strict=True):
            where = f"{page.relative_to(site)}, {width} pixels wide"
            assert found["width"] == found["scrollWidth"] == width, where
            for fault in ("blank", "unseen", "over", "cut", "dangling", "doubled", "faint"):
                assert found[fault] == [], where
            # The small picture of an example stands beside its name.
            assert [image for image in found["wordless"] if "_thumb.png" not in image] == [], where
            assert found["headings"][0] == 1, where
            assert found["headings"].count(1) == 1, where
            assert all(after <= before + 1 for before, after in pairwise(found["headings"])), where
            assert all(address.startswith("file:") for address in found["requested"]), where
            assert found["language"] == "en", where
