import json

import pytest
from matplotlib.image import imread

from hesitant.demos.digits import SNGP_SETTINGS, run_digits


@pytest.fixture(scope="module")
def result(tmp_path_factory, small_demos):
    return run_digits(seed=1, epochs=2, out=tmp_path_factory.mktemp("digits"), progress=False)


def test_writes_a_picture_of_a_talks_size(result):
    height, width = imread(result.files["png"]).shape[:2]
    assert width >= 1920
    assert height >= 900


def test_writes_a_report_that_shows_scans_as_pictures(result):
    page = result.files["html"].read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 24
    assert "digits 8 and 9" in page


def test_json_has_settings_and_every_method(result):
    content = json.loads(result.files["json"].read_text(encoding="utf-8"))
    assert content["demo"] == "digits"
    assert content["settings"]["sngp"] == SNGP_SETTINGS
    assert content["settings"]["out_of_domain_scans"] == 354
    assert list(content["methods"]) == ["deterministic", "mc-dropout", "ensemble", "sngp"]
    assert all(figures["u_corners"] is None for figures in content["methods"].values())


@pytest.mark.slow
def test_eights_and_nines_are_noticed():
    sngp = run_digits(["sngp"], seed=0, progress=False).methods["sngp"]
    assert sngp.accuracy >= 0.96
    assert sngp.auroc >= 0.9
    assert sngp.u_ood > 3 * sngp.u_held_out
