"""The covariance of a sample, scaled to all inputs, which stands for the exact one in the middle of training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hesitant import SNGP
from hesitant.evaluation import nll
from hesitant.nn import CovarianceError

X = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def sngp(**options: Any) -> SNGP:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(1)
    return SNGP(network, **{"num_inducing": 16, "kernel_scale": 2.0, "generator": generator, **options})


def test_it_is_the_scaled_sum_of_the_sample() -> None:
    method, plain = sngp(), sngp()
    method.fit_covariance((X, Y), num_inputs=150, seed=3)
    assert method.covariance_state == "fitted"
    assert float(method.gp.laplace.num_seen) == 600
    chosen = torch.randperm(600, generator=torch.Generator().manual_seed(3))[:150]
    plain.start_from_classifier((X, Y))
    plain.fit_covariance(X[chosen])
    torch.testing.assert_close(method.gp.laplace.data_precision, 4 * plain.gp.laplace.data_precision)


def test_over_seeds_it_is_the_exact_one_on_average() -> None:
    method = sngp()
    method.fit_covariance((X, Y))
    exact = method.gp.laplace.data_precision
    total = torch.zeros_like(exact)
    for seed in range(60):
        method.fit_covariance((X, Y), num_inputs=60, seed=seed)
        total += method.gp.laplace.data_precision
    assert float((total / 60 - exact).norm() / exact.norm()) < 0.06  # of 60 samples of 60


def test_of_all_inputs_it_is_exact_to_the_bit() -> None:
    one, other = sngp(), sngp()
    one.fit_covariance((X, Y))
    other.fit_covariance((X, Y), num_inputs=600)
    assert torch.equal(one.gp.precision, other.gp.precision)


def test_a_few_times_as_many_as_features_predict_alike() -> None:
    method = sngp()
    method.fit_covariance((X, Y))
    exact = method.predict((X, Y))
    method.fit_covariance((X, Y), num_inputs=128)
    sample = method.predict((X, Y))
    assert abs(nll(exact) - nll(sample)) < 1e-2
    assert float((exact.probs - sample.probs).abs().max()) < 0.05


def test_a_shuffled_loader_is_chosen_from() -> None:
    method, expected = sngp(), sngp()
    method.fit_covariance(DataLoader(TensorDataset(X, Y), batch_size=50, shuffle=True), num_inputs=100)
    expected.fit_covariance((X, Y), num_inputs=100)
    torch.testing.assert_close(method.gp.precision, expected.gp.precision)


def test_neighbours_are_those_of_the_sample() -> None:
    method = sngp(ood_score="knn")
    method.fit_covariance((X, Y), num_inputs=100)
    assert method.neighbors is not None
    assert len(method.neighbors.inputs) == 100


def stream() -> Any:
    def give() -> Any:
        yield X
        yield X

    return give()


def test_a_stream_is_refused_and_leaves_the_covariance_as_it_was() -> None:
    method = sngp()
    method.fit_covariance(X)
    before: Tensor = method.gp.precision
    with pytest.raises(ValueError, match="no sample can be chosen"):
        method.fit_covariance(stream(), num_inputs=10)
    assert torch.equal(method.gp.precision, before)
    with pytest.raises(CovarianceError, match="momentum"):
        sngp(momentum=0.9).fit_covariance(X, num_inputs=10)
