"""A prediction of many inputs, read in parts of bounded size."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hesitant.prediction.prediction import Prediction

__all__ = ["in_parts", "parts_of"]

_CHUNK_NUMBERS = 2**22  # probabilities handled at a time: bounds the temporary memory


def parts_of(prediction: Prediction) -> Iterator[Prediction]:
    """`prediction` in parts of bounded size and in order; a part without inputs where there are none."""
    rows = max(1, _CHUNK_NUMBERS // prediction.probs.shape[1])
    for start in range(0, max(1, len(prediction)), rows):
        yield prediction[start : start + rows]


def in_parts(prediction: Prediction, function: Callable[[Prediction], Tensor]) -> Tensor:
    """`(B,)` float64 on the device of `prediction`: `(b,)` numbers of each part of `b` inputs, in order."""
    # Made first: a part's answer kept by itself would lie where the part was, and the next would not fit there again.
    answer = torch.empty(len(prediction), dtype=torch.float64, device=prediction.probs.device)
    start = 0
    for part in parts_of(prediction):
        answer[start : start + len(part)] = function(part)
        start += len(part)
    return answer
