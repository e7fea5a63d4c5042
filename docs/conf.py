"""How Sphinx builds the site: `make docs`. Nothing is fetched, neither by the build nor by the built pages."""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")  # of the pages that import hesitant.keras

import hesitant

HERE = Path(__file__).parent

project = "hesitant"
author = copyright = "the authors of hesitant"
version = release = hesitant.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "hesitant"
html_copy_source = False
html_show_sourcelink = False
html_use_index = html_domain_indices = False  # the search and the pages of the API do

myst_heading_anchors = 3  # [text](page.md#a-heading) is checked as any other link is

# The docstrings write code between single backticks as well as between double ones.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

# What other projects document cannot be linked: their inventories would have to be fetched.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|numpy|pandas|matplotlib|collections|os|pathlib|typing)\..*|Tensor|ArrayLike"),
    # What public functions answer with or take, and no door has.
    (
        r"py:class",
        r"hesitant\..*\.(ClassFactor|Column|CovarianceFit|Inputs|Loaded|ModelWrapper|Outcome|OwnerOfSums"
        r"|OwnMethod|PosteriorFactor|PredictionFile|Predictor|Tempered)",
    ),
]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "filename_pattern": r"(?<!serve)\.py",  # every example runs, whatever its name, but for the server, which goes on
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "show_memory": False,
    "download_all_examples": False,
    "min_reported_time": 1e6,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
}


def readable_signature(app, what, name, obj, options, signature, return_annotation):
    """Writes the factory of a dataclass's field as what it makes: Sphinx cannot read the signature otherwise."""
    return signature and signature.replace("<factory>", "{}"), return_annotation


def forget_examples(app):
    """Removes the pages of examples that are there no longer: they would stand in no table of contents."""
    for page in (HERE / "examples").glob("*.rst"):
        if page.stem != "index" and not (HERE.parent / "examples" / f"{page.stem}.py").exists():
            page.unlink()


def setup(app):
    """Is called by Sphinx."""
    app.connect("builder-inited", forget_examples, priority=1)  # before the gallery is made
    app.connect("autodoc-process-signature", readable_signature)
