"""The pass over the training data that an exact covariance is made of, shared among the workers of a run."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.inputs import batches, several_workers, shared_batches
from hesitant.methods.gaussian_head.features import features_that_count
from hesitant.methods.gaussian_head.workers import share_weights, together
from hesitant.methods.replica import in_eval_mode
from hesitant.methods.wrapper import device_of
from hesitant.nn import RandomFeatureGaussianProcess, UniformSample, recorded


def summed_contributions(
    model: nn.Module,
    gp: RandomFeatureGaussianProcess,
    data: Any,
    batch_size: int | None,
    sample: UniformSample | None = None,
) -> tuple[Tensor, int]:
    """Answers ``sum_i w_i phi_i phi_i^T`` over all data, ``(M, M)`` float64, and the number of inputs.

    Of the sum, which is symmetric, what lies below the diagonal is left out.
    Nothing of the layer changes but its kernel scale, if that is undecided. All workers of a run call this: each takes
    its share of the data, with the weights of the first. A sample is given the features of that share.

    Raises:
        ValueError: The data is empty or holds NaN or Inf.
        RuntimeError: Another worker failed.
    """
    share_weights(model)
    product = torch.zeros_like(gp.laplace.data_precision)
    count = torch.zeros((), dtype=torch.float64, device=product.device)
    with together(product.device):
        _sum_over_share(model, gp, data, batch_size, product, count, sample)
    if several_workers():
        dist.all_reduce(product)
        dist.all_reduce(count)
    if float(count) == 0:
        raise ValueError("data holds no batch that reached the classifier: expected at least one input.")
    return product, int(count)


@torch.no_grad()
def _sum_over_share(
    model: nn.Module,
    gp: RandomFeatureGaussianProcess,
    data: Any,
    batch_size: int | None,
    product: Tensor,
    count: Tensor,
    sample: UniformSample | None,
) -> None:
    model, device = in_eval_mode(model), device_of(model)
    if not gp.scale.is_decided() and several_workers():
        # The median is agreed on by all workers, and one of them may have no share of the data.
        first = next(batches(data, batch_size)).to(device)
        with recorded(plain=True) as calls:
            model(*first.args, **first.kwargs)
        gp.decide_kernel_scale(torch.cat([call.inputs.flatten(0, -2) for call in calls]))
    for features in features_that_count(model, (batch.to(device) for batch in shared_batches(data, batch_size))):
        count += gp.add_contribution(product, features)
        if sample is not None:
            sample.add(features.flatten(0, -2).float())
