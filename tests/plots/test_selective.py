import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from hesitant import Prediction
from hesitant.evaluation import aurc, risk_coverage
from hesitant.plots import risk_coverage_curves, short
from hesitant.plots.selective import thinned
from hesitant.prediction import UnavailableError


def line(ax, start):
    (found,) = [each for each in ax.lines if each.get_label().startswith(start)]
    return found


def test_the_curve_goes_through_every_threshold_and_the_legend_has_the_aurc(ax, answers):
    prediction = answers(300)
    risk_coverage_curves({"SNGP": prediction}, ax, score="predictive_entropy")
    curve = risk_coverage(prediction, score="predictive_entropy")
    drawn = line(ax, "SNGP")
    places = np.searchsorted(drawn.get_xdata(), curve.coverage.numpy())
    assert drawn.get_xdata()[places] == pytest.approx(curve.coverage.numpy())
    assert drawn.get_ydata()[places] == pytest.approx(curve.risk.numpy())
    assert drawn.get_label() == f"SNGP, AURC {short(curve.aurc, 4)}"
    assert drawn.get_label() in [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("num_scores", [1, 2, 7])
def test_where_scores_are_equal_the_area_below_the_curve_is_still_the_aurc(ax, num_scores):
    generator = torch.Generator().manual_seed(0)
    confidence = torch.linspace(0.6, 0.9, num_scores, dtype=torch.float64)
    chosen = confidence[torch.randint(num_scores, (2000,), generator=generator)]
    targets = torch.bernoulli(1 - chosen, generator=generator).long()
    prediction = Prediction(torch.stack([chosen, 1 - chosen], dim=1), targets=targets)
    drawn = line(risk_coverage_curves({"SNGP": prediction}, ax), "SNGP")
    coverage, risk = drawn.get_data()
    area = (np.diff(coverage) * (risk[1:] + risk[:-1]) / 2).sum()
    assert area == pytest.approx(aurc(prediction), abs=1e-3)
    if num_scores == 1:
        assert np.ptp(drawn.get_ydata()) < 1e-12  # a score that says nothing leaves the error rate as it is


def test_the_best_order_makes_no_error_until_only_errors_are_left(ax):
    # Eight right answers of ten: the best order answers these first.
    confidence = torch.linspace(0.9, 0.6, 10, dtype=torch.float64)
    targets = torch.tensor([0] * 8 + [1] * 2)
    prediction = Prediction(torch.stack([confidence, 1 - confidence], dim=1), targets=targets)
    risk_coverage_curves({"SNGP": prediction}, ax)
    best = line(ax, "_best of SNGP").get_xydata()
    assert best[best[:, 0] <= 0.8, 1].max() == 0.0
    assert best[:, 1] == pytest.approx(np.maximum(0.0, 1 - 0.8 / best[:, 0]))
    # This order is the best one, so the curve touches it at each threshold.
    curve = risk_coverage(prediction)
    assert np.interp(curve.coverage, *best.T) == pytest.approx(curve.risk.numpy(), abs=1e-3)


def test_no_curve_falls_below_the_best_order_of_its_errors(ax, answers):
    predictions = {f"method {seed}": answers(400, seed=seed) for seed in range(3)}
    risk_coverage_curves(predictions, ax)
    for name in predictions:
        best = line(ax, f"_best of {name}").get_xydata()
        drawn = line(ax, f"{name},").get_xydata()
        assert (np.interp(best[:, 0], *drawn.T) >= best[:, 1] - 1e-3).all()


def test_methods_differ_in_colour_line_and_marker(ax, answers):
    predictions = {f"method {place}": answers(50, seed=place) for place in range(5)}
    risk_coverage_curves(predictions, ax)
    curves = [line(ax, f"{name},") for name in predictions]
    assert len({to_hex(curve.get_color()) for curve in curves}) == 5
    assert len({curve.get_marker() for curve in curves}) == 5
    assert len({str(curve._unscaled_dash_pattern) for curve in curves}) == 5


def test_of_many_methods_no_two_look_the_same(ax, answers):
    prediction = answers(50)
    risk_coverage_curves({f"method {place}": prediction for place in range(20)}, ax)
    curves = [line(ax, f"method {place},") for place in range(20)]
    assert len({(to_hex(curve.get_color()), str(curve._unscaled_dash_pattern)) for curve in curves}) == 20


def test_the_risk_that_is_allowed_is_a_line_and_within_the_picture(ax, answers):
    risk_coverage_curves({"SNGP": answers()}, ax, max_risk=0.95)
    assert set(line(ax, "max risk 0.95").get_ydata()) == {0.95}
    assert ax.get_ylim()[1] > 0.95


def test_one_early_error_does_not_press_the_curve_to_the_ground(ax):
    confidence = torch.linspace(1 - 1e-6, 0.6, 1000, dtype=torch.float64)
    targets = torch.zeros(1000, dtype=torch.long)
    targets[0] = targets[-5:] = 1
    prediction = Prediction(torch.stack([confidence, 1 - confidence], dim=1), targets=targets)
    drawn = line(risk_coverage_curves({"SNGP": prediction}, ax), "SNGP")
    assert drawn.get_ydata().max() == 1.0
    assert ax.get_ylim()[1] < 0.02


@pytest.mark.parametrize("errors", ["none", "all"])
def test_perfect_and_worst_predictions_are_drawn(ax, answers, errors):
    prediction = answers()
    targets = prediction.labels if errors == "none" else (prediction.labels + 1) % 4
    drawn = line(risk_coverage_curves({"SNGP": prediction}, ax, targets=targets), "SNGP")
    risk = 0.0 if errors == "none" else 1.0
    assert drawn.get_ydata() == pytest.approx(risk)
    assert ax.get_ylim()[0] < risk < ax.get_ylim()[1]
    assert line(ax, "_best").get_ydata() == pytest.approx(risk)


def test_thinning_keeps_all_that_a_picture_of_so_many_columns_shows():
    generator = np.random.default_rng(0)
    x = np.sort(generator.random(50_000))
    y = generator.normal(size=50_000)
    kept_x, kept_y = thinned(x, y, columns=500)
    assert len(kept_x) <= 4 * 500
    assert (np.diff(kept_x) > 0).all()
    for column in range(500):
        all_of, kept = ((where * 500).astype(int) == column for where in (x, kept_x))
        assert (y[all_of].min(), y[all_of].max()) == (kept_y[kept].min(), kept_y[kept].max())
        assert (x[all_of].min(), x[all_of].max()) == (kept_x[kept].min(), kept_x[kept].max())


def test_few_points_are_not_thinned():
    x = np.linspace(0, 1, 100)
    assert thinned(x, x**2)[0] is x


def test_a_million_inputs_are_drawn_with_as_many_points_as_a_picture_can_show(ax, answers):
    prediction = answers(1_000_000, num_classes=3)
    drawn = line(risk_coverage_curves({"SNGP": prediction}, ax), "SNGP")
    ax.figure.draw_without_rendering()
    assert len(drawn.get_xdata()) < 20_000
    assert drawn.get_label().endswith(short(aurc(prediction), 4))  # the curve is thinned, its figures are not


def test_errors_say_what_to_pass(ax, answers):
    with pytest.raises(TypeError, match="predictions is a Prediction, expected a dict"):
        risk_coverage_curves(answers(), ax)
    with pytest.raises(ValueError, match="predictions is empty"):
        risk_coverage_curves({}, ax)
    with pytest.raises(ValueError, match=r"max_risk is 1\.5"):
        risk_coverage_curves({"SNGP": answers()}, ax, max_risk=1.5)
    with pytest.raises(UnavailableError, match="mutual_information"):
        risk_coverage_curves({"SNGP": answers()}, ax, score="mutual_information")
    assert not ax.has_data()
