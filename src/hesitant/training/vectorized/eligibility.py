"""Which ensembles can be trained in one vectorised pass, and for which it pays."""

from typing import Any

import torch
from torch import nn

from hesitant.methods import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.methods.members import why_not_stackable
from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.training.settings import Settings

# On a CPU convolutions, and matrices that fill its caches, are as fast one by one.
_DENSE = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.PReLU, RandomFeatureGaussianProcess)
_MOST_PARAMETERS_ON_CPU = 2**20
_COPIES = 4  # weights, gradients and the moments of Adam


def network_of(member: nn.Module) -> nn.Module:
    """Answers what runs in a member's training forward."""
    return member.model if type(member) in (SNGP, MCDropout, Deterministic) else member  # type: ignore[return-value]


def why_one_by_one(members: list[nn.Module], settings: Settings, accelerator: Any, wanted: bool | None) -> str | None:
    """Answers what speaks against training the members together, as far as can be seen without running them."""
    first = members[0]
    networks = [network_of(member) for member in members]
    if wanted is False:
        return "vectorize is False"
    if len(members) == 1:
        return "there is one member"
    if accelerator.num_processes > 1:
        return "several workers share the data of each member"
    if settings.mixed_precision == "fp16":
        return "the gradients of float16 are scaled for each model by itself"
    if any(isinstance(module, DeepEnsemble) for module in members):
        return "a member is an ensemble itself"
    if not any(parameter.requires_grad for parameter in first.parameters()):
        return "the model has no trainable parameter"
    if any(isinstance(member, SNGP) and member.gp.laplace.momentum is not None for member in members):
        return "the covariance is kept while training"
    why = why_not_stackable(networks)
    if why is not None:
        return why
    if any(type(member) is not type(first) for member in members):
        return "the members differ in their architecture"
    if wanted is True:
        return None
    return _why_not_worth_it(members, accelerator.device)


def _why_not_worth_it(members: list[nn.Module], device: torch.device) -> str | None:
    size = sum(parameter.numel() for parameter in members[0].parameters())
    if device.type == "cpu":
        own = (m for m in network_of(members[0]).modules() if next(m.parameters(recurse=False), None) is not None)
        if not all(isinstance(module, _DENSE) for module in own) or size > _MOST_PARAMETERS_ON_CPU:
            return "on a CPU such a network is as fast by itself"
    elif device.type == "cuda":
        needed = _COPIES * len(members) * sum(p.numel() * p.element_size() for p in members[0].parameters())
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free // 2:
            return f"together they need {needed / 2**30:.1f} GiB for their weights, and {free / 2**30:.1f} GiB are free"
    return None
