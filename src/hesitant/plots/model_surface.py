"""How unsure a model is over a plane of two of its features, the others held."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import torch
from matplotlib import colors
from matplotlib.axes import Axes
from torch import Tensor

from hesitant.detection import Score, uncertainty
from hesitant.plots.style import UNCERTAINTY_MAP, given_or_new
from hesitant.plots.surfaces import surface
from hesitant.prediction import Prediction, as_tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MOST_NUMBERS: Final = 2**25  # of the inputs that are made at a time: 128 MiB
LABELS: Final[dict[Score, str]] = {
    "confidence": "1 - confidence",
    "ood_score": "out-of-domain score",
    "predictive_entropy": "predictive entropy (nats)",
    "mutual_information": "mutual information (nats)",
    "logit_variance": "variance of the logits",
    "dempster_shafer": "Dempster-Shafer uncertainty",
    "energy": "energy",
}


class Predictor(Protocol):
    """What every method can do once it is trained."""

    def predict(self, inputs: Tensor) -> Prediction:
        """Answers with the predictive distribution of the inputs `(B, ...)`."""
        ...


def uncertainty_surface(
    model: Predictor | Callable[[Tensor], Prediction],
    ax: Axes | None = None,
    *,
    extent: tuple[float, float, float, float],
    features: tuple[int, int] = (0, 1),
    at: "Tensor | ArrayLike | None" = None,
    score: Score = "confidence",
    resolution: int = 100,
    cmap: str | colors.Colormap = UNCERTAINTY_MAP,
    limits: tuple[float, float] | None = None,
    title: str = "",
    label: str | None = None,
) -> Axes:
    """Draws how unsure a model is over the plane of two features, the other features held at one value each.

    The sides are scaled apart, since two features seldom have one unit; where they do, `ax.set_aspect("equal")`.

    Args:
        model: A method, whose `predict` is asked, or a function that answers `(N, D)` float32 inputs with a Prediction,
            such as `lambda x: dropout.predict(x, seed=0)`.
        ax: Where to draw; a new one by default.
        extent: Left, right, bottom and top edge: the first two of the first feature, the others of the second.
        features: Which two of the D features, horizontal and vertical.
        at: `(D,)` what all features are held at but those two, the medians of the data say; needed if D is not 2.
        score: What to draw, as in `hesitant.evaluation.uncertainty`.
        resolution: Points along each side, one in the middle of each cell.
        cmap: A colour map or its name.
        limits: The values at the two ends of the colour map; by default all that the score can be, so that pictures of
            several models compare, or for a variance or an energy, which have no end, all that is seen.
        title: Stands above.
        label: Of the colour bar; by default the name of the score. `""` leaves the bar out.

    Returns:
        The axes; the image is its `images[-1]`.

    Raises:
        TypeError: If `model` does not answer with a Prediction.
        ValueError: If `extent`, `features`, `at` or `resolution` make no plane, or a number of `at` is not finite.
        UnavailableError: If the method does not have that score.
    """
    left, right, bottom, top = extent
    if not (left < right and bottom < top and all(map(math.isfinite, extent))):
        raise ValueError(f"extent is {extent}, expected (left, right, bottom, top) with left < right and bottom < top")
    if resolution < 2:
        raise ValueError(f"resolution is {resolution}, expected 2 or more points along each side")
    held = _held(at, features)
    across = _middles(left, right, resolution)
    parts = []
    for rows in _middles(bottom, top, resolution).split(max(1, MOST_NUMBERS // (resolution * len(held)))):
        inputs = held.repeat(len(rows) * resolution, 1)  # (N, D)
        inputs[:, features[0]] = across.repeat(len(rows))
        inputs[:, features[1]] = rows.repeat_interleave(resolution)
        parts.append(_answer(model, inputs))
    num_classes = parts[0].probs.shape[1]
    values = torch.cat([uncertainty(part, score).cpu() for part in parts]).reshape(resolution, resolution)
    ax = given_or_new(ax)
    surface(
        values.numpy(), ax, extent=extent, cmap=cmap, limits=limits or _limits(values, score, num_classes), title=title,
        label=(LABELS[score] if label is None else label) or None,
    )  # fmt: skip
    ax.set(aspect="auto", xlabel=f"feature {features[0]}", ylabel=f"feature {features[1]}")
    return ax


def _held(at: "Tensor | ArrayLike | None", features: tuple[int, int]) -> Tensor:
    held = torch.zeros(2) if at is None else as_tensor("at", at, device=torch.device("cpu")).float()
    if held.dim() != 1 or not bool(held.isfinite().all()):
        raise ValueError(
            f"at has shape {tuple(held.shape)} and {int((~held.isfinite()).sum())} numbers that are not finite, "
            "expected (D,) finite ones, one a feature: pass the medians of the data, inputs.median(dim=0).values"
        )
    first, second = features
    if first == second or not all(0 <= feature < len(held) for feature in features):
        missing = "; pass at=..., (D,), if the model has more than two features" if at is None else ""
        raise ValueError(
            f"features is {features}, expected two different ones of the {len(held)}, counted from 0{missing}"
        )
    return held


def _middles(low: float, high: float, count: int) -> Tensor:
    half = (high - low) / (2 * count)
    return torch.linspace(low + half, high - half, count)


def _answer(model: Predictor | Callable[[Tensor], Prediction], inputs: Tensor) -> Prediction:
    ask = getattr(model, "predict", model)
    prediction = ask(inputs) if callable(ask) else None
    if not isinstance(prediction, Prediction):
        raise TypeError(
            f"model is {type(model).__name__} and answers with {type(prediction).__name__}, expected a Prediction: "
            "wrap a plain network, hesitant.Deterministic(network), or pass a function that answers with one"
        )
    return prediction


def _limits(values: Tensor, score: Score, num_classes: int) -> tuple[float, float]:
    ends = {
        "confidence": 1.0 - 1.0 / num_classes,
        "predictive_entropy": math.log(num_classes),
        "mutual_information": math.log(num_classes),
        "dempster_shafer": 1.0,
    }
    return (0.0, ends[score]) if score in ends else (float(values.min()), float(values.max()))
