"""The plots of a report: each a picture in a data URI, with a text for those who do not see it."""

import base64
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hesitant.detection import uncertainty
from hesitant.evaluation import isolated
from hesitant.evaluation.comparison import Comparison, Recommendation, figure_text
from hesitant.plots import reliability_diagram, risk_coverage_curves, score_histogram
from hesitant.report.verdict import listed, percent

__all__ = ["Picture", "data_uri", "reliability_pictures", "risk_coverage_picture", "score_pictures"]


@dataclass(frozen=True)
class Picture:
    """A plot on the page.

    Attributes:
        source: a data URI.
        alt: what is seen, in figures.
        caption: stands below; what to look for.
    """

    source: str
    alt: str
    caption: str


def risk_coverage_picture(comparison: Comparison, recommendation: Recommendation) -> Picture:
    """The risk-coverage curves of all methods."""
    areas = [f"{isolated(name)} {_figure(comparison, name, 'aurc')}" for name in comparison.predictions]
    draw = partial(
        risk_coverage_curves, comparison.predictions, score=comparison.score, max_risk=recommendation.max_risk
    )
    return Picture(
        _drawn(draw, (7.2, 4.0)),
        f"Error rate among the answered inputs over the share that is answered. Area under the curve: {listed(areas)}; "
        "lower is better.",
        "The error rate if only the surest inputs are answered. A good method keeps it low far to the right.",
    )


def reliability_pictures(comparison: Comparison) -> list[Picture]:
    """The reliability diagram of each method."""
    pictures = []
    for name, prediction in comparison.predictions.items():
        assert prediction.targets is not None
        sure = prediction.confidence.double().mean().item()
        right = prediction.labels.eq(prediction.targets).double().mean().item()
        # Of the accuracy, if the confidences are right: an accuracy of 1 has no noise of its own.
        variance = (prediction.confidence.double() * (1 - prediction.confidence.double())).mean().item()
        noise = 1.96 * (variance / len(prediction)) ** 0.5
        if abs(sure - right) <= noise:
            leaning = "on the whole as sure as it should be"
        else:
            leaning = "too sure of itself" if sure > right else "not sure enough of itself"
        shown = isolated(name)
        pictures.append(
            Picture(
                _drawn(partial(reliability_diagram, prediction, title=name), (4.4, 4.4)),
                f"Reliability diagram of {shown}: mean confidence {percent(sure)}, accuracy {percent(right)}, expected "
                f"calibration error {_figure(comparison, name, 'ece')}.",
                f"{shown}: confidence {percent(sure)} on average, right in {percent(right)}: {leaning}.",
            )
        )
    return pictures


def score_pictures(comparison: Comparison, recommendation: Recommendation, other: str) -> list[Picture]:
    """How each method's out-of-domain score spreads on the data and on such a set, with the guard of its policy.

    Of the data, it is the half that the threshold was not chosen on.
    """
    spread = {
        name: (
            uncertainty(prediction[recommendation.check], comparison.ood_score),
            uncertainty(comparison.ood[other][name], comparison.ood_score),
        )
        for name, prediction in comparison.predictions.items()
    }
    limits = _shared_limits([scores for pair in spread.values() for scores in pair])
    label = {"confidence": "1 - confidence", "ood_score": "out-of-domain score"}.get(
        comparison.ood_score, comparison.ood_score.replace("_", " ")
    )
    pictures = []
    for name, outcome in recommendation.outcomes.items():
        method, ood = isolated(name), isolated(other)
        draw = partial(
            score_histogram,
            *spread[name],
            threshold=None
            if outcome.policy is None or math.isinf(outcome.policy.guard_threshold)
            else outcome.policy.guard_threshold,
            names=("data", other),
            title=name,
            label=label,
            log=None if limits is None else True,
            limits=limits,
        )
        if outcome.handed_over is None:
            seen = f"{method} can promise nothing, so there is no threshold"
        else:
            handed_over = f"{percent(outcome.handed_over[other])} of {ood}"
            seen = f"{method} hands over {handed_over} and {percent(1 - outcome.coverage)} of the data"
        seen += f"; AUROC {_figure(comparison, name, f'auroc.{other}')}."
        pictures.append(Picture(_drawn(draw, (4.4, 3.3)), f"Histogram of {label}, data against {ood}. {seen}", seen))
    return pictures


def data_uri(kind: str, content: bytes) -> str:
    """The content as a data URI of this media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _drawn(draw: Callable[..., Axes], size: tuple[float, float]) -> str:
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    draw(ax=figure.subplots())
    content = io.BytesIO()
    # Without a salt of its own and a date, the same comparison gives the same page.
    with matplotlib.rc_context({"svg.hashsalt": "hesitant", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return data_uri("image/svg+xml", content.getvalue())


def _shared_limits(groups: list[Tensor]) -> tuple[float, float] | None:
    """The ends of one logarithmic axis for all methods, where their scores span decades and none is negative."""
    scores = torch.cat(groups)
    positive = scores[(scores > 0) & scores.isfinite()]
    if bool((scores < 0).any()) or len(positive) < 2:
        return None
    low, high = (positive.kthvalue(max(1, round(share * len(positive)))).values.item() for share in (0.01, 1.0))
    return (low, high) if high > 1000 * low else None


def _figure(comparison: Comparison, name: str, key: str) -> str:
    column = next(column for column in comparison.columns if column.key == key)
    return figure_text(comparison.figures[name][key], column)
