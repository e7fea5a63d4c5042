import numpy as np
import pytest
import torch

from hesitant.evaluation.comparison import Cost
from hesitant.evaluation.prediction_files import load_predictions, save_predictions
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
        ({"probs": PROBS, "targets": np.array([None, 1, 2])}, ValueError, "no .npz of plain arrays"),
    ],
    ids=[
        "no targets", "targets alone", "unknown class", "above one", "nan", "floating targets", "unknown name",
        "two kinds", "ood shape", "cost", "pickle",
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_array(arrays, error, message, tmp_path):
    path = written(tmp_path, **arrays)
    with pytest.raises(error, match=message) as raised:
        load_predictions(path)
    assert str(path) in str(raised.value)


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.npz is no .npz"):
        load_predictions(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", PROBS)
    with pytest.raises(ValueError, match=r"one.npy is no .npz"):
        load_predictions(tmp_path / "one.npy")
    with pytest.raises(ValueError, match=r"ends in .npz"):
        save_predictions(tmp_path / "a.csv", Prediction(PROBS))
