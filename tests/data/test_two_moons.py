import math

import pytest
import torch
from sklearn.datasets import make_moons

from hesitant.data import two_moons, two_moons_grid, two_moons_ood


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_points", [2, 7, 1000])
def test_without_noise_the_points_are_scikit_learns_shifted(num_points):
    inputs, targets = two_moons(num_points, noise=0, generator=seeded())
    points, classes = make_moons(num_points, shuffle=False)
    points[classes == 0] += [-0.1, 0.2]
    points[classes == 1] += [0.1, -0.2]
    for label in (0, 1):
        ours = inputs[targets == label]
        ours = ours[ours[:, 0].argsort()]
        theirs = torch.from_numpy(points[classes == label]).float()
        theirs = theirs[theirs[:, 0].argsort()]
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_noise_has_its_standard_deviation():
    generator = seeded()
    state = generator.get_state()
    clean = two_moons(20_000, noise=0, generator=generator)
    generator.set_state(state)  # the same order and the same noise, once at 0 and once at 0.1
    noisy = two_moons(20_000, noise=0.1, generator=generator)
    noise = noisy.inputs - clean.inputs
    assert torch.equal(noisy.targets, clean.targets)
    assert noise.mean().abs() < 0.002
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)


def test_classes_are_balanced_and_shuffled():
    moons = two_moons(generator=seeded())
    assert moons.inputs.shape == (1000, 2)
    assert moons.inputs.dtype == torch.float32
    assert moons.targets.dtype == torch.int64
    assert moons.targets.bincount().tolist() == [500, 500]
    assert 150 < moons.targets[:500].sum() < 350


def test_out_of_domain_points_are_the_tutorials_cloud():
    points = two_moons_ood(20_000, generator=seeded())
    assert points.dtype == torch.float32
    torch.testing.assert_close(points.mean(dim=0), torch.tensor([2.5, -1.75]), atol=0.005, rtol=0)
    torch.testing.assert_close(points.T.cov(), 0.01 * torch.eye(2), atol=0.0005, rtol=0)
    assert two_moons_ood(generator=seeded()).shape == (500, 2)


def test_no_out_of_domain_point_lies_among_the_moons():
    distances = torch.cdist(two_moons_ood(generator=seeded()), two_moons(generator=seeded(1)).inputs)
    assert distances.min() > 0.5


def test_the_grid_is_a_picture_from_its_lower_left():
    grid = two_moons_grid(5)
    picture = grid.reshape(5, 5, 2)
    assert grid.dtype == torch.float32
    assert picture[0, 0].tolist() == [-3.5, -2.5]
    assert picture[0, -1].tolist() == [3.5, -2.5]
    assert picture[-1, 0].tolist() == [-3.5, 2.5]
    assert picture[2, 2].tolist() == [0, 0]
    assert two_moons_grid().shape == (10_000, 2)


def test_a_seed_decides_and_the_global_generator_is_untouched():
    state = torch.get_rng_state()
    assert torch.equal(two_moons(50, generator=seeded(3)).inputs, two_moons(50, generator=seeded(3)).inputs)
    assert not torch.equal(two_moons(50, generator=seeded(3)).inputs, two_moons(50, generator=seeded(4)).inputs)
    assert torch.equal(two_moons_ood(50, generator=seeded(3)), two_moons_ood(50, generator=seeded(3)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: two_moons(1, generator=seeded()), "num_points=1"),
        (lambda: two_moons(noise=-0.1, generator=seeded()), "noise=-0.1"),
        (lambda: two_moons(noise=math.nan, generator=seeded()), "noise=nan"),
        (lambda: two_moons(noise=math.inf, generator=seeded()), "noise=inf"),
        (lambda: two_moons_ood(0, generator=seeded()), "num_points=0"),
        (lambda: two_moons_grid(1), "resolution=1"),
    ],
)
def test_errors_name_the_argument_and_the_value(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
