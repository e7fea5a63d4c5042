import numpy as np
import pytest
import torch

from hesitant.plots import score_histogram


def percentages(ax):
    return [patch.get_data().values for patch in ax.patches if patch.get_label() != "_face"]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


SCORES = {
    "unit": (np.linspace(0, 1, 50), np.array([0.0, 1.0, 1.0 + 1e-7])),
    "twenty-decades": (np.geomspace(1e-20, 1, 500), np.array([0.0, 1e-3, 1.0])),
    "negative": (np.linspace(-30, -1, 70), np.array([-3.0, 5.0])),
    "far-away": (np.r_[np.linspace(0, 1, 5000), 1e9], np.linspace(0, 2, 40)),
    "infinite": (np.array([-np.inf, 0.0, 1.0]), np.array([2.0, np.inf])),
    "all-equal": (np.full(9, 0.25), np.full(3, 0.25)),
    "all-zero": (np.zeros(9), np.zeros(3)),
    "one-each": (np.array([0.1]), np.array([0.2])),
}


@pytest.mark.parametrize("name", SCORES)
def test_heights_are_per_cent_of_each_group_and_nothing_is_lost(ax, name):
    for num_bins in (1, 10, 37):
        ax.clear()
        score_histogram(*SCORES[name], ax, num_bins=num_bins)
        assert [heights.sum() for heights in percentages(ax)] == pytest.approx([100.0, 100.0])


def test_heights_agree_with_numpy_within_limits(ax):
    known, new = np.random.default_rng(0).random(300), np.random.default_rng(1).random(200)
    score_histogram(known, new, ax, num_bins=20, limits=(0.0, 1.0))
    for values, heights in zip((known, new), percentages(ax), strict=True):
        assert heights == pytest.approx(100 * np.histogram(values, 20, (0, 1))[0] / len(values))


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("unit", "linear"),
        ("twenty-decades", "log"),
        ("negative", "linear"),
        ("far-away", "linear"),
        ("all-zero", "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_most_scores_span_decades(ax, name, scale):
    assert score_histogram(*SCORES[name], ax).get_xscale() == scale


def test_bins_of_twenty_decades_are_of_equal_width_in_the_logarithm(ax):
    score_histogram(*SCORES["twenty-decades"], ax, num_bins=20)
    assert np.diff(np.log10(ax.patches[0].get_data().edges)) == pytest.approx(1.0)
    assert percentages(ax)[0] == pytest.approx(5.0, abs=0.25)


def test_one_score_far_away_does_not_set_the_scale_and_the_label_says_where_it_is(ax):
    score_histogram(*SCORES["far-away"], ax, label="variance")
    assert ax.get_xlim() == (0.0, 2.0)
    assert ax.get_xlabel().splitlines() == ["variance", "the outermost bins hold all scores beyond"]
    ax.clear()
    score_histogram([0.1, 0.2], [0.9], ax, label="variance")
    assert ax.get_xlabel() == "variance"


@pytest.mark.parametrize(
    ("threshold", "shares"),
    [
        (0.25, ("50.0 %", "100.0 %")),
        (0.3, ("50.0 %", "100.0 %")),
        (-1.0, ("100.0 %", "100.0 %")),
        (2.0, ("0.0 %",) * 2),
    ],
)
def test_the_legend_has_the_shares_handed_over(ax, threshold, shares):
    # A score of exactly the threshold is handed over, as by DeferralPolicy.
    score_histogram(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.8, 0.9]), ax, threshold=threshold)
    known, new, line = legend(ax)
    assert (known, new) == (f"in-domain: {shares[0]} handed over", f"out-of-domain: {shares[1]} handed over")
    assert line == f"threshold {threshold:.3g}"
    assert set(ax.lines[0].get_xdata()) == {threshold}
    assert ax.get_xlim()[0] <= threshold <= ax.get_xlim()[1]


def test_shares_that_round_to_none_or_all_do_not_read_so(ax):
    many = np.zeros(10_000)
    many[0] = 1.0
    score_histogram(many, 1 - many, ax, threshold=0.5)
    assert legend(ax)[:2] == ["in-domain: < 0.1 % handed over", "out-of-domain: > 99.9 % handed over"]


def test_a_threshold_outside_the_limits_is_drawn_at_their_end(ax):
    score_histogram([0.1], [0.2], ax, limits=(0.0, 1.0), threshold=float("inf"))
    assert set(ax.lines[0].get_xdata()) == {1.0}


def test_groups_are_told_apart_without_colour_and_called_as_they_are(ax):
    score_histogram([0.1], [0.9], ax, names=("held-out", "never seen"))
    assert len({patch.get_hatch() for patch in ax.patches}) == 2
    assert legend(ax) == ["held-out", "never seen"]
    assert score_histogram([0.1], [0.9], ax.figure.add_subplot(), names=None).get_legend() is None


def test_takes_tensors_and_a_million_scores(ax):
    scores = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))
    score_histogram(scores, scores.half(), ax, num_bins=10, limits=(0.0, 1.0))
    assert percentages(ax)[0] == pytest.approx(10.0, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_domain_scores": []}, r"in_domain_scores has shape \(0,\)"),
        ({"ood_scores": [0.1, float("nan")]}, r"ood_scores\[1\] is nan"),
        ({"num_bins": 0}, "num_bins is 0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"limits": (1.0, 0.0)}, r"limits is \(1.0, 0.0\)"),
        ({"limits": (0.0, 1.0), "log": True}, "expected two positive numbers"),
        ({"in_domain_scores": [-1.0], "log": True}, "log is True, but a score is negative"),
        ({"in_domain_scores": [0.0], "ood_scores": [0.0], "log": True}, "no score is positive"),
        ({"in_domain_scores": [float("inf")], "ood_scores": [float("inf")]}, "no score is finite"),
    ],
    ids=["empty", "nan", "bins", "threshold", "limits", "log-limits", "log-negative", "log-zero", "infinite"],
)
def test_errors_name_what_is_wrong_and_leave_the_axes_as_they_were(ax, arguments, message):
    with pytest.raises(ValueError, match=message):
        score_histogram(**{"in_domain_scores": [0.1], "ood_scores": [0.9], **arguments}, ax=ax)
    assert not ax.has_data()


def test_hatching_has_no_face_of_its_own_which_an_svg_would_hide_it_by(ax):
    score_histogram(np.zeros(10), np.ones(10), ax)
    (hatched,) = [patch for patch in ax.patches if patch.get_hatch()]
    assert hatched.get_facecolor()[3] == 0
