"""What comes before the sums of an exact covariance, and the pass over all training data, shared among workers."""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.inputs import batches, several_workers, shared_batches
from hesitant.methods.gaussian_head.covariance_sums import CovarianceSums, OwnerOfSums
from hesitant.methods.gaussian_head.workers import share_weights, together
from hesitant.methods.random_state import derived_seed
from hesitant.methods.replica import in_eval_mode
from hesitant.methods.wrapper import device_of
from hesitant.nn import RandomFeatureGaussianProcess, SpectralNormalizer, recorded


class FittedByAPass(OwnerOfSums, Protocol):
    """What an SNGP is to the pass that fits its covariance."""

    spectral_normalizer: SpectralNormalizer | None

    def start_from_classifier(self, data: Any, *, batch_size: int | None = None) -> bool:
        """Lets a Gaussian process that is as it was drawn answer what the classifier did."""


def fit_by_a_pass(method: FittedByAPass, data: Any, batch_size: int | None) -> None:
    """Fits the covariance to all the data. All workers of a run call this: each takes its share.

    The weights are made ready, those of the first worker are everyone's; each sums over its share, and the sums of all
    are added up.

    Raises:
        CovarianceError: The layer keeps a running covariance.
        RuntimeError: Another worker failed.
        ValueError: The data is empty or holds NaN or Inf.
    """
    gp = method.gp
    sums = CovarianceSums(method, seed=derived_seed(0, dist.get_rank() if several_workers() else 0))
    _make_ready(method, data, batch_size)
    share_weights(method.model)
    with together(gp.laplace.data_precision.device):
        # One worker decides by the first batch that it meets: what can be gone through once is not looked into.
        if several_workers():
            _decide_scale(method.model, gp, data, batch_size)
        sums.add(shared_batches(data, batch_size))
    sums.all_reduce()
    sums.finish()


def prepare_for_sums(method: FittedByAPass, data: Any, batch_size: int | None) -> None:
    """Makes the weights ready for sums, on all workers alike."""
    _make_ready(method, data, batch_size)
    share_weights(method.model)
    with together(method.gp.laplace.data_precision.device):
        _decide_scale(method.model, method.gp, data, batch_size)


def _make_ready(method: FittedByAPass, data: Any, batch_size: int | None) -> None:
    """Brings the layers within their bounds, and lets the Gaussian process start from the classifier."""
    if method.spectral_normalizer is not None:
        method.spectral_normalizer.project(
            num_iterations=max(1, method.spectral_normalizer.warm_up_iterations), force=True
        )
    method.start_from_classifier(data, batch_size=batch_size)


@torch.no_grad()
def _decide_scale(model: nn.Module, gp: RandomFeatureGaussianProcess, data: Any, batch_size: int | None) -> None:
    """Decides the kernel scale by the first training inputs, if it is not yet.

    The median is agreed on by all workers, and one of them may have no share of the data: all look at the first batch.
    """
    if not gp.scale.is_decided():
        gp.decide_kernel_scale(_first_features(model, data, batch_size))


def _first_features(model: nn.Module, data: Any, batch_size: int | None) -> Tensor:
    model, first = in_eval_mode(model), next(batches(data, batch_size)).to(device_of(model))
    with recorded(plain=True) as calls:
        model(*first.args, **first.kwargs)
    return torch.cat([call.inputs.flatten(0, -2) for call in calls])
