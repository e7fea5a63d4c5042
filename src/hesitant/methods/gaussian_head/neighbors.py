"""SNGP's nearest neighbours: the training features that its covariance pass keeps, to tell distances by."""

from typing import Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hesitant.nn import NearestNeighbors, RandomFeatureGaussianProcess, UniformSample

OodScore = Literal["logits", "knn"]


def neighbors_for(ood_score: OodScore, gp: RandomFeatureGaussianProcess) -> NearestNeighbors | None:
    """Answers what tells the distance to the nearest training input, where that is the score.

    Raises:
        ValueError: The score is unknown, or there is no pass over the training data that would keep features.
    """
    if ood_score not in get_args(OodScore):
        raise ValueError(f"ood_score={ood_score!r} is not known: expected 'logits' or 'knn'.")
    if ood_score == "logits":
        return None
    if gp.laplace.momentum is not None:
        raise ValueError(
            f"ood_score='knn' keeps the features of fit_covariance's pass, which momentum={gp.laplace.momentum} does"
            " without: leave out momentum, or fit a hesitant.detection.FeatureDetector(model, 'knn') after training."
        )
    return NearestNeighbors(gp.in_features, device=gp.beta.device)


def recalled(neighbors: NearestNeighbors, count: int, seed: int) -> UniformSample:
    """Answers the sample of ``count`` training features that a model's neighbours are, with keys drawn anew.

    Of ``count`` keys the n smallest are those of the n features that were kept: given the greatest of them, which is
    distributed as the n-th of ``count`` uniform numbers, the others are uniform below it.
    """
    generator, rows = np.random.default_rng(seed), neighbors.inputs
    sample, kept = neighbors.sample(seed), len(rows)
    bound = 1.0 if count <= kept else float(generator.beta(kept, count - kept + 1))
    keys = generator.random(kept) * bound
    if count > kept > 0:
        keys[generator.integers(kept)] = bound
    sample.merge(rows, torch.from_numpy(keys))
    if count > kept:
        sample.bound = bound
    return sample


def absorb_all_workers(limit: int | None, sample: UniformSample | None, device: torch.device) -> UniformSample | None:
    """Answers the sample of what all workers were given, the same on every worker; None where none is kept.

    All workers of a run call this; while it lasts, each holds the samples of all.
    """
    if limit is None:
        return None
    held = sample is not None and len(sample) > 0
    rows, keys = sample.kept() if sample is not None and held else (torch.empty(0, 0), torch.empty(0).double())
    bound = 2.0 if sample is None else min(sample.bound, 2.0)  # above all keys
    told = torch.tensor([len(rows), rows.shape[1], bound], dtype=torch.float64, device=device)
    told_by_all = [one.tolist() for one in _gathered(told)]
    longest, width = (int(max(one[place] for one in told_by_all)) for place in (0, 1))
    rows = rows.to(device) if held else torch.empty(0, width, device=device)
    all_rows = _gathered(_padded(rows, longest))
    all_keys = _gathered(_padded(keys.to(device), longest))
    merged = UniformSample(limit)
    for (length, _, bound), of_one, with_keys in zip(told_by_all, all_rows, all_keys, strict=True):
        other = UniformSample(limit)
        other.merge(of_one[: int(length)], with_keys[: int(length)].cpu())
        if bound <= 1:
            other.bound = bound
        merged.absorb(other)
    return merged


def _gathered(tensor: Tensor) -> list[Tensor]:
    answers = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(answers, tensor.contiguous())
    return answers


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])
