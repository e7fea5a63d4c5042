"""Dropout of members that train as one: a mask of each member's own, all drawn at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hesitant.methods.dropout import Masks
from hesitant.training.vectorized.below_vmap import below_vmap


class StackedFunctions(TorchFunctionMode):
    """Runs what members under vmap call, where PyTorch's own way with stacked tensors is slow.

    ``F.dropout``, which ``nn.Dropout`` calls too, is drawn from ``masks`` for all members at once; a linear layer's
    product and bias become one operation, all of it in the precision that autocast asks for. What draws by other
    operations, such as attention, draws for each member from the global generators, as vmap has it.

    Args:
        num_members: M, how many run as one.
        masks: Draws; None drops nothing, so that a member among others can be compared with itself alone.
    """

    def __init__(self, num_members: int, masks: Masks | None) -> None:
        super().__init__()
        self._num_members, self._masks = num_members, masks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None:
            return F.linear(x, weight)
        return below_vmap(_stacked_linear, self._num_members, x, weight, bias)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not 0 < p <= 1:
            return F.dropout(x, p, training, inplace)
        masks = self._masks
        if masks is None:
            return x
        out = below_vmap(lambda every: every * _noise(masks, p, every), self._num_members, x)
        return x.copy_(out) if inplace else out


class WithoutDropout(TorchFunctionMode):
    """Lets one model by itself drop nothing in ``F.dropout``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function."""
        return args[0] if func is F.dropout else func(*args, **(kwargs or {}))


def _stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = x.reshape(len(x), -1, x.shape[-1])  # (M, N, in)
    out = torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
    return out.view(*x.shape[:-1], weight.shape[1])


def _noise(masks: Masks, drop_rate: float, like: Tensor) -> Tensor:
    """Answers what a tensor is to be multiplied by: 0, or one over the keep rate."""
    mask = masks.draw(like.shape, drop_rate, like.device)
    masks.shapes.clear()
    kept = mask.kept[0]
    if like.dtype == torch.get_default_dtype():
        return kept * (1 / mask.keep_rate)  # converts as it multiplies
    return kept.to(like.dtype).mul_(1 / mask.keep_rate)
