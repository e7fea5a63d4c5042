"""Inputs on the page: which ones are worth a look, with what the model said of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesitant.detection import uncertainty
from hesitant.evaluation import isolated
from hesitant.evaluation.comparison import Comparison, Inputs, Recommendation
from hesitant.prediction import Prediction
from hesitant.report.appearance import Appearance, appearance
from hesitant.report.verdict import percent

__all__ = ["Gallery", "Look", "ShownInput", "galleries"]


@dataclass(frozen=True)
class Look:
    """How inputs and classes are to be shown.

    Attributes:
        class_names: of the classes; numbers by default.
        feature_names: of the features, where inputs are rows of numbers.
        image_shape: what flat vectors are reshaped to, `(H, W)` or `(channels, H, W)`, to be shown as pictures.
        show: turns an input into what is to be shown: an image, a text, or a row of numbers.
        num_shown: how many inputs of a kind.
    """

    class_names: Sequence[str] | None = None
    feature_names: Sequence[str] | None = None
    image_shape: tuple[int, ...] | None = None
    show: Callable[[Any], Any] | None = None
    num_shown: int = 12

    def class_name(self, label: int) -> str:
        """What people call the class."""
        return str(label) if self.class_names is None else isolated(str(self.class_names[label]))


@dataclass(frozen=True)
class ShownInput:
    """One input on the page.

    Attributes:
        place: its row in the data.
        appearance: the input itself, as a picture, a text or a row.
        label: the name of the predicted class.
        confidence: the probability of that class, as per cent.
        target: the name of the true class, where there is one.
        wrong: whether the label is not the target.
        answered: whether the policy answers it; `None` without a policy.
    """

    place: int
    appearance: Appearance
    label: str
    confidence: str
    target: str | None
    wrong: bool
    answered: bool | None

    @property
    def said(self) -> str:
        """What the model said of it, as a sentence without its full stop."""
        truth = "" if self.target is None else f"; it is {self.target}"
        return f"says {self.label}, {self.confidence}{truth}"


@dataclass(frozen=True)
class Gallery:
    """Some inputs with something in common."""

    heading: str
    explanation: str
    inputs: tuple[ShownInput, ...]

    @property
    def kind(self) -> str:
        """What the inputs are shown as: `"picture"`, `"text"` or `"row"`."""
        kinds = {shown.appearance.kind for shown in self.inputs}
        return kinds.pop() if len(kinds) == 1 else "text"

    @property
    def headings(self) -> tuple[str, ...]:
        """The names of the features of rows."""
        return self.inputs[0].appearance.headings


def galleries(comparison: Comparison, recommendation: Recommendation, look: Look) -> list[Gallery]:
    """What the recommended method is least sure of, its confident errors, and out-of-domain inputs it is surest of.

    There are none where the inputs are not known.
    """
    name = recommendation.method
    prediction, policy = comparison.predictions[name], recommendation.outcomes[name].policy
    assert prediction.targets is not None
    found = []

    def add(heading: str, explanation: str, inputs: Inputs, of: Prediction, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        chosen = of[rows]
        accepted = None if policy is None else policy.accept(chosen).tolist()
        shown = [
            _shown(inputs, chosen, position, place, None if accepted is None else accepted[position], look)
            for position, place in enumerate(rows.tolist())
        ]
        found.append(Gallery(heading, explanation, tuple(shown)))

    if comparison.inputs is not None:
        doubt = uncertainty(prediction, comparison.score)
        order = doubt.argsort(stable=True)
        wrong = prediction.labels != prediction.targets
        add(
            f"What {isolated(name)} is least sure of",
            "Of all test inputs, those of the greatest uncertainty first. This is what people would be asked.",
            comparison.inputs,
            prediction,
            doubt.argsort(descending=True, stable=True)[: look.num_shown],
        )
        add(
            f"Where {isolated(name)} is wrong and surest of it",
            "Its confident errors first. Look for wrong targets in the data, and for what these inputs share.",
            comparison.inputs,
            prediction,
            order[wrong[order]][: look.num_shown],
        )
    for other, of_methods in comparison.ood.items():
        if other in comparison.ood_inputs:
            add(
                f"Inputs of {isolated(other)} that {isolated(name)} takes for its own",
                "None of its classes fits these. What it answers here gets past it.",
                comparison.ood_inputs[other],
                of_methods[name],
                uncertainty(of_methods[name], comparison.ood_score).argsort(stable=True)[: look.num_shown],
            )
    return found


def _shown(
    inputs: Inputs, chosen: Prediction, position: int, place: int, answered: bool | None, look: Look
) -> ShownInput:
    label = int(chosen.labels[position])
    target = None if chosen.targets is None else int(chosen.targets[position])
    given = inputs[place]
    return ShownInput(
        place=place,
        appearance=appearance(given if look.show is None else look.show(given), look.image_shape, look.feature_names),
        label=look.class_name(label),
        confidence=percent(chosen.confidence[position].item()),
        target=None if target is None else look.class_name(target),
        wrong=target is not None and target != label,
        answered=answered,
    )
