import math

import numpy as np
import pytest
import torch
from torch import nn

import hesitant
from hesitant import Prediction
from hesitant.evaluation import uncertainty
from hesitant.plots import model_surface, uncertainty_surface
from hesitant.prediction import UnavailableError

EXTENT = (-3.0, 3.0, 10.0, 30.0)
MEDIANS = [1.0, 2.0, 3.0, 4.0]


class Noting:
    """A model of four features whose answer tells them apart, and which keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def predict(self, inputs):
        self.asked.append(inputs)
        return Prediction.from_logits(inputs @ torch.tensor([[1.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.5, 0.2]]))


def test_the_two_features_span_the_plane_and_the_others_are_held(ax):
    model = Noting()
    uncertainty_surface(model, ax, extent=EXTENT, features=(3, 1), at=MEDIANS, resolution=5)
    (inputs,) = model.asked
    assert inputs.dtype == torch.float32
    assert inputs.shape == (25, 4)
    assert inputs[:, [0, 2]].unique(dim=0).tolist() == [[1.0, 3.0]]
    grid = inputs.reshape(5, 5, 4)
    # The middles of the cells: rows from the bottom up, columns from left to right.
    assert grid[0, :, 3].tolist() == pytest.approx([-2.4, -1.2, 0.0, 1.2, 2.4], abs=1e-6)
    assert grid[:, 0, 1].tolist() == pytest.approx([12.0, 16.0, 20.0, 24.0, 28.0])


@pytest.mark.parametrize("score", ["confidence", "predictive_entropy", "dempster_shafer", "energy"])
def test_draws_the_score_of_the_evaluation_where_it_belongs(ax, score):
    model = Noting()
    image = uncertainty_surface(
        model, ax, extent=EXTENT, features=(0, 1), at=MEDIANS, score=score, resolution=7
    ).images[-1]
    expected = uncertainty(model.predict(model.asked[0]), score).reshape(7, 7)
    assert np.array_equal(image.get_array(), expected)
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == EXTENT


def test_large_planes_are_asked_for_in_parts_to_the_same_picture(ax, monkeypatch):
    whole = uncertainty_surface(Noting(), ax, extent=EXTENT, at=MEDIANS, resolution=9).images[-1].get_array()
    monkeypatch.setattr(model_surface, "MOST_NUMBERS", 100)
    model = Noting()
    parts = uncertainty_surface(model, ax, extent=EXTENT, at=MEDIANS, resolution=9).images[-1].get_array()
    assert len(model.asked) == 5
    assert max(inputs.numel() for inputs in model.asked) <= 100
    assert np.array_equal(parts, whole)


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("score", ["confidence", "predictive_entropy"])
def test_pictures_of_several_models_have_one_scale(ax, num_classes, score):
    def undecided(inputs):
        return Prediction.from_logits(torch.zeros(len(inputs), num_classes))

    image = uncertainty_surface(undecided, ax, extent=EXTENT, score=score, resolution=3).images[-1]
    assert image.get_clim() == (0.0, 1 - 1 / num_classes if score == "confidence" else math.log(num_classes))
    assert image.get_array().data == pytest.approx(image.get_clim()[1])


def test_an_energy_is_drawn_over_all_that_is_seen_and_limits_may_be_given(ax):
    image = uncertainty_surface(Noting(), ax, extent=EXTENT, at=MEDIANS, score="energy", resolution=4).images[-1]
    assert image.get_clim() == (image.get_array().min(), image.get_array().max())
    drawn = uncertainty_surface(Noting(), ax, extent=EXTENT, at=MEDIANS, score="energy", limits=(-50, 0), resolution=4)
    assert drawn.images[-1].get_clim() == (-50, 0)


def test_axes_and_colour_bar_say_what_they_are(ax):
    uncertainty_surface(Noting(), ax, extent=EXTENT, features=(3, 1), at=MEDIANS, resolution=2, title="SNGP")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("feature 3", "feature 1", "SNGP")
    assert [bar.get_ylabel() for bar in ax.child_axes] == ["1 - confidence"]
    other = ax.figure.add_subplot()
    assert uncertainty_surface(Noting(), other, extent=EXTENT, at=MEDIANS, resolution=2, label="").child_axes == []


def test_draws_every_method(ax):
    def network():
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 2, generator=generator)
    sngp = hesitant.SNGP(network(), num_inducing=32, norm_bound=6.0, generator=generator)
    sngp.fit_covariance(torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long()))
    scores = {
        "confidence": hesitant.Deterministic(network()),
        "mutual_information": hesitant.DeepEnsemble([network(), network()]),
        "logit_variance": sngp,
    }
    for score, model in scores.items():
        drawn = uncertainty_surface(model, ax, extent=(-3, 3, -3, 3), score=score, resolution=6)
        assert np.isfinite(drawn.images[-1].get_array()).all()
    dropout = hesitant.MCDropout(network(), num_samples=3)
    first, second = (
        uncertainty_surface(lambda x: dropout.predict(x, seed=0), ax, extent=(-3, 3, -3, 3), resolution=6).images[-1]
        for _ in range(2)
    )
    assert np.array_equal(first.get_array(), second.get_array())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extent": (1.0, 0.0, 0.0, 1.0)}, "left < right"),
        ({"extent": (0.0, math.inf, 0.0, 1.0)}, "left < right"),
        ({"resolution": 1}, "resolution is 1"),
        ({"features": (0, 0)}, "expected two different ones of the 4"),
        ({"features": (0, 4)}, "expected two different ones of the 4"),
        ({"features": (0, -1)}, "expected two different ones of the 4"),
        ({"features": (0, 2), "at": None}, "pass at="),
        ({"at": [[1.0, 2.0]]}, r"at has shape \(1, 2\)"),
        ({"at": [1.0, math.nan]}, "1 numbers that are not finite"),
    ],
    ids=["order", "infinite", "resolution", "same", "beyond", "negative", "no-at", "matrix", "nan"],
)
def test_errors_name_what_is_wrong(ax, arguments, message):
    with pytest.raises(ValueError, match=message):
        uncertainty_surface(Noting(), ax, **{"extent": EXTENT, "at": MEDIANS, **arguments})
    assert not ax.has_data()


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "sngp"], ids=["plain", "name"])
def test_what_does_not_answer_with_a_prediction_says_what_to_wrap_it_in(ax, model):
    with pytest.raises(TypeError, match=r"expected a Prediction: wrap a plain network, hesitant\.Deterministic"):
        uncertainty_surface(model, ax, extent=EXTENT)


def test_a_score_that_the_method_does_not_have_is_an_error(ax):
    with pytest.raises(UnavailableError, match="logit_variance"):
        uncertainty_surface(Noting(), ax, extent=EXTENT, at=MEDIANS, score="logit_variance")
    assert not ax.has_data()
