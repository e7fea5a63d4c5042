"""What comes before the sums of an exact covariance, and the pass over all training data, shared among workers."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.inputs import Batch, as_batch, batches, data_sample, several_workers, shared_batches, training_loader
from hesitant.methods.gaussian_head.covariance_sums import CovarianceSums, OwnerOfSums, require_exact
from hesitant.methods.gaussian_head.features import features_that_count
from hesitant.methods.gaussian_head.workers import share_weights, together
from hesitant.methods.random_state import derived_seed
from hesitant.methods.replica import in_eval_mode
from hesitant.methods.wrapper import device_of
from hesitant.nn import CovarianceState, SpectralNormalizer

_AIMING = 2048  # inputs by which the directions of low rank are chosen


class FittedByAPass(OwnerOfSums, Protocol):
    """What an SNGP is to the pass that fits its covariance."""

    spectral_normalizer: SpectralNormalizer | None

    @property
    def covariance_state(self) -> CovarianceState:
        """Whether there is a covariance, and it belongs to the weights."""

    def start_from_classifier(self, data: Any, *, batch_size: int | None = None) -> bool:
        """Lets a Gaussian process that is as it was drawn answer what the classifier did."""


def fit_by_a_pass(method: FittedByAPass, data: Any, batch_size: int | None, num_inputs: int | None, seed: int) -> None:
    """Fits the covariance to all the data, or to a sample that stands for it. All workers call this and share it out.

    The weights are made ready, those of the first worker are everyone's; each sums over its share, and the sums of all
    are added up.

    Raises:
        CovarianceError: The layer keeps a running covariance.
        RuntimeError: Another worker failed.
        ValueError: The data is empty or holds NaN or Inf.
    """
    require_exact(method.gp)
    chosen, each = (data, 1.0) if num_inputs is None else data_sample(data, num_inputs, seed)
    # One worker decides the scale by the first batch that it meets: what can be gone through once is not looked into.
    _make_ready(method, data, batch_size, decides=several_workers())
    sums = CovarianceSums(method, seed=derived_seed(0, dist.get_rank() if several_workers() else 0))
    with together(device_of(method.model)):
        sums.add(shared_batches(chosen, batch_size))
    sums.all_reduce()
    sums.stand_for(each)
    sums.finish()


def prepare_for_sums(method: FittedByAPass, data: Any, batch_size: int | None) -> None:
    """Makes the weights ready for sums, on all workers alike."""
    _make_ready(method, data, batch_size, decides=True)


def _make_ready(method: FittedByAPass, data: Any, batch_size: int | None, *, decides: bool) -> None:
    """Brings the layers within their bounds, lets the Gaussian process start from the classifier, and decides.

    Args:
        method: Whose weights.
        data: Of training.
        batch_size: Inputs in one forward pass.
        decides: Whether the kernel scale is decided here; else the first data does it.
    """
    if method.spectral_normalizer is not None:
        method.spectral_normalizer.project(
            num_iterations=max(1, method.spectral_normalizer.warm_up_iterations), force=True
        )
    method.start_from_classifier(data, batch_size=batch_size)
    share_weights(method.model)
    gp, aims = method.gp, _can_aim(method, data)
    with together(device_of(method.model)):
        # The median is agreed on by all workers, and one may have no share of the data: all look at the first batch.
        if (decides or aims) and not gp.scale.is_decided():
            gp.decide_kernel_scale(_some_features(method.model, batches(data, batch_size), 1))
        features = gp.features(_some_features(method.model, _drawn(data, batch_size), _AIMING)) if aims else None
    if features is not None and gp.laplace.directions is not None:
        gp.laplace.aim(features.flatten(0, -2))
        if several_workers():
            dist.broadcast(gp.laplace.directions, 0)


def _can_aim(method: FittedByAPass, data: Any) -> bool:
    """Answers whether a low rank can be aimed at the data: what can be gone through once is left for the sums."""
    low_rank = method.gp.laplace.directions is not None
    return low_rank and not isinstance(data, Iterator) and method.covariance_state != "fitted"


def _drawn(data: Any, batch_size: int | None) -> Iterator[Batch]:
    """Gives batches in random order: data may come sorted by class."""
    loader = training_loader(data, batch_size or 128, torch.Generator().manual_seed(0))
    return (as_batch(item) for item in loader)


@torch.no_grad()
def _some_features(model: nn.Module, given: Iterator[Batch], least: int) -> Tensor:
    """Answers what the Gaussian process was given of the first batches, so many rows at least if there are."""
    device, found, rows = device_of(model), [], 0
    for features in features_that_count(in_eval_mode(model), (batch.to(device) for batch in given)):
        found.append(features.flatten(0, -2))
        rows += len(found[-1])
        if rows >= least:
            break
    return torch.cat(found)
