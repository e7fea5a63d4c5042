"""A detector is saved with its method, comes back to the bit, and what a folder says of it is believed of no one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.detection.test_feature_detector import FAR, METHODS, OF_LOGITS, OWN, X, Y, rows

import hesitant
from hesitant import SNGP, DeferralPolicy
from hesitant.detection import DETECTORS, DetectorError, DetectorName, FeatureDetector
from hesitant.methods import SavedModelError
from hesitant.methods.saving.folder import entry_of


def saved(folder: Path, method: str = "Deterministic", name: DetectorName = "knn", **options: Any) -> FeatureDetector:
    detector = FeatureDetector(METHODS[method](), name, **options).fit((X, Y))
    detector.save_pretrained(folder)
    return detector


def has(method: str, name: str) -> bool:
    """Whether there is such a detector of such a method, and can be saved."""
    of_features = method != "DeepEnsemble" and (method != "SNGP" or name in OWN)
    return name != "ddu" and (name in OF_LOGITS or of_features)


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method in METHODS for name in DETECTORS if has(method, name)]
)
def test_it_comes_back_to_the_bit(method, name, tmp_path):
    before = saved(tmp_path, method, name)
    after = FeatureDetector.from_pretrained(tmp_path)
    assert repr(after) == repr(before)
    assert after.options == before.options
    asked, told = before.predict(FAR), after.predict(FAR)
    assert torch.equal(asked.ood_score, told.ood_score)
    assert torch.equal(asked.probs, told.probs)
    assert asked.calibration == told.calibration


def test_options_and_a_name_of_the_classifier_come_back(tmp_path):
    before = saved(tmp_path, k=3, max_inputs=40, classifier="3")
    after = FeatureDetector.from_pretrained(tmp_path)
    assert after.options == {"k": 3, "max_inputs": 40}
    assert torch.equal(after.predict(FAR).ood_score, before.predict(FAR).ood_score)


def test_a_policy_and_a_scorer_go_on_with_it(tmp_path):
    detector = FeatureDetector(METHODS["Deterministic"](), "knn").fit((X, Y))
    policy = DeferralPolicy.calibrate(detector.predict(rows(200, seed=3)), budget=0.3, guard=0.1)
    detector.save_pretrained(tmp_path, policy=policy, label_names=["a", "b", "c"])
    after = FeatureDetector.from_pretrained(tmp_path)
    assert after.method.label_names == ["a", "b", "c"]
    loaded = DeferralPolicy.load(tmp_path)
    prediction = detector.predict(FAR)
    assert torch.equal(loaded.accept(after.predict(FAR)), policy.accept(prediction))
    answers = hesitant.Scorer(tmp_path, outputs=["uncertainty", "accept", "label_name"])({"x": FAR.numpy()})
    np.testing.assert_array_equal(answers["uncertainty"], prediction.ood_score)
    np.testing.assert_array_equal(answers["accept"], policy.accept(prediction))


def test_what_cannot_be_saved_says_so_and_leaves_the_folder(tmp_path):
    with pytest.raises(DetectorError, match="is not fitted"):
        FeatureDetector(METHODS["Deterministic"](), "knn").save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    before = saved(tmp_path)
    with pytest.raises(TypeError, match="'ddu' detector cannot be saved"):
        FeatureDetector(METHODS["Deterministic"](), "ddu").fit((X, Y)).save_pretrained(tmp_path)
    assert torch.equal(FeatureDetector.from_pretrained(tmp_path).predict(FAR).ood_score, before.predict(FAR).ood_score)


def test_each_is_loaded_by_its_own_verb(tmp_path):
    saved(tmp_path / "detector")
    METHODS["SNGP"]().save_pretrained(tmp_path / "method")
    with pytest.raises(SavedModelError, match=r"holds a FeatureDetector.*from_pretrained"):
        hesitant.load(tmp_path / "detector")
    with pytest.raises(SavedModelError, match="holds a FeatureDetector"):
        SNGP.from_pretrained(tmp_path / "detector")
    with pytest.raises(SavedModelError, match=r"holds a SNGP and no detector: load it by hesitant\.load"):
        FeatureDetector.from_pretrained(tmp_path / "method")
    METHODS["SNGP"]().save_pretrained(tmp_path / "detector")  # takes the place of both
    assert isinstance(hesitant.load(tmp_path / "detector"), SNGP)


def with_says(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, dict[str, Any]], None]:
    return lambda _folder, config: change(config["detector"])


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path, dict[str, Any]], None]:
    def changed(folder: Path, config: dict[str, Any]) -> None:
        (name,) = config["weights"]["files"]
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})
        config["weights"]["files"][name] = entry_of(folder / name)

    return changed


TAMPERED: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "of another name": with_says(lambda says: says.update(name="oracle")),
    "a name that is none": with_says(lambda says: says.update(name=["knn"])),
    "no options": with_says(lambda says: says.pop("options")),
    "options that are none": with_says(lambda says: says.update(options=[])),
    "an option of another": with_says(lambda says: says.update(options={"k": 1, "percentile": 0.5})),
    "an argument among the options": with_says(lambda says: says["options"].update(example_input=[1])),
    "an option out of its range": with_says(lambda says: says["options"].update(k=-1)),
    "another classifier": with_says(lambda says: says.update(classifier="0.weight")),
    "a classifier that is no name": with_says(lambda says: says.update(classifier=3)),
    "fitted to nothing": with_says(lambda says: says.update(num_inputs=None)),
    "no dict": lambda _folder, config: config.update(detector=[1]),
    "nothing said": lambda _folder, config: config.pop("detector"),
    "no tensors": with_tensors(lambda tensors: tensors.pop("detector.inputs")),
    "another width": with_tensors(lambda tensors: tensors.update({"detector.inputs": torch.ones(120, 5)})),
    "a number": with_tensors(lambda tensors: tensors.update({"detector.inputs": torch.ones(())})),
    "another dtype": with_tensors(
        lambda tensors: tensors.update({"detector.inputs": tensors["detector.inputs"].double()})
    ),
    "infinity": with_tensors(lambda tensors: tensors["detector.inputs"][3].fill_(torch.inf)),
    "NaN": with_tensors(lambda tensors: tensors["detector.inputs"][3].fill_(torch.nan)),
    "more than is kept": with_tensors(lambda tensors: tensors.update({"detector.inputs": torch.ones(50_001, 16)})),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_what_was_changed_is_refused(change, tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SavedModelError, match=str(tmp_path)):
        FeatureDetector.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis", "vim"])
def test_tensors_of_another_shape_are_refused(name, tmp_path):
    saved(tmp_path, name=name)
    config = json.loads((tmp_path / "config.json").read_text())
    (file,) = config["weights"]["files"]
    tensors = load_file(tmp_path / file)
    for key in [key for key in tensors if key.startswith("detector.")]:
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        for others in (rest, {**rest, key: tensors[key][None]}):
            save_file(others, tmp_path / file, {"format": "pt"})
            config["weights"]["files"][file] = entry_of(tmp_path / file)
            (tmp_path / "config.json").write_text(json.dumps(config))
            with pytest.raises(SavedModelError, match="its detector is none"):
                FeatureDetector.from_pretrained(tmp_path)
