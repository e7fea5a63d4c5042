import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from hesitant.evaluation.comparison.compare import Cost
from hesitant.evaluation.comparison.prediction_files import (
    PredictionFile,
    load_predictions,
    require_same_sets,
    save_predictions,
)
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
    prediction = Prediction.from_samples(samples, targets=torch.tensor([0, 1, 2, 0, 1]))
    other = Prediction.from_logits(logits, logit_variance=logits.square())
    cost = Cost(milliseconds=0.25, parameters=123, training_seconds=4.5)
    path = save_predictions(tmp_path / "a.npz", prediction, ood={"v1.0 a/b": other}, cost=cost)
    file = load_predictions(path)
    assert file.cost == cost
    for found, given in ((file.prediction, prediction), (file.ood["v1.0 a/b"], other)):
        assert found.available == given.available
        for name, array in given.numpy().items():
            np.testing.assert_array_equal(found.numpy()[name], array, err_msg=name)


def test_evidence_is_saved_where_it_is_not_the_logits(tmp_path):
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    targets = torch.tensor([0, 1])
    for name, evidence in (("plain", None), ("shrunk", logits / 3)):
        prediction = Prediction.from_logits(logits, targets=targets, evidence=evidence)
        path = save_predictions(tmp_path / f"{name}.npz", prediction)
        assert ("evidence" in np.load(path)) == (evidence is not None)
        assert torch.equal(load_predictions(path).prediction.evidence, logits if evidence is None else evidence)


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


