import zipfile

import numpy as np
import pytest
import torch

from hesitant.evaluation.comparison import Cost
from hesitant.evaluation.prediction_files import PredictionFile, load_predictions, require_same_sets, save_predictions
from hesitant.prediction import Prediction

PROBS = np.array([[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]])
TARGETS = np.array([1, 0, 1])


def written(path, **arrays):
    np.savez(path / "file.npz", **arrays)
    return path / "file.npz"


def test_what_is_saved_comes_back_to_the_last_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    samples = torch.softmax(40 * torch.randn(4, 5, 3, generator=generator), -1)
    logits = 30 * torch.randn(7, 3, generator=generator)
    prediction = Prediction.from_samples(samples, targets=torch.tensor([0, 1, 2, 0, 1])).with_served(
        torch.tensor([True, False, True, False, False])
    )
    other = Prediction.from_logits(logits, logit_variance=logits.square())
    cost = Cost(milliseconds=0.25, parameters=123, training_seconds=4.5)
    path = save_predictions(tmp_path / "a.npz", prediction, ood={"v1.0 a/b": other}, cost=cost)
    file = load_predictions(path)
    assert file.cost == cost
    for found, given in ((file.prediction, prediction), (file.ood["v1.0 a/b"], other)):
        assert found.available == given.available
        for name, array in given.numpy().items():
            np.testing.assert_array_equal(found.numpy()[name], array, err_msg=name)


def test_probabilities_logits_and_samples_make_the_same_prediction(tmp_path):
    plain = load_predictions(written(tmp_path, probs=PROBS, targets=TARGETS)).prediction
    logits = load_predictions(written(tmp_path, logits=np.log(PROBS), targets=TARGETS)).prediction
    binary = load_predictions(written(tmp_path, logits=np.log(PROBS[:, 1] / PROBS[:, 0]), targets=TARGETS)).prediction
    samples = load_predictions(written(tmp_path, samples=PROBS[None], targets=TARGETS)).prediction
    for other in (logits, binary, samples):
        torch.testing.assert_close(other.probs, plain.probs)


def test_targets_may_be_unsigned_and_big_endian_and_ood_targets_may_be_unknown_classes(tmp_path):
    path = written(
        tmp_path,
        probs=PROBS.astype(">f8"),
        targets=TARGETS.astype(np.uint16),
        **{"ood.far.probs": PROBS, "ood.far.targets": TARGETS + 90},
    )
    file = load_predictions(path)
    assert file.prediction.targets.tolist() == [1, 0, 1]
    assert file.ood["far"].targets is None


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"probs": PROBS}, ValueError, "targets is missing"),
        ({"targets": TARGETS}, ValueError, "none of probs, logits and samples"),
        ({"probs": PROBS, "targets": TARGETS + 7}, ValueError, r"targets\[0\] is 8"),
        ({"probs": 2 * PROBS, "targets": TARGETS}, ValueError, r"probs\[0, 1\] is 1.6"),
        ({"probs": PROBS * np.nan, "targets": TARGETS}, ValueError, "probs.* is nan"),
        ({"probs": PROBS, "targets": TARGETS / 1.0}, TypeError, "targets has dtype"),
        ({"probs": PROBS, "targets": TARGETS, "prob": PROBS}, ValueError, "'prob', which is none of probs, logits"),
        ({"samples": PROBS[None], "logits": PROBS, "targets": TARGETS}, ValueError, "logits stands beside samples"),
        ({"probs": PROBS, "targets": TARGETS, "ood.far.probs": PROBS[:, :1]}, ValueError, "ood.far.probs has shape"),
        ({"probs": PROBS, "targets": TARGETS, "parameters": TARGETS}, ValueError, "parameters is .* single number"),
        ({"probs": PROBS, "targets": np.array([None, 1, 2])}, ValueError, "targets is no array of plain numbers"),
        ({"probs": PROBS, "targets": np.array(["a", "b", "a"])}, TypeError, "targets has dtype <U1, expected numbers"),
        ({"probs": PROBS.astype(bytes), "targets": TARGETS}, TypeError, r"probs has dtype \|S\d+, expected numbers"),
        ({"probs": PROBS[:, 1], "targets": TARGETS}, ValueError, r"probs has shape \(3,\), expected \(N, C\)"),
        ({"probs": PROBS, "targets": TARGETS, "ood.far.probs": PROBS[:, 1]}, ValueError, r"far.probs has shape \(3,\)"),
    ],
    ids=[
        "no targets", "targets alone", "unknown class", "above one", "nan", "floating targets", "unknown name",
        "two kinds", "ood shape", "cost", "pickle", "string targets", "string probs", "flat probs", "flat ood probs",
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_array(arrays, error, message, tmp_path):
    path = written(tmp_path, **arrays)
    with pytest.raises(error, match=message) as raised:
        load_predictions(path)
    assert str(path) in str(raised.value)
    assert "pickle" not in str(raised.value)


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", PROBS)
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("text.npz", "one.npy", "empty.npz"):
        with pytest.raises(ValueError, match=rf"{name} is no .npz") as raised:
            load_predictions(tmp_path / name)
        assert "pickle" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz"):
        load_predictions(tmp_path / "nowhere.npz")
    with zipfile.ZipFile(tmp_path / "notes.npz", "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(ValueError, match=r"notes.npz: notes.txt is no array of plain numbers"):
        load_predictions(tmp_path / "notes.npz")
    whole = written(tmp_path, probs=PROBS, targets=TARGETS).read_bytes()
    (tmp_path / "damaged.npz").write_bytes(whole.replace(PROBS.tobytes(), PROBS[::-1].tobytes()))
    with pytest.raises(ValueError, match=r"damaged.npz is damaged"):
        load_predictions(tmp_path / "damaged.npz")
    with pytest.raises(ValueError, match=r"ends in .npz"):
        save_predictions(tmp_path / "a.csv", Prediction(PROBS))


def test_boolean_targets_are_the_classes_0_and_1(tmp_path):
    file = load_predictions(written(tmp_path, probs=PROBS, targets=TARGETS == 1))
    assert file.prediction.targets.tolist() == TARGETS.tolist()


def test_a_file_without_a_set_that_another_has_is_named_with_the_arrays_it_lacks():
    one = PredictionFile(Prediction(PROBS), {"far": Prediction(PROBS), "near": Prediction(PROBS)})
    other = PredictionFile(Prediction(PROBS), {"far": Prediction(PROBS)})
    require_same_sets({"a.npz": one, "b.npz": one})
    require_same_sets({"a.npz": PredictionFile(Prediction(PROBS))})
    with pytest.raises(ValueError, match=r"^b.npz lacks ood.near.probs, which a.npz has: "):
        require_same_sets({"a.npz": one, "b.npz": other})
    with pytest.raises(ValueError, match=r"^b.npz lacks ood.near.probs, which c.npz has: "):
        require_same_sets({"b.npz": other, "c.npz": one})
