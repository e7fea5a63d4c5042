import json
import math

import pytest
from matplotlib.image import imread

from hesitant.demos.two_moons import SNGP_SETTINGS, run_two_moons


@pytest.fixture(scope="module")
def result(tmp_path_factory, small_demos):
    folder = tmp_path_factory.mktemp("two_moons")
    return run_two_moons(seed=1, epochs=2, out=folder, progress=False)


def test_writes_a_picture_of_a_talks_size(result):
    picture = imread(result.files["png"])
    height, width = picture.shape[:2]
    assert width >= 1920
    assert height >= 900
    assert picture[..., :3].std() > 0.1


def test_writes_a_report_that_shows_points_as_rows(result):
    page = result.files["html"].read_text(encoding="utf-8")
    assert all(figures.name in page for figures in result.methods.values())
    assert '<th scope="col">x</th><th scope="col">y</th>' in page
    assert "far cloud" in page
    assert "upper moon" in page


def test_json_has_settings_versions_and_every_method(result):
    content = json.loads(result.files["json"].read_text(encoding="utf-8"))
    assert content["demo"] == "two-moons"
    assert (content["seed"], content["epochs"], content["device"]) == (1, 2, "cpu")
    assert content["settings"]["sngp"] == SNGP_SETTINGS
    assert content["settings"]["training_points"] == 1000
    assert list(content["methods"]) == ["deterministic", "mc-dropout", "ensemble", "sngp"]
    for figures in content["methods"].values():
        for name in ("accuracy", "ece", "u_training", "u_held_out", "u_ood", "u_corners", "auroc"):
            assert 0 <= figures[name] <= 1, name
        for name in ("nll", "training_loss", "training_seconds", "predict_milliseconds"):
            assert figures[name] > 0, name
            assert math.isfinite(figures[name]), name


def test_only_a_method_with_a_variance_reports_one(result):
    assert result.methods["deterministic"].variance_ood is None
    sngp = result.methods["sngp"]
    assert 0 <= sngp.variance_held_out < sngp.variance_ood


def test_a_method_answers_alike_whichever_others_take_part(result):
    alone = run_two_moons(["sngp"], seed=1, epochs=2, progress=False)
    assert list(alone.methods) == ["sngp"]
    assert alone.methods["sngp"].nll == pytest.approx(result.methods["sngp"].nll, rel=1e-4)
    assert alone.files == {}


def test_the_seed_matters(result):
    other = run_two_moons(["deterministic"], seed=2, epochs=2, progress=False)
    assert other.methods["deterministic"].nll != result.methods["deterministic"].nll


@pytest.mark.slow
def test_with_the_demos_own_settings_sngp_knows_what_it_does_not_know_and_the_report_recommends_it(tmp_path):
    result = run_two_moons(["deterministic", "sngp"], seed=0, out=tmp_path, progress=False)
    plain, sngp = result.methods["deterministic"], result.methods["sngp"]
    assert plain.auroc < 0.5
    assert sngp.auroc >= 0.999
    assert sngp.u_ood >= 0.98
    assert sngp.accuracy >= 0.995
    assert sngp.nll <= 0.015
    assert "Use SNGP: it answers 9" in result.files["html"].read_text(encoding="utf-8")