def named(array=PROBS, **others):
    return {"probs": array, "targets": TARGETS, **others}


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (named(served=TARGETS), ValueError, "an array 'served', which is none of probs"),
        (named(**{"ood..probs": PROBS}), ValueError, "an array 'ood..probs'"),
        (named(**{"ood.probs": PROBS}), ValueError, "an array 'ood.probs'"),
        (named(**{"ood.far.milliseconds": np.array(1.0)}), ValueError, "an array 'ood.far.milliseconds'"),
        (named(milliseconds=np.array(np.nan)), ValueError, "milliseconds is nan, expected a single finite number"),
        (named(milliseconds=np.array(np.inf)), ValueError, "milliseconds is inf"),
        (named(parameters=np.array(-1)), ValueError, "parameters is -1"),
        (named(parameters=np.array(True)), ValueError, "parameters has dtype bool"),
        (named(PROBS[:2]), ValueError, r"targets has shape \(3,\), expected \(2,\) integers, one for each"),
        (named(PROBS.astype(int)), ValueError, "probs has dtype int64, expected floating numbers"),
        (named(PROBS.astype(complex)), ValueError, "probs has dtype complex128, expected floating"),
        (named(log_probs=PROBS[:2]), ValueError, r"log_probs has shape \(2, 2\), expected \(3, 2\), as probs"),
        (named(expected_entropy=PROBS), ValueError, r"expected_entropy has shape \(3, 2\), expected \(3,\)"),
        (named(**{"ood.far.probs": np.full((4, 3), 1 / 3)}), ValueError, "ood.far has 3 classes, the data 2"),
        ({"samples": PROBS, "targets": TARGETS}, ValueError, r"samples has shape \(3, 2\), expected \(S, N, C\)"),
        ({"samples": PROBS[None][:0], "targets": TARGETS}, ValueError, r"samples has shape \(0, 3, 2\)"),
        ({"probs": PROBS}, ValueError, "targets is missing"),
        ({"targets": TARGETS}, ValueError, "none of probs, logits and samples"),
        ({"probs": PROBS, "targets": TARGETS + 7}, ValueError, r"targets\[0\] is 8"),
        ({"probs": 2 * PROBS, "targets": TARGETS}, ValueError, r"probs\[0, 1\] is 1.6"),
        ({"probs": PROBS * np.nan, "targets": TARGETS}, ValueError, "probs.* is nan"),
        ({"probs": PROBS, "targets": TARGETS / 1.0}, ValueError, "targets has dtype"),
        ({"probs": PROBS, "targets": TARGETS, "prob": PROBS}, ValueError, "'prob', which is none of probs, samples"),
        ({"samples": PROBS[None], "logits": PROBS, "targets": TARGETS}, ValueError, "logits stands beside samples"),
        ({"probs": PROBS, "targets": TARGETS, "ood.far.probs": PROBS[:, :1]}, ValueError, "ood.far.probs has shape"),
        ({"probs": PROBS, "targets": TARGETS, "parameters": TARGETS}, ValueError, r"parameters has shape \(3,\)"),
        ({"probs": PROBS, "targets": np.array([None, 1, 2])}, ValueError, "targets is no array of plain numbers"),
        ({"probs": PROBS, "targets": np.array(["a", "b", "a"])}, ValueError, "targets has dtype <U1, expected numbers"),
        ({"probs": PROBS.astype(bytes), "targets": TARGETS}, ValueError, r"probs has dtype \|S\d+, expected numbers"),
        ({"probs": PROBS[:, 1], "targets": TARGETS}, ValueError, r"probs has shape \(3,\), expected \(N, C\)"),
        ({"probs": PROBS, "targets": TARGETS, "ood.far.probs": PROBS[:, 1]}, ValueError, r"far.probs has shape \(3,\)"),
    ],
    ids=[
        "served", "a set without a name", "a set without a part", "a cost of a set", "nan cost", "inf cost",
        "negative cost", "boolean cost", "fewer inputs", "integers", "complex", "other log_probs", "other entropy",
        "classes of a set", "flat samples", "no samples",
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
    with pytest.raises(ValueError, match=r"damaged.npz: probs is .* damaged"):
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


# Files that were made to do harm: small, and by hand


def npy(array, *, shape=None, dtype=None, fortran=False, version=(1, 0)):
    """The bytes of an array whose header says what it likes."""
    header = f"{{'descr': {dtype or array.dtype.str!r}, 'fortran_order': {fortran}, 'shape': {shape or array.shape}, }}"
    text = header.encode() + b"\n"
    length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + array.tobytes()


def zipped(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path / "file.npz", "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path / "file.npz"


@pytest.fixture
def unpacks_nothing(monkeypatch):
    def read_array(*arguments, **options):
        pytest.fail("an array was unpacked")

    monkeypatch.setattr("numpy.lib.format.read_array", read_array)


HEADERS = {
    "more than is there": ({"probs": npy(PROBS, shape=(10**12, 2))}, "probs is damaged, for it has"),
    "less than is there": ({"probs": npy(PROBS, shape=(2, 2))}, "probs is damaged, for it has"),
    "more than any machine": ({"probs": npy(PROBS, shape=(2**62, 2**62))}, "probs is damaged, for it has"),
    "a negative axis": ({"probs": npy(PROBS, shape=(-3, -2))}, "probs is damaged, for its shape is"),
    "a boolean axis": ({"probs": npy(PROBS[:1, :1], shape=(True, True))}, "probs is damaged, for its shape is"),
    "another number of inputs": ({"targets": npy(np.zeros(10**6, int))}, r"targets has shape \(1000000,\), expected"),
    "an unknown name": ({"bomb": npy(np.zeros(10**6))}, "an array 'bomb'"),
    "objects": ({"probs": npy(PROBS, dtype="|O")}, "probs is no array of plain numbers, but of Python objects"),
    "texts": ({"probs": npy(PROBS, dtype="<U2")}, "probs has dtype <U2"),
    "fields": ({"probs": npy(PROBS, dtype=[("a", "<f8")])}, "probs"),
    "dates": ({"targets": npy(TARGETS, dtype="<M8[s]")}, "targets has dtype datetime64"),
    "a wide float": ({"probs": npy(PROBS, dtype="<f16")}, "probs has dtype (float|longdouble)"),
    "no header": ({"probs": b""}, "probs is no array of plain numbers, or damaged"),
    "half a header": ({"probs": npy(PROBS)[:30]}, "probs is no array of plain numbers, or damaged"),
    "code": ({"probs": npy(PROBS, shape="__import__('os')")}, "probs is no array of plain numbers, or damaged"),
    "nesting": ({"probs": npy(PROBS, shape="(" * 5000 + ")" * 5000)}, "probs is no array of plain numbers, or damaged"),
    "a long header": (
        {"probs": b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + bytes(10**6)},
        "probs is no array of plain numbers, or damaged",
    ),
    "a third version": ({"probs": npy(PROBS, version=(3, 0))}, "probs is no array of plain numbers, or damaged"),
}


@pytest.mark.parametrize(("members", "message"), HEADERS.values(), ids=HEADERS)
def test_what_headers_say_is_refused_before_anything_is_unpacked(members, message, tmp_path, unpacks_nothing):
    path = zipped(tmp_path, **{"probs": npy(PROBS), "targets": npy(TARGETS), **members})
    with pytest.raises(ValueError, match=message) as raised:
        load_predictions(path)
    assert str(path) in str(raised.value)


def test_a_bomb_is_refused_in_bounded_memory(tmp_path):
    zeros = npy(np.zeros(1), shape=(2**22, 2)) + bytes(2**26 - 8)  # 64 MiB in 64 KiB
    bombs = {
        "an array 'bomb'": {"bomb": zeros, "probs": npy(PROBS)},
        r"targets has shape \(3,\), expected \(4194304,\)": {"probs": zeros},
    }
    for message, members in bombs.items():
        path = zipped(tmp_path, targets=npy(TARGETS), **members)
        assert path.stat().st_size < 2**17
        tracemalloc.start()
        with pytest.raises(ValueError, match=message):
            load_predictions(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**21


def test_sizes_that_cannot_be_are_refused(tmp_path, unpacks_nothing):
    # The directory says that a few bytes are many.
    path = zipped(tmp_path, probs=npy(PROBS), targets=npy(TARGETS))
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"PK\x01\x02"))
    lying = bytearray(whole)
    lying[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(bytes(lying))
    with pytest.raises(ValueError, match=r"probs is damaged, for \d+ bytes cannot hold 2147483648"):
        load_predictions(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_encryption_and_strange_compression_are_named(tmp_path, unpacks_nothing):
    path = zipped(tmp_path, probs=npy(PROBS), targets=npy(TARGETS))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("probs.npy", npy(PROBS[::-1]))
    with pytest.raises(ValueError, match=r"file.npz holds probs twice"):
        load_predictions(path)
    path = zipped(tmp_path, probs=npy(PROBS), targets=npy(TARGETS))
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match=r"file.npz: targets is encrypted"):
        load_predictions(path)
    path = zipped(tmp_path, zipfile.ZIP_LZMA, probs=npy(PROBS), targets=npy(TARGETS))
    with pytest.raises(ValueError, match=r"file.npz: probs is compressed in a way"):
        load_predictions(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_change_of_a_file_is_one_error_that_names_it_or_changes_nothing(save, tmp_path):
    path = tmp_path / "file.npz"
    save(path, probs=PROBS, targets=TARGETS, milliseconds=0.5)
    whole = path.read_bytes()
    draws = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole[: draws.integers(len(whole))] if draws.random() < 0.2 else whole)
        for place in draws.integers(len(changed), size=draws.integers(1, 4)) if changed else []:
            changed[place] = draws.integers(256)
        path.write_bytes(bytes(changed))
        try:
            file = load_predictions(path)
        except ValueError as error:
            refused += str(path) in str(error)
        else:
            np.testing.assert_array_equal(file.prediction.probs, PROBS)
            refused += 1
    assert refused == 300


def test_columns_first_and_other_byte_orders_are_read(tmp_path):
    for probs in (np.asfortranarray(PROBS), PROBS.astype(">f8"), np.asfortranarray(PROBS.astype(">f4"))):
        file = load_predictions(written(tmp_path, probs=probs, targets=TARGETS.astype(">i2")))
        np.testing.assert_allclose(file.prediction.probs, PROBS, atol=1e-7)
        assert file.prediction.targets.tolist() == TARGETS.tolist()


def test_names_that_a_zip_would_cut_are_refused_and_nothing_is_written(tmp_path):
    for name in ("", "far\0away"):
        with pytest.raises(ValueError, match="ood holds the name"):
            save_predictions(tmp_path / "a.npz", Prediction(PROBS), ood={name: Prediction(PROBS)})
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_the_calibration_comes_back(tmp_path):
    prediction, other = Prediction(PROBS, targets=TARGETS, calibration="00ff" * 4), Prediction(PROBS)
    file = load_predictions(save_predictions(tmp_path / "a.npz", prediction, ood={"far": other, "near": prediction}))
    assert [p.calibration for p in (file.prediction, file.ood["far"], file.ood["near"])] == [
        "00ff" * 4,
        None,
        "00ff" * 4,
    ]
