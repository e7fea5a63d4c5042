"""report(): everything that was found out, on one page."""

from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hesitant.evaluation import isolated, without_overrides
from hesitant.evaluation.comparison import Comparison, Outcome, Recommendation, cell, recommend
from hesitant.files import write_text
from hesitant.report.figures import reliability_pictures, risk_coverage_picture, score_pictures
from hesitant.report.shown_inputs import Look, galleries
from hesitant.report.verdict import limit, percent, verdict

__all__ = ["rendered", "report"]

TITLE: Final = "Which model to trust, and how far"


def report(
    comparison: Comparison,
    path: str | Path,
    *,
    title: str = TITLE,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    show: Callable[[Any], Any] | None = None,
    max_risk: float = 0.01,
    delta: float = 0.05,
    num_shown: int = 12,
) -> Path:
    """Writes a comparison as one self-contained HTML page, and answers with its path.

    The verdict comes first: which method to use, what it answers by itself at which risk (`recommend` says how that is
    decided, on which half of the data); then the table and the plots, then the inputs that the method is least sure of
    and those on which it is confidently wrong. The page needs no network and no JavaScript, and prints.

    Args:
        comparison: as `compare` answers it.
        path: of the file; what is there is written over.
        title: stands above.
        class_names: `C` of them; by default classes are numbered from 0.
        feature_names: one for each feature, where inputs are rows of numbers.
        image_shape: where inputs are flat vectors that are pictures, `(H, W)` or `(channels, H, W)`.
        show: turns an input into what is to be shown, an image, a text or a row: `tokenizer.decode`, say.
        max_risk: the error rate among answered inputs that is to be promised.
        delta: the probability with which the promise may fail.
        num_shown: how many inputs of a kind are shown; 0 shows none.

    Raises:
        ImportError: Jinja2 or matplotlib is not installed.
        OSError: `path` cannot be written to.
        ValueError: names or shapes do not fit, or a number is out of range.
    """
    look = Look(class_names, feature_names, image_shape, show, num_shown)
    recommendation = recommend(comparison, max_risk=max_risk, delta=delta)
    return write_text(path, rendered(comparison, recommendation, look, title=title))


def rendered(comparison: Comparison, recommendation: Recommendation, look: Look, *, title: str = TITLE) -> str:
    """The page as HTML.

    Raises:
        ImportError: Jinja2 or matplotlib is not installed.
        ValueError: names or shapes do not fit.
    """
    num_classes = next(iter(comparison.predictions.values())).probs.shape[1]
    if look.class_names is not None and len(look.class_names) != num_classes:
        raise ValueError(f"class_names has {len(look.class_names)} names, expected {num_classes}, one for each class")
    if look.num_shown < 0:
        raise ValueError(f"num_shown is {look.num_shown}, expected at least 0")
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("a report needs Jinja2: pip install jinja2") from error
    environment = Environment(
        loader=PackageLoader("hesitant.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "limit": limit, "isolated": isolated}
    return environment.get_template("page.html.jinja").render(
        title=title,
        day=date.today().isoformat(),
        version=metadata.version("hesitant"),
        comparison=comparison,
        num_classes=num_classes,
        recommendation=recommendation,
        verdict=verdict(comparison, recommendation),
        cells=_cells(comparison),
        risk_coverage=risk_coverage_picture(comparison, recommendation),
        reliability=reliability_pictures(comparison),
        scores={other: score_pictures(comparison, recommendation, other) for other in comparison.ood},
        galleries=galleries(comparison, recommendation, look),
        risk_of=_risk,
    )


def _cells(comparison: Comparison) -> dict[str, list[tuple[str, bool]]]:
    """Of each column by its key, what stands in the table for each method, and whether it is marked."""
    return {
        column.key: [
            (cell(column, name, comparison.figures, comparison.estimates), name in comparison.best.get(column.key, ()))
            for name in comparison.predictions
        ]
        for column in comparison.columns
    }


def _shown(value: Any) -> Any:
    """What is put into the page: nothing in it turns the direction of what stands behind it."""
    if not isinstance(value, str):
        return value
    text = without_overrides(value)
    return type(value)(text) if hasattr(value, "__html__") else text


def _risk(outcome: Outcome) -> str:
    return "-" if outcome.risk is None else percent(outcome.risk)
