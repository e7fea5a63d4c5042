import json

import numpy as np
import pytest

from hesitant.cli.evaluate_files import evaluate_files
from hesitant.evaluation.deferral.policy import DeferralPolicy

WRITTEN = {"report.html", "comparison.json", "policy.json"}


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    draws = np.random.default_rng(0)
    targets = np.arange(900) % 3
    path = tmp_path_factory.mktemp("predictions") / "sngp.npz"
    np.savez(path, logits=draws.normal(size=(900, 3)) + 6 * np.eye(3)[targets], targets=targets)
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_writes_three_files_and_no_other(predictions, tmp_path):
    result = evaluate_files([predictions], tmp_path, max_risk=0.04)
    assert {path.name for path in result.files} == set(content(tmp_path)) == WRITTEN
    assert DeferralPolicy.load(tmp_path / "policy.json").max_risk == 0.04
    assert json.loads((tmp_path / "comparison.json").read_text())["recommendation"]["method"] == "sngp"


@pytest.mark.parametrize(
    "options",
    [{"class_names": ["one"]}, {"max_risk": 3.0}, {"score": "mutual_information"}, {"names": ["a", "b"]}],
    ids=["classes", "risk", "score", "names"],
)
def test_a_mistake_leaves_all_that_an_earlier_run_wrote(options, predictions, tmp_path):
    evaluate_files([predictions], tmp_path, max_risk=0.04)
    before = content(tmp_path)
    with pytest.raises((ValueError, RuntimeError)):
        evaluate_files([predictions], tmp_path, **{"max_risk": 0.04, **options})
    assert content(tmp_path) == before


def test_an_interrupted_run_leaves_no_policy_beside_a_page_that_it_does_not_belong_to(
    predictions, tmp_path, monkeypatch
):
    evaluate_files([predictions], tmp_path, max_risk=0.04)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hesitant.cli.evaluate_files.json.dumps", interrupted)
    before = content(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate_files([predictions], tmp_path, max_risk=0.05)
    assert content(tmp_path).keys() <= before.keys()
    assert "policy.json" not in content(tmp_path)
