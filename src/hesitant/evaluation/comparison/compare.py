"""Several methods on the same data: one table of what they are worth and what they cost."""

import math
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from hesitant.detection import FeatureDetector, Score, uncertainty
from hesitant.evaluation.comparison.columns import COSTS, Column, Cost, measures
from hesitant.evaluation.comparison.noise import indistinguishable
from hesitant.evaluation.comparison.table import as_markdown, as_text
from hesitant.evaluation.metrics import Estimate, bootstrap
from hesitant.inputs import RepeatableData, num_inputs
from hesitant.prediction import Prediction, UnavailableError

if TYPE_CHECKING:
    import pandas

    from hesitant.training import History

__all__ = ["Comparison", "Cost", "Inputs", "compare"]

_TIMED_REPEATS = 3


class Inputs(Protocol):
    """Inputs by their place: a tensor, an array, a list of texts, a Dataset without targets."""

    def __getitem__(self, row: int, /) -> Any:
        """The input at this place."""
        ...


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several methods on the same inputs: their predictions, and one table of figures.

    Made by `compare`, or by `Comparison.from_predictions` for models of any framework. As text, the table; `*` marks
    the methods that have the best figure of a row as far as the data can tell: a difference from the best within 1.96
    of its standard errors, by a paired bootstrap, is noise. Where that is all of them, none is marked; nor are costs.

    Attributes:
        predictions: of each method on the data, with targets, on the CPU.
        ood: of each out-of-domain set, the prediction of each method.
        score: what the data are ranked by for AURC, as in `uncertainty`: which answers are wrong.
        columns: which figures there are, in their order.
        figures: of each method, the figures by the `key` of their columns; `None` where a cost is not known.
        estimates: the same with standard errors and 95 % intervals, where they were asked for and inputs were drawn.
        best: of each column, the methods that are marked.
        inputs: the inputs themselves by their place, where they are known.
        ood_inputs: the same of each out-of-domain set.
        ood_score: what out-of-domain inputs are detected by, for AUROC, AUPR and FPR95, as in `uncertainty`.
    """

    predictions: Mapping[str, Prediction]
    ood: Mapping[str, Mapping[str, Prediction]]
    score: Score
    columns: tuple[Column, ...]
    figures: Mapping[str, Mapping[str, float | int | None]]
    estimates: Mapping[str, Mapping[str, Estimate]]
    best: Mapping[str, tuple[str, ...]]
    inputs: Inputs | None = None
    ood_inputs: Mapping[str, Inputs] = field(default_factory=dict)
    ood_score: Score = "ood_score"

    @classmethod
    def from_predictions(
        cls,
        predictions: Mapping[str, Prediction],
        *,
        ood: Mapping[str, Mapping[str, Prediction]] | None = None,
        score: Score = "confidence",
        ood_score: Score = "ood_score",
        costs: Mapping[str, Cost] | None = None,
        confidence_intervals: bool = False,
        inputs: Inputs | None = None,
        ood_inputs: Mapping[str, Inputs] | None = None,
        seed: int = 0,
    ) -> "Comparison":
        """The comparison of predictions that are there already.

        Args:
            predictions: of each method, by its name, for the same inputs in the same order, with targets.
            ood: of each out-of-domain set, by its name, the prediction of each method; targets are not looked at.
            score: what the data are ranked by for AURC, and by the policies of `recommend`. Every method must have it:
                `"confidence"`, `"ood_score"` and `"predictive_entropy"` are there for all.
            ood_score: what out-of-domain inputs are detected by, for AUROC, AUPR, FPR95 and by the guard of
                `recommend`; by default each method's own, `prediction.ood_score`.
            costs: of the methods for which they are known.
            confidence_intervals: whether figures come with standard errors and intervals, which takes seconds.
            inputs: what the predictions are of, to be shown in a report.
            ood_inputs: the same of the out-of-domain sets.
            seed: of the inputs that are drawn again for standard errors.

        Raises:
            TypeError: a prediction is none, or `predictions` or `ood` is no dict.
            UnavailableError: a method does not have `score` or `ood_score`; the error says which.
            ValueError: there is no method, targets are missing or differ between methods, an out-of-domain set lacks a
                method or has other classes, or there are not as many inputs as predictions.
        """
        ood = {} if ood is None else ood
        generator = torch.Generator().manual_seed(seed)
        _require_dict("predictions", predictions, "{'SNGP': prediction}")
        _require_dict("ood", ood, "{'far': {'SNGP': prediction}}")
        predictions = _alike(predictions, "data")
        names, num_classes = list(predictions), next(iter(predictions.values())).probs.shape[1]
        ood = {other: _alike(of_methods, other, names, num_classes) for other, of_methods in ood.items()}
        _require_inputs("inputs", inputs, predictions)
        for other, given in ({} if ood_inputs is None else ood_inputs).items():
            if other not in ood:
                raise ValueError(f"ood_inputs holds {other!r}, which is none of the out-of-domain sets: {list(ood)}")
            _require_inputs(f"ood_inputs[{other!r}]", given, ood[other])
        for name, prediction in predictions.items():
            _require_score("score", name, prediction, score)
            _require_score("ood_score", name, prediction, ood_score)
        measured = measures(ood, score, ood_score)
        figures: dict[str, dict[str, float | int | None]] = {name: {} for name in predictions}
        estimates: dict[str, dict[str, Estimate]] = {name: {} for name in predictions}
        best: dict[str, tuple[str, ...]] = {}
        for measure in measured:
            key = measure.column.key
            summaries = {}
            for name, prediction in predictions.items():
                arguments = measure.arguments(prediction, {other: ood[other][name] for other in ood})
                figures[name][key] = measure.metric(*arguments)
                summaries[name] = measure.summarise(*arguments)
                if confidence_intervals:
                    estimates[name][key] = bootstrap(measure.metric, *arguments, generator=generator)
            higher = measure.column.higher_is_better
            best[key] = indistinguishable(summaries, measure.value, higher_is_better=higher, generator=generator)
        known = {} if costs is None else costs
        _require_methods("costs", known, predictions)
        for name, of_method in figures.items():
            of_method |= {column.key: getattr(known.get(name, Cost()), column.key) for column in COSTS}
        paid = tuple(column for column in COSTS if any(row[column.key] is not None for row in figures.values()))
        return cls(
            predictions=predictions,
            ood=ood,
            score=score,
            columns=(*(measure.column for measure in measured), *paid),
            figures=figures,
            estimates=estimates,
            best=best,
            inputs=inputs,
            ood_inputs={} if ood_inputs is None else ood_inputs,
            ood_score=ood_score,
        )

    @property
    def num_inputs(self) -> int:
        """`B`, the number of inputs in the data."""
        return len(next(iter(self.predictions.values())))

    def __str__(self) -> str:
        """The table as aligned text, a column a method, at most 80 characters wide where a method's name allows it."""
        return as_text(self.columns, self.figures, self.estimates, self.best)

    def __repr__(self) -> str:
        """The names and numbers of what is compared."""
        sets = "".join(f", {name}: {len(next(iter(of.values())))}" for name, of in self.ood.items())
        return f"Comparison({', '.join(self.predictions)}; {self.num_inputs} inputs{sets})"

    def to_markdown(self) -> str:
        """The table in Markdown, a column a method; the marked figures are bold."""
        return as_markdown(self.columns, self.figures, self.estimates, self.best)

    def to_pandas(self) -> "pandas.DataFrame":
        """A `pandas.DataFrame`: a row a method, a column a figure, by its key.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas, or use to_dict()") from error
        keys = [column.key for column in self.columns]
        rows = [[of_method[key] for key in keys] for of_method in self.figures.values()]
        return pandas.DataFrame(rows, index=list(self.figures), columns=keys)

    def to_dict(self) -> dict[str, Any]:
        """All figures as numbers, strings, lists and dicts, for JSON, which has no infinity: that is `"inf"`."""
        methods: dict[str, Any] = {}
        for name, of_method in self.figures.items():
            methods[name] = {
                column.key: {part: for_json(number) for part, number in vars(self.estimates[name][column.key]).items()}
                if column.key in self.estimates[name]
                else for_json(of_method[column.key])
                for column in self.columns
            }
        return {
            "score": self.score,
            "ood_score": self.ood_score,
            "num_inputs": self.num_inputs,
            "num_ood_inputs": {name: len(next(iter(of.values()))) for name, of in self.ood.items()},
            "methods": methods,
            "best": {key: list(names) for key, names in self.best.items()},
        }


def compare(
    methods: Mapping[str, Any],
    data: Any,
    *,
    ood: Mapping[str, Any] | None = None,
    score: Score = "confidence",
    ood_score: Score = "ood_score",
    histories: "Mapping[str, History] | None" = None,
    predict_options: Mapping[str, Mapping[str, Any]] | None = None,
    confidence_intervals: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    announce: Callable[[str], None] | None = None,
) -> Comparison:
    """Lets every method predict the same inputs, and answers with one table of what they are worth and what they cost.

    `print(compare({"SNGP": model, "Deep ensemble": ensemble}, test_data, ood={"Fashion-MNIST": other}))`. For
    predictions that are there already, of any framework, see `Comparison.from_predictions`.

    All methods read the inputs in one order. A DataLoader that shuffles is read in the order of its Dataset; one with a
    sampler of its own, or another iterable of batches, is read once and its batches are kept in memory.

    Args:
        methods: by the name to show, anything with a `predict` that answers a `Prediction`: `hesitant.SNGP`,
            `hesitant.DeepEnsemble`, `hesitant.Deterministic(model)`, a `hesitant.detection.FeatureDetector` ...
        data: held-out inputs with their targets: `(inputs, targets)`, a dict of tensors with `labels`, a Dataset, a
            DataLoader, a list of examples, as for `fit`.
        ood: out-of-domain data, by the name to show: as `data`, its targets ignored, or a tensor.
        score: what the data are ranked by for AURC, as in `uncertainty`: by the confidence, for AURC is about errors.
        ood_score: what out-of-domain inputs are detected by, for AUROC, AUPR and FPR95, as in `uncertainty`; by default
            each method's own, `prediction.ood_score`.
        histories: what `fit` answered, for the training time of the methods that have one.
        predict_options: of each method that needs them, options of its `predict`: `{"SNGP": {"posterior": ...}}`.
        confidence_intervals: whether figures come with standard errors and intervals, which takes seconds.
        batch_size: inputs in a batch; a DataLoader keeps its own, and `None` chooses by their size.
        seed: of the inputs that are drawn again for standard errors; what a method draws has the default of its own.
        announce: is told the name of each method before it predicts.

    Raises:
        TypeError: a method has no `predict`, or it answers no Prediction; the data are of an unknown type; `methods` or
            `ood` is no dict.
        UnavailableError: a method does not have `score` or `ood_score`.
        ValueError: there is no method, the data are empty or have no targets, or a name belongs to no method.
    """
    options = {} if predict_options is None else predict_options
    trained = {} if histories is None else histories
    _require_dict("methods", methods, "{'SNGP': model}")
    if ood is not None:
        _require_dict("ood", ood, "{'far': inputs}")
    _require_methods("predict_options", options, methods)
    _require_methods("histories", trained, methods)
    for name, method in methods.items():
        if not callable(getattr(method, "predict", None)):
            raise TypeError(
                f"methods[{name!r}] is a {type(method).__name__} without predict: wrap a plain model in "
                "hesitant.Deterministic(model); for predictions use Comparison.from_predictions"
            )
    inputs = RepeatableData(data, batch_size=batch_size, targets=True)
    others = {name: RepeatableData(given, batch_size=batch_size, targets=False) for name, given in (ood or {}).items()}
    predictions: dict[str, Prediction] = {}
    of_others: dict[str, dict[str, Prediction]] = {name: {} for name in others}
    costs: dict[str, Cost] = {}
    for name, method in methods.items():
        if announce is not None:
            announce(name)

        def predict(given: Any, name: str = name, method: Any = method) -> Prediction:
            answer = method.predict(given, **options.get(name, {}))
            if not isinstance(answer, Prediction):
                raise TypeError(
                    f"methods[{name!r}].predict answered a {type(answer).__name__}, expected a Prediction: wrap the "
                    "model in hesitant.Deterministic(model), or use Comparison.from_predictions"
                )
            return answer.to("cpu")

        predictions[name] = predict(inputs)
        for other, given in others.items():
            of_others[other][name] = predict(given)
        costs[name] = Cost(
            milliseconds=_milliseconds(predict, inputs),
            parameters=_num_parameters(method),
            training_seconds=trained[name].seconds if name in trained else None,
        )
    return Comparison.from_predictions(
        predictions,
        ood=of_others,
        score=score,
        ood_score=ood_score,
        costs=costs,
        confidence_intervals=confidence_intervals,
        inputs=inputs,
        ood_inputs=others,
        seed=seed,
    )


def _num_parameters(method: Any) -> int | None:
    model = method.method if isinstance(method, FeatureDetector) else method
    return sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else None


def _milliseconds(predict: Callable[[Any], Prediction], inputs: RepeatableData) -> float:
    """An input's share of a batch, which is read beforehand; the median of three. The method has predicted before."""
    batch = next(iter(inputs))
    seconds = []
    for _ in range(_TIMED_REPEATS):
        started = time.perf_counter()
        predict([batch])
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds) / num_inputs(batch)


