import pytest
import torch
from torch import Tensor

from hesitant.detection.gaussian_distances import MahalanobisDistance, RelativeMahalanobisDistance
from hesitant.evaluation import auroc

BOTH = (MahalanobisDistance, RelativeMahalanobisDistance)


def classes(rows: int, width: int = 12, directions: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Answers features of four classes that lie in so many directions of their space, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.Generator().manual_seed(99)
    axes = torch.randn(directions or width, width, generator=shape)
    means = 3 * torch.randn(4, directions or width, generator=shape)
    targets = torch.arange(rows) % 4
    return (means[targets] + torch.randn(rows, directions or width, generator=generator)) @ axes, targets


def plainly(features: Tensor, targets: Tensor, x: Tensor, relative: bool) -> Tensor:
    features, x = features.double(), x.double()
    means = torch.stack([features[targets == label].mean(0) for label in targets.unique()])
    within = features - means[torch.searchsorted(targets.unique(), targets)]
    of_all = features - features.mean(0)
    shared, background = (
        torch.linalg.inv(rows.T @ rows + 1e-6 * torch.eye(rows.shape[1]).double()) for rows in (within, of_all)
    )

    def squared(rows: Tensor, precision: Tensor) -> Tensor:
        return ((rows @ precision) * rows).sum(-1)

    nearest = torch.stack([squared(x - mean, shared) for mean in means]).amin(0)
    return nearest - squared(x - features.mean(0), background) if relative else nearest / 2


@pytest.mark.parametrize("kind", BOTH)
def test_the_score_is_that_of_the_plain_formula(kind: type[MahalanobisDistance]) -> None:
    features, targets = classes(200)
    x = classes(50, seed=1)[0] * 2
    distance = kind()
    distance.fit(features, targets)
    expected = plainly(features, targets, x, kind is RelativeMahalanobisDistance)
    torch.testing.assert_close(distance.score(x), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", BOTH)
def test_the_library_says_the_same_where_it_is_exact(kind: type[MahalanobisDistance]) -> None:
    library = pytest.importorskip("pytorch_ood.detector")
    features, targets = classes(200)
    x = classes(50, seed=1)[0] * 2
    distance = kind()
    distance.fit(features, targets)
    other = (library.RMD if kind is RelativeMahalanobisDistance else library.Mahalanobis)(None)
    theirs = other.fit_features(features, targets).predict_features(x).double()
    torch.testing.assert_close(distance.score(x), theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_features_that_do_not_span_their_space_are_ranked_all_the_same() -> None:
    features, targets = classes(400, width=64, directions=8)
    known, unknown = classes(100, 64, 8, seed=1)[0], torch.randn(100, 64, generator=torch.Generator().manual_seed(2))
    distance = MahalanobisDistance()
    distance.fit(features, targets)
    assert float(distance.score(known).min()) >= 0
    assert auroc(distance.score(known), distance.score(unknown)) > 0.99


@pytest.mark.parametrize("kind", BOTH)
def test_where_the_origin_lies_does_not_count(kind: type[MahalanobisDistance]) -> None:
    features, targets = classes(200)
    x = classes(20, seed=1)[0]
    here, there = kind(), kind()
    here.fit(features, targets)
    there.fit(features.double() + 1e4, targets)
    torch.testing.assert_close(there.score(x.double() + 1e4), here.score(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", BOTH)
def test_a_class_that_is_missing_is_no_class(kind: type[MahalanobisDistance]) -> None:
    features, targets = classes(200)
    x = classes(20, seed=1)[0]
    without, renamed = kind(), kind()
    without.fit(features[targets != 1], targets[targets != 1])
    renamed.fit(features[targets != 1], torch.tensor([0, 9, 1, 2])[targets[targets != 1]])
    assert torch.equal(without.score(x), renamed.score(x))


@pytest.mark.parametrize("kind", BOTH)
def test_one_input_alone_can_be_fitted(kind: type[MahalanobisDistance]) -> None:
    features, targets = classes(1)
    distance = kind()
    distance.fit(features, targets)
    scores = distance.score(torch.cat([features, features + 1]))
    assert bool(scores.isfinite().all())
