import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from tests.methods.members.ensembles import CLASSES, X, ensemble_of, mlp
from torch import nn

from hesitant import SNGP, DeepEnsemble
from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.nn.models import MLP


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def sngp(generator: torch.Generator) -> SNGP:
    return SNGP(mlp(), num_inducing=16, kernel_scale=1.0, generator=generator)


def fixed(seeds: list[int]) -> Callable[[], nn.Module]:
    """A builder that draws from generators of its own, seeded one after another."""
    iterator = itertools.cycle(seeds)
    return lambda: MLP(4, CLASSES, hidden=(8,), generator=torch.Generator().manual_seed(next(iterator)))


@pytest.mark.parametrize(("seeds", "pair"), [([0], "0 and 1"), ([0, 1], "0 and 2"), ([0, 1, 1], "1 and 2")])
def test_the_same_weights_again_raise(seeds: list[int], pair: str) -> None:
    with pytest.raises(ValueError, match=f"members {pair} the same weights: .* without a seed"):
        DeepEnsemble.from_builder(fixed(seeds), 4)


def test_random_features_that_members_share_raise_wherever_they_are() -> None:
    def alone() -> nn.Module:
        shared = torch.Generator().manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), RandomFeatureGaussianProcess(8, CLASSES, generator=shared))

    builders: list[Callable[[], nn.Module]] = [lambda: sngp(generator=torch.Generator().manual_seed(0)), alone]
    for build in builders:
        with pytest.raises(ValueError, match=r"members 0 and 1 the same random features: leave SNGP's generator out"):
            DeepEnsemble.from_builder(build, 2)


def test_a_frozen_backbone_may_be_common_and_its_tensors_shared() -> None:
    backbone = nn.Linear(4, 8).requires_grad_(False)
    ensemble = ensemble_of(lambda: nn.Sequential(backbone, nn.ReLU(), nn.Linear(8, CLASSES)))
    assert all(member[0] is backbone for member in ensemble.members)
    expected = torch.stack([member(X).softmax(-1) for member in ensemble.members]).mean(0)
    torch.testing.assert_close(ensemble.predict(X).probs, expected)
    assert len(list(ensemble.parameters())) == 2 + 3 * 2


def test_weights_that_wait_for_the_first_input_raise() -> None:
    with pytest.raises(ValueError, match=r"left '0.weight' without values until the first input"):
        DeepEnsemble.from_builder(lambda: nn.Sequential(nn.LazyLinear(3)), 2)
