import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from hesitant import Prediction
from hesitant.evaluation import adaptive_ece, ece, reliability
from hesitant.plots import reliability_diagram, short
from hesitant.plots.calibration import STRIP


def bars(ax, label):
    (container,) = [each for each in ax.containers if each.get_label() == label]
    return container.patches


def test_bars_are_the_accuracies_and_gaps_end_at_the_mean_confidence(ax, answers):
    prediction = answers()
    bins = reliability(prediction)
    filled = bins.counts > 0
    assert 0 < int((~filled).sum()) < 15  # some bins are empty, as four classes leave no confidence below 1/4
    reliability_diagram(prediction, ax)
    accuracy, gaps = bars(ax, "accuracy"), bars(ax, "gap")
    assert [bar.get_height() for bar in accuracy] == bins.accuracy[filled].tolist()
    assert [bar.get_x() for bar in accuracy] == bins.edges[:-1][filled].tolist()
    assert [gap.get_y() for gap in gaps] == bins.accuracy[filled].tolist()
    assert [gap.get_y() + gap.get_height() for gap in gaps] == pytest.approx(bins.confidence[filled].tolist())


def test_counts_stand_below_in_proportion_and_in_numbers(ax, answers, words):
    prediction = answers()
    counts = reliability(prediction).counts
    counts = counts[counts > 0]
    reliability_diagram(prediction, ax)
    heights = np.array([bar.get_height() for bar in bars(ax, "_counts")])
    assert heights / heights.sum() == pytest.approx((counts / counts.sum()).numpy())
    assert all(bar.get_y() == -STRIP for bar in bars(ax, "_counts"))
    assert all(bar.get_y() + bar.get_height() < 0 for bar in bars(ax, "_counts"))
    assert {str(int(count)) for count in counts} <= set(words(ax).splitlines())


def test_an_empty_bin_has_nothing_and_an_accuracy_of_zero_is_not_empty(ax):
    prediction = Prediction(torch.tensor([[0.95, 0.05], [0.65, 0.35]]), targets=[1, 0])
    reliability_diagram(prediction, ax, num_bins=10)
    assert [bar.get_x() for bar in bars(ax, "accuracy")] == [0.6, 0.9]
    assert [bar.get_height() for bar in bars(ax, "accuracy")] == [1.0, 0.0]
    assert [bar.get_height() for bar in bars(ax, "gap")] == pytest.approx([-0.35, 0.95])


@pytest.mark.parametrize("adaptive", [False, True], ids=["equal-width", "adaptive"])
@pytest.mark.parametrize("num_bins", [1, 7, 40])
def test_the_ece_is_that_of_the_evaluation(ax, answers, adaptive, num_bins):
    prediction = answers(1234)
    value = (adaptive_ece if adaptive else ece)(prediction, num_bins=num_bins)
    reliability_diagram(prediction, ax, num_bins=num_bins, adaptive=adaptive, title="SNGP")
    heading = f"{'adaptive ' if adaptive else ''}ECE {short(value, 3)}, 1,234 inputs"
    assert ax.get_title() == f"SNGP\n{heading}"


def test_adaptive_bins_are_points_whose_gaps_end_on_the_diagonal(ax, answers, words):
    prediction = answers(600)
    bins = reliability(prediction, adaptive=True)
    reliability_diagram(prediction, ax, adaptive=True)
    (dots,) = [line for line in ax.lines if line.get_label() == "accuracy"]
    assert dots.get_xydata().tolist() == torch.stack([bins.confidence, bins.accuracy], dim=1).tolist()
    (gaps,) = [each for each in ax.collections if each.get_label() == "gap"]
    ends = np.array([segment for segment in gaps.get_segments()])  # (bins, 2, 2)
    assert ends[:, 1, 0].tolist() == ends[:, 1, 1].tolist() == bins.confidence.tolist()
    assert "15 bins of 40" in words(ax)


def test_adaptive_bins_of_equal_confidences_say_how_few_they_are(ax, words):
    reliability_diagram(Prediction(torch.tensor([[0.9, 0.1]] * 50), targets=[0] * 50), ax, adaptive=True)
    assert "1 bin of 50" in words(ax)


def test_targets_may_be_given(ax, answers):
    prediction = answers()
    reliability_diagram(prediction, ax, targets=prediction.labels)
    assert all(bar.get_height() == 1.0 for bar in bars(ax, "accuracy"))


def test_gaps_differ_from_bars_without_colour(ax, answers):
    reliability_diagram(answers(), ax)
    accuracy, gap = bars(ax, "accuracy")[0], bars(ax, "gap")[0]
    assert (accuracy.get_hatch(), bool(gap.get_hatch())) == (None, True)
    assert to_rgba(accuracy.get_facecolor()) != to_rgba(gap.get_facecolor())


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (1000, "1.0k"), (9_960, "10k"), (999_499, "999k"), (999_500, "1.0M")]
)
def test_great_counts_are_written_short(ax, words, count, text):
    reliability_diagram(Prediction(torch.tensor([[0.9, 0.1]]).expand(count, 2), targets=[0] * count), ax)
    assert text in words(ax).splitlines()


@pytest.mark.parametrize("size", [(6.4, 4.8), (3.0, 2.6)], ids=["usual", "small"])
def test_the_legend_hides_nothing_even_where_all_is_right(answers, size):
    figure = Figure(figsize=size, layout="constrained")
    prediction = answers()
    ax = reliability_diagram(prediction, figure.subplots(), targets=prediction.labels)
    figure.draw_without_rendering()
    bottom = ax.transData.inverted().transform(ax.get_legend().get_window_extent().min)[1]
    assert bottom >= 1.0


def test_errors_are_those_of_the_evaluation_and_leave_the_axes_as_they_were(ax, answers):
    prediction = Prediction(answers().probs)
    with pytest.raises(ValueError, match="targets is None"):
        reliability_diagram(prediction, ax)
    with pytest.raises(ValueError, match="num_bins is 0"):
        reliability_diagram(answers(), ax, num_bins=0)
    assert not ax.has_data()


def test_hatching_has_no_face_of_its_own_which_an_svg_would_hide_it_by(ax, answers):
    reliability_diagram(answers(), ax)
    assert {bar.get_hatch() for bar in bars(ax, "gap")} == {"////"}
    assert {bar.get_facecolor()[3] for bar in bars(ax, "gap")} == {0}
