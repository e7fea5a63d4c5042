"""What is left to the package pytorch-ood: our scores are its own on features taken by hand, in parts of any size."""

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from hesitant.detection.of_pytorch_ood import ClassDensities, LinearHead, ScaledEnergy, VirtualLogit, library

ood = pytest.importorskip("pytorch_ood.detector")
WIDTH = 12


def rows(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed))


def head(classes: int = 3) -> LinearHead:
    generator = torch.Generator().manual_seed(5)
    return LinearHead(torch.randn(classes, WIDTH, generator=generator), torch.randn(classes, generator=generator))


def test_vim_is_the_librarys() -> None:
    own = VirtualLogit(head(), d=4)
    own.fit(rows(100), None)
    theirs = ood.ViM(None, d=4, w=head().weight, b=head().bias).fit_features(rows(100), torch.zeros(100))
    assert torch.equal(own.score(rows(9, 1)), theirs.predict_features(rows(9, 1)).double())


def test_vim_is_the_equation_of_the_paper() -> None:
    own, (weight, bias) = VirtualLogit(head(), d=4), (head().weight.double(), head().bias.double())
    own.fit(rows(100), None)
    origin = -torch.linalg.pinv(weight) @ bias
    centred = rows(100).double() - origin
    residual = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, : WIDTH - 4]
    norms = (centred @ residual).norm(dim=1)
    alpha = (rows(100).double() @ weight.T + bias).amax(1).mean() / norms.mean()
    x = rows(9, 1).double()
    expected = alpha * ((x - origin) @ residual).norm(dim=1) - (x @ weight.T + bias).logsumexp(1)
    torch.testing.assert_close(own.score(rows(9, 1)), expected, rtol=1e-4, atol=1e-4)


def test_scale_is_the_librarys() -> None:
    x = rows(9).relu()
    theirs = ood.SCALE(None, head=lambda maps: head()(maps.flatten(1)), percentile=0.5)
    assert torch.equal(
        ScaledEnergy(head(), percentile=0.5).score(x), theirs.predict_feature_maps(x[:, :, None, None]).double()
    )


def test_scale_is_the_equation_of_the_paper() -> None:
    x = rows(9).relu().double()
    largest = x.topk(6).values.sum(1)
    expected = -(head()((x * (x.sum(1) / largest).exp().unsqueeze(1)).float())).double().logsumexp(1)
    torch.testing.assert_close(ScaledEnergy(head(), percentile=0.5).score(x), expected, rtol=1e-5, atol=1e-5)


def test_scale_of_nothing_is_the_energy_of_the_bias_and_negative_features_are_refused() -> None:
    score = ScaledEnergy(head()).score(torch.zeros(1, WIDTH))
    torch.testing.assert_close(score, -head().bias.double().logsumexp(0, keepdim=True))
    with pytest.raises(ValueError, match="not negative"):
        ScaledEnergy(head()).score(rows(2))


def test_class_densities_are_the_librarys_and_the_equation() -> None:
    features, targets = rows(300), torch.arange(300) % 4 % 3  # one class twice as large
    features = features + targets.unsqueeze(1)
    own = ClassDensities()
    own.fit(features, targets)
    theirs = ood.GMM(None, reg=0.0).fit_features(features, targets).predict_features(rows(9, 1))
    assert torch.equal(own.score(rows(9, 1)), theirs)
    logs = []
    for label in range(3):
        of_class = features[targets == label].double()
        cov = torch.cov(of_class.T, correction=0)
        normal = torch.distributions.MultivariateNormal(of_class.mean(0), cov)
        logs.append(normal.log_prob(rows(9, 1).double()) + math.log(len(of_class) / 300))
    torch.testing.assert_close(own.score(rows(9, 1)), -torch.stack(logs).logsumexp(0))


def test_class_densities_of_few_inputs_get_the_smallest_jitter_that_does() -> None:
    features, targets = rows(10), torch.arange(10) % 2
    own = ClassDensities()
    own.fit(features, targets)
    assert bool(own.score(rows(9, 1)).isfinite().all())
    with pytest.raises(ValueError, match="class 1 has one input alone"):
        own.fit(features[:3], torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("numbers", [1, 100])
def test_parts_are_as_the_whole(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ClassDensities()
    own.fit(rows(100), torch.arange(100) % 3)
    whole = own.score(rows(50, 1))
    monkeypatch.setattr("hesitant.detection.of_pytorch_ood._NUMBERS_AT_ONCE", numbers)
    torch.testing.assert_close(own.score(rows(50, 1)), whole)


def test_a_single_logit_is_two() -> None:
    single = head(1)
    linear = nn.Linear(WIDTH, 1)
    with torch.no_grad():
        linear.weight.copy_(single.weight[1:] * 2)
        linear.bias.copy_(single.bias[1:] * 2)
    logits = LinearHead(linear.weight, linear.bias)(rows(5))
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], linear(rows(5)).squeeze(1))
    torch.testing.assert_close(logits.mean(1), torch.zeros(5), rtol=0, atol=1e-6)


def test_a_subspace_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"d=12 is no integer from 1 to 11"):
        VirtualLogit(head(), d=12)
    with pytest.raises(ValueError, match=r"percentile=1\.0"):
        ScaledEnergy(head(), percentile=1.0)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_ood.detector", None)
    with pytest.raises(ImportError, match=r"hesitant\[detection\]"):
        library()
