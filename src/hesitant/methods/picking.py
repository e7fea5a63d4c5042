"""Which of its classifier's logits a model answers with: all, or those of one position of each sequence."""

import torch
from torch import Tensor


def picked_position(logits: Tensor, answer: Tensor) -> Tensor | None:
    """Answers the position ``(B,)`` in the classifier's ``logits`` ``(B, T, C)`` where each row of ``answer`` stands.

    Language models classify a sequence by the logits of its last token, which their padding decides: the rows tell
    where that is. None says that the answer is all of the logits (a single one may be squeezed).

    Raises:
        ValueError: The answer is neither.
    """
    if answer.shape in (logits.shape, logits.shape[:-1] if logits.shape[-1:] == (1,) else logits.shape):
        return None
    if logits.ndim == answer.ndim + 1 and logits[:, 0].shape == answer.shape:
        same = (logits == answer.unsqueeze(1)).flatten(2).all(-1)  # (B, T)
        if bool(same.any(1).all()):
            return same.int().argmax(1)
    raise ValueError(
        f"the model answered logits of shape {tuple(answer.shape)}, and its Gaussian process {tuple(logits.shape)}: the"
        " variance of the answer is not known where the model goes on after its classifier. softmax(model(x)) is the"
        " predictive distribution all the same."
    )


def at_position(tensor: Tensor, position: Tensor | None) -> Tensor:
    """Answers the rows ``(B, ...)`` of ``tensor`` ``(B, T, ...)`` at the positions ``(B,)``, or all of it."""
    return tensor if position is None else tensor[torch.arange(len(tensor), device=tensor.device), position]
