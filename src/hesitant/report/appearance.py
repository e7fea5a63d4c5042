"""An input as people can look at it: a picture, a text, or a row of numbers."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesitant.report.figures import data_uri

__all__ = ["Appearance", "appearance"]

_LARGEST_SIDE: Final = 224  # pixels: more are not seen on the page, and cost its size
_LONGEST_TEXT: Final = 600
_MOST_FEATURES: Final = 8
_CHANNELS: Final = (1, 3, 4)


@dataclass(frozen=True)
class Appearance:
    """What an input looks like on the page.

    Attributes:
        kind: which of the others is there.
        picture: a PNG in a data URI.
        text: as it is; a long one is cut.
        cells: the numbers of a row; of many features the first.
        headings: the names of the features of `cells`.
    """

    kind: Literal["picture", "text", "row"]
    picture: str = ""
    text: str = ""
    cells: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()


def appearance(
    value: Any, image_shape: tuple[int, ...] | None = None, feature_names: Sequence[str] | None = None
) -> Appearance:
    """An input as a picture, a text or a row.

    Args:
        value: a tensor or array, `(H, W)`, `(1 | 3 | 4, H, W)` or `(H, W, 1 | 3 | 4)` for a picture, `(D,)` for a row;
            an image of Pillow; a text; or a dict of texts or of numbers. Pixels beyond [0, 1], or of whole numbers
            beyond 0 to 255, are stretched to the picture's own range.
        image_shape: what a tensor is reshaped to, to be a picture.
        feature_names: the headings of a row.

    Raises:
        ValueError: a tensor does not fit `image_shape` or `feature_names`.
    """
    if isinstance(value, str):
        return _as_text(value)
    if isinstance(value, Mapping):
        texts = [entry for entry in value.values() if isinstance(entry, str)]
        if texts:
            return _as_text("\n".join(texts))
        numbers = {str(key): entry for key, entry in value.items() if np.ndim(_array(entry)) == 0}
        if numbers:
            return _as_row(np.array([_array(entry) for entry in numbers.values()]), list(numbers))
        return _as_text("\n".join(f"{key}: {_array(entry).ravel()[:12].tolist()}" for key, entry in value.items()))
    array = _array(value)
    if image_shape is not None:
        if array.size != int(np.prod(image_shape)):
            raise ValueError(
                f"image_shape is {tuple(image_shape)}, an input has the shape {array.shape}: give as many numbers"
            )
        array = array.reshape(image_shape)
    if array.dtype.kind not in "biuf":
        return _as_text(str(value))
    if array.ndim == 2:
        return _as_picture(array)
    if array.ndim == 3 and (array.shape[0] in _CHANNELS or array.shape[2] in _CHANNELS):
        return _as_picture(array if array.shape[2] in _CHANNELS else np.moveaxis(array, 0, 2))
    if array.ndim <= 1:
        return _as_row(array.reshape(-1), feature_names)
    return _as_text(f"an array of shape {array.shape}; report(show=...) makes a picture or a text of it")


def _array(value: Any) -> NDArray[Any]:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def _as_text(text: str) -> Appearance:
    cut = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT].rstrip()} …"
    return Appearance("text", text=cut)


def _as_row(numbers: NDArray[Any], names: Sequence[str] | None) -> Appearance:
    if names is not None and len(names) != len(numbers):
        raise ValueError(
            f"feature_names has {len(names)} names, an input has {len(numbers)} features: give one for each"
        )
    headings = [f"x{place}" for place in range(len(numbers))] if names is None else list(names)
    cells = [f"{number:.3g}" for number in numbers.tolist()]
    if len(cells) > _MOST_FEATURES:
        more = len(cells) - _MOST_FEATURES
        headings, cells = [*headings[:_MOST_FEATURES], f"{more} more"], [*cells[:_MOST_FEATURES], "…"]
    return Appearance("row", cells=tuple(cells), headings=tuple(headings))


def _as_picture(array: NDArray[Any]) -> Appearance:
    from PIL import Image  # comes with matplotlib

    pixels = array.astype(np.float64)
    top = 255.0 if array.dtype.kind in "iu" and pixels.max(initial=0) > 1 else 1.0
    low, high = (0.0, top)
    finite = pixels[np.isfinite(pixels)]
    if finite.size and (finite.min() < low or finite.max() > high):
        low, high = finite.min(), finite.max()
    scaled = np.nan_to_num((pixels - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0)
    whole = np.rint(255 * scaled).astype(np.uint8)
    image = Image.fromarray(whole.squeeze(axis=2) if whole.ndim == 3 and whole.shape[2] == 1 else whole)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return Appearance("picture", picture=data_uri("image/png", content.getvalue()))
