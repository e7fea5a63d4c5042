"""SNGP's nearest neighbours: the training features that its covariance pass keeps, to tell distances by."""

from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from hesitant.inputs import several_workers
from hesitant.methods.random_state import derived_seed
from hesitant.nn import NearestNeighbors, RandomFeatureGaussianProcess, UniformSample

OodScore = Literal["dempster_shafer", "knn"]


def neighbors_for(ood_score: OodScore, gp: RandomFeatureGaussianProcess) -> NearestNeighbors | None:
    """Answers what tells the distance to the nearest training input, where that is the score.

    Raises:
        ValueError: The score is unknown, or there is no pass over the training data that would keep features.
    """
    if ood_score not in get_args(OodScore):
        raise ValueError(f"ood_score={ood_score!r} is not known: expected 'dempster_shafer' or 'knn'.")
    if ood_score == "dempster_shafer":
        return None
    if gp.laplace.momentum is not None:
        raise ValueError(
            f"ood_score='knn' keeps the features of fit_covariance's pass, which momentum={gp.laplace.momentum} does"
            " without: leave out momentum, or fit a hesitant.detection.FeatureDetector(model, 'knn') after training."
        )
    return NearestNeighbors(gp.in_features, device=gp.beta.device)


def sample_for(neighbors: NearestNeighbors | None) -> UniformSample | None:
    """Answers a sample for this worker's share of the training data, if neighbours are asked for."""
    if neighbors is None:
        return None
    return neighbors.sample(seed=derived_seed(0, dist.get_rank() if several_workers() else 0))


def keep(neighbors: NearestNeighbors | None, sample: UniformSample | None) -> None:
    """Puts what stays of all workers' samples in place of the training features, the same on every worker.

    All workers of a run call this; while it lasts, each holds the samples of all.
    """
    if neighbors is not None and sample is not None:
        neighbors.replace(_of_all_workers(neighbors, sample) if several_workers() else sample.kept()[0])


def _of_all_workers(neighbors: NearestNeighbors, sample: UniformSample) -> Tensor:
    device = neighbors.inputs.device
    rows, keys = sample.kept() if len(sample) else (neighbors.inputs[:0], torch.empty(0, dtype=torch.float64))
    lengths = [int(length) for length in _gathered(torch.tensor(len(rows), device=device))]
    longest = max(lengths)
    all_rows = _gathered(_padded(rows, longest))
    all_keys = _gathered(_padded(keys.to(device), longest))
    merged = UniformSample(neighbors.max_inputs)
    for length, of_one, with_keys in zip(lengths, all_rows, all_keys, strict=True):
        merged.merge(of_one[:length], with_keys[:length].cpu())
    return merged.kept()[0]


def _gathered(tensor: Tensor) -> list[Tensor]:
    answers = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(answers, tensor.contiguous())
    return answers


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])