def _alike(
    predictions: Mapping[str, Prediction],
    of: str,
    methods: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> dict[str, Prediction]:
    """The predictions on the CPU, of as many inputs and classes each, and, of data, with the same targets.

    `methods` and `num_classes` are those of the data, where the predictions are of an out-of-domain set.
    """
    if methods is not None:
        _require_dict(f"ood[{of!r}]", predictions, "{'SNGP': prediction}")
    if methods is not None and set(predictions) != set(methods):
        raise ValueError(
            f"ood[{of!r}] has the methods {list(predictions)}, expected those of the data: {list(methods)}"
        )
    if not predictions:
        raise ValueError("predictions is empty, expected at least one method: pass {'SNGP': prediction}")
    names = list(predictions) if methods is None else methods
    first = predictions[names[0]]
    for name in names:
        prediction = predictions[name]
        where = f"predictions[{name!r}]" if methods is None else f"ood[{of!r}][{name!r}]"
        if not isinstance(prediction, Prediction):
            raise TypeError(f"{where} is a {type(prediction).__name__}, expected a Prediction: Prediction(probs, ...)")
        if len(prediction) == 0:
            raise ValueError(f"{where} has 0 inputs, expected at least 1: look at the data it comes from")
        if num_classes is not None and prediction.probs.shape[1] != num_classes:
            raise ValueError(
                f"{where} has {prediction.probs.shape[1]} classes, the data {num_classes}: predict both with the same "
                "model"
            )
        if prediction.probs.shape != first.probs.shape:
            raise ValueError(
                f"{where} has shape {tuple(prediction.probs.shape)}, that of {names[0]!r} {tuple(first.probs.shape)}: "
                "let all methods predict the same inputs and classes"
            )
        if methods is not None:
            continue
        if prediction.targets is None or first.targets is None:
            raise ValueError(f"{where} has no targets: pass data with targets, or prediction.with_targets(targets)")
        differ = (prediction.targets.cpu() != first.targets.cpu()).nonzero()
        if len(differ) > 0:
            raise ValueError(
                f"{where}.targets[{int(differ[0])}] differs from that of {names[0]!r}: let all methods predict the "
                "same inputs in the same order"
            )
    return {name: predictions[name].to("cpu") for name in names}


def _require_dict(argument: str, given: Any, example: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} is a {type(given).__name__}, expected a dict by name: pass {example}")


def _require_inputs(argument: str, inputs: Any, predictions: Mapping[str, Prediction]) -> None:
    """As many inputs as predictions, where the inputs know their number."""
    expected = len(next(iter(predictions.values())))
    if isinstance(inputs, Sized) and len(inputs) != expected:
        raise ValueError(
            f"{argument} has {len(inputs)} inputs, the predictions are of {expected}: pass what was predicted"
        )


def _require_score(argument: str, name: str, prediction: Prediction, score: Score) -> None:
    try:
        uncertainty(prediction[:1], score)
    except UnavailableError as error:
        raise UnavailableError(
            f"{argument}={score!r} is not there for {name!r}: {error} All methods have 'confidence', 'ood_score' and "
            "'predictive_entropy'"
        ) from error


def for_json(number: float | int | None) -> float | int | str | None:
    """The number as JSON can hold it: infinity as `"inf"`."""
    return number if number is None or math.isfinite(number) else str(number)


def _require_methods(argument: str, given: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
    unknown = [name for name in given if name not in methods]
    if unknown:
        raise ValueError(f"{argument} holds {unknown[0]!r}, which is none of the methods: {list(methods)}")
