"""The methods of a demo as a `Comparison`, for its report."""

from collections.abc import Mapping

from torch import Tensor

from hesitant.demos.result import Answers, Figures
from hesitant.evaluation.comparison import Comparison, Cost

__all__ = ["demo_comparison"]


def demo_comparison(
    figures: Mapping[str, Figures], answers: Mapping[str, Answers], *, held_out: Tensor, ood: Tensor, ood_name: str
) -> Comparison:
    """Answers with the comparison of a demo's methods, of what they have said already.

    Args:
        figures: Of each method, by its key.
        answers: What each method said.
        held_out: `(N, ...)` the in-domain inputs.
        ood: `(K, ...)` the out-of-domain inputs.
        ood_name: What these are.
    """
    return Comparison.from_predictions(
        {of.name: answers[key].held_out for key, of in figures.items()},
        ood={ood_name: {of.name: answers[key].ood for key, of in figures.items()}},
        costs={
            of.name: Cost(
                milliseconds=of.predict_milliseconds / len(answers[key].timed),
                parameters=of.parameters,
                training_seconds=of.training_seconds,
            )
            for key, of in figures.items()
        },
        inputs=held_out,
        ood_inputs={ood_name: ood},
    )
