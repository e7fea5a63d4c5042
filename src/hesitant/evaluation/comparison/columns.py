"""What a comparison says of each method: the figures, how they are computed and how they are written."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hesitant.detection import Score, uncertainty
from hesitant.evaluation.metrics import (
    accuracy,
    area,
    aupr,
    aupr_of_ranks,
    aurc,
    auroc,
    auroc_of_ranks,
    by_rank,
    confidences_and_hits,
    ece,
    error_in_equal_widths,
    fpr95,
    fpr95_of_ranks,
    hits,
    log_losses,
    mean,
    nll,
    ranked_errors,
    ranks_of,
)
from hesitant.evaluation.text import decimals
from hesitant.prediction import Prediction

__all__ = ["COSTS", "Column", "Cost", "Measure", "figure_text", "measures"]


@dataclass(frozen=True)
class Cost:
    """What a method costs; `None` where it is not known.

    Attributes:
        milliseconds: of a warm prediction, an input.
        parameters: numbers that training sets or that the model was given, all members together; no buffers.
        training_seconds: until the method could predict.
    """

    milliseconds: float | None = None
    parameters: int | None = None
    training_seconds: float | None = None


@dataclass(frozen=True)
class Column:
    """One of the figures by which methods are compared.

    Attributes:
        key: its name in `Comparison.figures`, in JSON and in pandas.
        heading: what people call it.
        digits: how many decimals are written.
        higher_is_better: or lower.
        meaning: a sentence that says what it is.
    """

    key: str
    heading: str
    digits: int
    higher_is_better: bool
    meaning: str


@dataclass(frozen=True)
class Measure:
    """A column that is measured on data, so that other data would have given another figure.

    Attributes:
        column: which.
        metric: answers the figure.
        arguments: what `metric` is given of a method's prediction on the data and on each out-of-domain set.
        summarise: of these arguments, all that the figure looks at: tensors whose last axis is the inputs.
        value: the figure of a summary, or of one whose inputs were drawn again.
    """

    column: Column
    metric: Callable[..., float]
    arguments: Callable[[Prediction, Mapping[str, Prediction]], tuple[Any, ...]]
    summarise: Callable[..., tuple[Tensor, ...]]
    value: Callable[..., float]


COSTS = (
    Column("milliseconds", "ms an input", 3, False, "Time of a warm prediction, an input."),
    Column("parameters", "parameters", 0, False, "Numbers in the model, all members together."),
    Column("training_seconds", "training, s", 1, False, "Time of training."),
)


def measures(ood: Iterable[str], score: Score, ood_score: Score) -> tuple[Measure, ...]:
    """The measures of a comparison with these out-of-domain sets, in the order in which they are shown."""
    ranked_by = score.replace("_", " ")
    return (
        Measure(
            Column("accuracy", "accuracy", 4, True, "Share of inputs whose label is right."),
            accuracy,
            _on_data,
            lambda prediction: (hits(prediction, None),),
            mean,
        ),
        Measure(
            Column("nll", "NLL", 4, False, "Negative log-likelihood in nats: punishes confident errors most."),
            nll,
            _on_data,
            lambda prediction: (log_losses(prediction, None),),
            mean,
        ),
        Measure(
            Column("ece", "ECE", 4, False, "Expected calibration error, 15 bins: how far confidence is from accuracy."),
            ece,
            _on_data,
            lambda prediction: (confidences_and_hits(prediction, None),),
            error_in_equal_widths,
        ),
        Measure(
            Column("aurc", "AURC", 4, False, f"Mean error rate over all coverages, inputs ranked by {ranked_by}."),
            partial(aurc, score=score),
            _on_data,
            lambda prediction: (torch.stack(ranked_errors(prediction, None, score)[1:]),),
            lambda ranked: area(*by_rank(ranked)),
        ),
        *(measure for name in ood for measure in _of_detection(name, ood_score)),
    )


def _of_detection(name: str, score: Score) -> tuple[Measure, ...]:
    """The measures of how well the inputs of an out-of-domain set are told from the data."""
    by = "its own out-of-domain score" if score == "ood_score" else score.replace("_", " ")
    arguments = partial(_scores, name=name, score=score)
    ranked = f"How often an input of {name} is ranked above one of the data, by {by}."
    found = f"Mean precision over all recalls in finding the inputs of {name} among the data, by {by}."
    mistaken = f"Share of the data that is taken for {name} where 95 % of {name} are found, by {by}."
    return (
        Measure(Column(f"auroc.{name}", f"AUROC, {name}", 4, True, ranked), auroc, arguments, ranks_of, auroc_of_ranks),
        Measure(Column(f"aupr.{name}", f"AUPR, {name}", 4, True, found), aupr, arguments, ranks_of, aupr_of_ranks),
        Measure(
            Column(f"fpr95.{name}", f"FPR95, {name}", 4, False, mistaken), fpr95, arguments, ranks_of, fpr95_of_ranks
        ),
    )


def _on_data(prediction: Prediction, _ood: Mapping[str, Prediction]) -> tuple[Prediction]:
    return (prediction,)


def _scores(prediction: Prediction, ood: Mapping[str, Prediction], *, name: str, score: Score) -> tuple[Tensor, Tensor]:
    return uncertainty(prediction, score), uncertainty(ood[name], score)


def figure_text(value: float | int | None, column: Column) -> str:
    """A figure as tables print it: `.9781`, `1.25`, `12,345`; what is not 0 never reads as 0; a dash where unknown."""
    if value is None:
        return "-"
    if column.digits == 0:
        return f"{value:,.0f}"
    return f"{value:.0e}" if value != 0 and round(value, column.digits) == 0 else decimals(value, column.digits)
