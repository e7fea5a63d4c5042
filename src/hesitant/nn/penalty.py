"""Which penalties a training loss holds: told from its graph, so that who completes a loss adds none twice."""

from typing import Any

import torch
from torch import Tensor, nn

_KEY = "hesitant.penalty_of"


def marked_penalty(penalty: Tensor, layer: nn.Module) -> Tensor:
    """Answers the penalty of a layer, known again by :func:`holds_penalty` in whatever it is added to."""
    if penalty.grad_fn is not None and not torch.compiler.is_compiling():
        _notes(penalty.grad_fn)[_KEY] = id(layer)
    return penalty


def holds_penalty(loss: Tensor, layer: nn.Module) -> bool:
    """Answers whether the penalty of a layer was added to a loss, from which nothing has gone backward yet.

    The nearest operations are looked at first. What was compiled shows none of its own.
    """
    waiting = [loss.grad_fn]
    seen = set(waiting)
    for node in waiting:
        if node is None:
            continue
        if _notes(node).get(_KEY) == id(layer):
            return True
        before = {function for function, _ in node.next_functions} - seen
        seen |= before
        waiting += before
    return False


def _notes(node: Any) -> dict[str, Any]:
    return node.metadata  # a dict, which torch's types take for a method
