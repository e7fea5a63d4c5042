"""Which of the features that a classifier is given have a part in what its model answers: padding has none."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch
from hesitant.methods.gaussian_head.continuation import at_positions, picked_positions
from hesitant.methods.outputs import logits_of
from hesitant.methods.replica import in_eval_mode
from hesitant.nn import GaussianProcessCall, recorded


def counted_features(
    model: nn.Module, call: GaussianProcessCall, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Answers the features ``(..., D)`` of a call of the Gaussian process that have a part in the model's answer.

    Args:
        model: What was called, with ``args`` and ``kwargs``.
        call: Of the Gaussian process within it.
        answer: The model's.
        args: Given to the model.
        kwargs: Given to the model; an ``attention_mask`` tells padding where every position has an answer.
    """
    features, logits = call.inputs.detach(), call.output.detach()
    if features.ndim != 3:
        return features
    try:
        positions = picked_positions(logits, logits_of(answer).detach(), repeating(model, args, kwargs))
    except (TypeError, ValueError):  # whatever the model makes of them, all of them count
        positions = None
    mask = kwargs.get("attention_mask")
    if positions is None and isinstance(mask, Tensor) and mask.shape == features.shape[:2]:
        return features[mask.bool()]
    return at_positions(features, positions)


def features_that_count(model: nn.Module, given: Iterable[Batch]) -> Iterator[Tensor]:
    """Answers the features ``(..., D)`` of each call of the Gaussian process, batch after batch."""
    for batch in given:
        with recorded(plain=True) as calls:
            answer = model(*batch.args, **batch.kwargs)
        for call in calls:
            yield counted_features(model, call, answer, batch.args, batch.kwargs)


def repeating(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Answers what runs the model again in eval mode, its Gaussian process made to answer other logits."""

    def again(values: Tensor) -> Tensor:
        with recorded(answering=[values]), torch.no_grad():
            return logits_of(in_eval_mode(model)(*args, **kwargs))

    return again
