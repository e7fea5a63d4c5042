"""The ensembles that the tests ask, of every kind of member."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hesitant import SNGP, DeepEnsemble, MCDropout
from hesitant.nn.models import MLP

CLASSES = 3
X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(40) % CLASSES


def mlp(classes: int = CLASSES, **options: Any) -> nn.Module:
    return MLP(4, classes, hidden=(8,), **options)


def dropout(num_samples: int = 10, **options: Any) -> MCDropout:
    return MCDropout(mlp(), num_samples, **options)


def sngp() -> SNGP:
    model = SNGP(mlp(), num_inducing=16, kernel_scale=1.0)
    with torch.no_grad():
        model.gp.beta.mul_(5)
    model.fit_covariance(X[:20])
    return model


BUILDERS: dict[str, Callable[[], nn.Module]] = {"plain": mlp, "MCDropout": dropout, "SNGP": sngp}
each_kind = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def ensemble_of(build: Callable[[], nn.Module] = mlp, num_members: int = 3, seed: int = 0) -> Any:
    return DeepEnsemble.from_builder(build, num_members, seed=seed).eval()
