"""Layers of one shape, stacked: what the projection keeps of them, and how it writes their weights."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hesitant.nn.power_iteration import StackedOperator

NEVER = torch.iinfo(torch.int64).min  # a checksum that no weights have
_LARGE = 2**17  # numbers of a weight
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class LayerGroup:
    """Layers that share one operator, their singular vectors stacked."""

    names: list[str]
    weights: list[nn.Parameter]
    operator: StackedOperator
    u: Tensor  # (L, *output_shape)
    checksum: Tensor  # (L,), of the weights as the last call of project left them
    bound: Tensor  # (L,), of the norms
    v: Tensor | None = None  # (L, *input_shape)
    sigma: Tensor = field(default_factory=lambda: torch.empty(0))


class ProjectionStep(NamedTuple):
    """What one projection is about to do to a group."""

    stacked: Tensor  # (L, ...), the weights
    checksum: Tensor  # (L,), of them
    moved: Tensor  # (L,), whether they have moved since the last projection, or are to be taken as if
    scale: Tensor  # (L,), what they are to be multiplied by, at most 1


def is_faster_alone(weight: Tensor) -> bool:
    """Answers whether a layer advances faster by itself than with others of its shape.

    Stacking spares small operations, and a GPU has many launches to spare. On a CPU it costs a copy of large weights,
    and a grouped convolution takes longer than its parts.
    """
    return weight.device.type == "cpu" and (weight.ndim > 2 or weight.numel() >= _LARGE)


def stack(weights: list[nn.Parameter]) -> Tensor:
    """Answers the weights of several layers as one tensor ``(L, ...)``, in float32 or better; of one, its own."""
    if len(weights) == 1:
        stacked = weights[0].detach().contiguous().unsqueeze(0)
    else:
        stacked = torch.stack([weight.detach() for weight in weights])
    return stacked if stacked.dtype == torch.float64 else stacked.float()


def bit_checksum(stacked: Tensor) -> Tensor:
    """Answers the sum of the bits of each layer's weights: exact, in any order, so that any change shows."""
    rows = stacked.flatten(1)  # (L, n)
    if rows.shape[1] * rows.element_size() % 8 == 0:
        return rows.view(torch.int64).sum(1)  # eight bytes at a time
    return rows.view(_INTEGERS[rows.element_size()]).sum(1, dtype=torch.int64)


def shrink(group: LayerGroup, step: ProjectionStep) -> None:
    """Multiplies the weights, and notes their bits. Autograd's version counters are not told.

    Where a weight has not moved the factor is exactly 1, and a graph that saved it for backward stays right; where it
    has moved, the optimizer has already written over it.
    """
    data = [weight.data for weight in group.weights]
    scale = step.scale.to(data[0].dtype)
    if scale.device.type == "cpu":  # reading the factors costs nothing there, and often there is nothing to do
        factors = scale.tolist()
        if min(factors) == 1:
            group.checksum = step.checksum
            return
        torch._foreach_mul_(data, factors)
    else:
        torch._foreach_mul_(data, list(scale.unbind()))
    if len(data) > 1 and data[0].dtype == step.stacked.dtype:  # else it may be the weight itself, multiplied already
        group.checksum = bit_checksum(step.stacked.mul_(scale.view(-1, *[1] * (step.stacked.ndim - 1))))
    else:
        group.checksum = bit_checksum(stack(group.weights))


def refuse_sharded(name: str, weight: Tensor, layer: nn.Module) -> None:
    """Raises RuntimeError for a weight of which this worker holds a part only."""
    expected = 2 + len(layer.kernel_size) if isinstance(layer, _ConvNd) else 2
    if hasattr(weight, "placements") or hasattr(weight, "ds_id") or weight.ndim != expected or weight.numel() == 0:
        raise RuntimeError(
            f"the weight of layer {name!r} is sharded (FSDP, ZeRO-3) or empty, shape {tuple(weight.shape)}: its norm"
            " cannot be bounded. Train with DDP or ZeRO-1/2, or make the SNGP with norm_bound=None."
        )
