"""What the workers of a torch.distributed run have to agree on before their sums mean anything."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from hesitant.inputs import several_workers


@torch.no_grad()
def share_weights(model: nn.Module) -> None:
    """Gives all workers the weights and statistics of the first.

    Under DistributedDataParallel the statistics of a BatchNorm are each worker's own from its last step on, and weights
    may differ by rounding: features, and so their sums, would be those of several models.
    """
    if several_workers():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dtype != torch.bool and not hasattr(tensor, "placements"):
                dist.broadcast(tensor.data, 0)


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Ends what is within with an error on all workers if one of them fails: the others would wait for it forever.

    Raises:
        RuntimeError: Another worker failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if several_workers():
        failed = torch.tensor(float(failure is not None), device=device)
        dist.all_reduce(failed)
        if failure is None and float(failed) > 0:
            raise RuntimeError(f"{int(failed)} other workers failed: their messages say why.")
    if failure is not None:
        raise failure
