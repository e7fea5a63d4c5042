"""`hesitant.Scorer` by itself: columns in, columns out, as the method behind it answers."""

import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.integrations.folders import NUM_CLASSES, WIDTH, inputs, network, rows, saved, sngp
from torch import nn
from torch.utils.data import DataLoader, Dataset

import hesitant
from hesitant import Scorer
from hesitant.integrations.scorer import BadInputs, BadRows
from hesitant.integrations.scoring import loading

METHODS = {
    "Deterministic": lambda: hesitant.Deterministic(network()),
    "SNGP": sngp,
    "MCDropout": lambda: hesitant.MCDropout(network(), num_samples=5),
    "DeepEnsemble": lambda: hesitant.DeepEnsemble([network(seed) for seed in range(3)]),
    "DeepEnsemble of SNGP": lambda: hesitant.DeepEnsemble([sngp(seed) for seed in range(2)]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("scored") / "model", sngp(), label_names=["a", "b", "c"])


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_kept", type(loading._kept)())


# ---------------------------------------------------------------- what it answers


@pytest.mark.parametrize("method", METHODS)
def test_it_answers_what_the_method_predicts_and_the_policy_decides(method: str, tmp_path: Path) -> None:
    model = METHODS[method]()
    policy = hesitant.DeferralPolicy.calibrate(model.predict(inputs(200, seed=2)), budget=0.2)
    scorer, batch = Scorer(saved(tmp_path / "model", model), keep=["id"]), rows(50)
    answers, prediction = scorer(batch), model.predict(torch.from_numpy(batch["x"]))
    assert list(answers) == ["id", "probs", "label", "confidence", "uncertainty", "accept"]
    expected = {
        "id": batch["id"],
        "probs": prediction.probs.numpy(),
        "label": prediction.labels.numpy(),
        "confidence": prediction.confidence.numpy(),
        "uncertainty": prediction.ood_score.numpy(),
        "accept": policy.accept(prediction).numpy(),
    }
    for name, column in expected.items():
        assert answers[name].dtype == column.dtype
        np.testing.assert_array_equal(answers[name], column)
    assert 0 < answers["accept"].sum() < 50


def test_other_outputs_are_asked_for_by_name(folder: Path) -> None:
    batch = rows(10)
    outputs = ["label_name", "label", "logit_variance", "predictive_entropy", "mutual_information"]
    scorer = Scorer(folder, outputs=outputs, posterior="monte_carlo", num_samples=20)
    answers = scorer({"x": batch["x"]})
    assert list(answers) == outputs
    assert answers["label_name"].tolist() == ["abc"[label] for label in answers["label"]]
    prediction = hesitant.load(folder).predict(torch.from_numpy(batch["x"]), posterior="monte_carlo", num_samples=20)
    np.testing.assert_array_equal(answers["mutual_information"], prediction.mutual_information.numpy())
    np.testing.assert_array_equal(answers["logit_variance"], prediction.logit_variance.numpy())


def test_an_answer_does_not_depend_on_the_batches(folder: Path) -> None:
    batch, whole, parts = rows(40), Scorer(folder, inputs="x"), Scorer(folder, inputs="x", batch_size=3)
    alone = [whole({"x": batch["x"][row : row + 1]})["probs"] for row in range(40)]
    np.testing.assert_allclose(np.concatenate(alone), whole(batch)["probs"], atol=1e-6)
    np.testing.assert_allclose(parts(batch)["probs"], whole(batch)["probs"], atol=1e-6)


def test_columns_of_every_kind_are_the_same_columns(folder: Path) -> None:
    batch, scorer = rows(8), Scorer(folder, inputs="x", keep=["id"], outputs=["probs"])
    expected = scorer(batch)["probs"]
    objects = np.empty(8, dtype=object)
    objects[:] = list(batch["x"])
    kinds = {
        "lists": batch["x"].tolist(),
        "tensors": torch.from_numpy(batch["x"]),
        "rows that are objects": objects,
        "float64": batch["x"].astype(np.float64),
        "another byte order": batch["x"].astype(">f4"),
        "not contiguous": np.asfortranarray(batch["x"]),
        "read only": np.frombuffer(batch["x"].tobytes(), np.float32).reshape(8, WIDTH),
    }
    for kind, column in kinds.items():
        np.testing.assert_array_equal(scorer({"id": batch["id"], "x": column})["probs"], expected, err_msg=kind)
    frame = pd.DataFrame({"id": batch["id"], "x": list(batch["x"])})
    np.testing.assert_array_equal(scorer(frame)["probs"], expected)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, bool])
def test_whole_numbers_are_numbers(folder: Path, dtype: Any) -> None:
    """JSON writes 1.0 as 1: a row of zeros is answered as it is beside one that is not whole."""
    scorer = Scorer(folder)
    whole = (rows(20)["x"] > 0).astype(dtype)
    answers = scorer({"x": whole})
    np.testing.assert_array_equal(answers["probs"], scorer({"x": whole.astype(np.float32)})["probs"])
    np.testing.assert_array_equal(scorer({"x": whole.tolist()})["probs"], answers["probs"])


def test_what_is_looked_up_stays_whole(tmp_path: Path) -> None:
    model = hesitant.Deterministic(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, NUM_CLASSES)))
    ids = np.arange(12).reshape(4, 3) % 9
    model.save_pretrained(tmp_path)
    answers = Scorer(tmp_path)({"ids": ids})
    np.testing.assert_array_equal(answers["probs"], model.predict(torch.from_numpy(ids)).probs)


def test_an_input_may_be_kept(folder: Path) -> None:
    batch = rows(5)
    answers = Scorer(folder, inputs="x", keep=["id", "x"])(batch)
    np.testing.assert_array_equal(answers["x"], batch["x"])
    np.testing.assert_array_equal(answers["probs"], Scorer(folder, inputs="x")(batch)["probs"])


def test_the_inputs_keep_their_columns(folder: Path) -> None:
    batch = rows(4)
    before = {name: column.copy() for name, column in batch.items()}
    Scorer(folder, inputs="x", keep="id", bad_rows="mark")(batch)
    for name, column in before.items():
        np.testing.assert_array_equal(batch[name], column)


class TwoInputs(nn.Module):
    """A network of two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.head(first * 2 + second)


def test_several_columns_are_the_arguments_of_their_names(tmp_path: Path) -> None:
    model = hesitant.Deterministic(TwoInputs())
    model.save_pretrained(tmp_path / "model", architecture={"kind": "given"})
    batch = {"second": inputs(5, 1).numpy(), "id": np.arange(5), "first": inputs(5, 2).numpy()}
    expected = model.predict({name: torch.from_numpy(batch[name]) for name in ("first", "second")}).probs
    for named in (None, ("first", "second"), {"second": (WIDTH,), "first": None}):
        answers = Scorer(tmp_path / "model", inputs=named, model=TwoInputs())(batch)
        np.testing.assert_array_equal(answers["probs"], expected.numpy())
    with pytest.raises(BadInputs, match="'id' is no argument of the model"):
        Scorer(tmp_path / "model", inputs=("first", "id"), model=TwoInputs())(batch)


def test_rows_that_come_flat_are_given_their_shape(tmp_path: Path) -> None:
    images = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model = hesitant.Deterministic(images)
    model.save_pretrained(tmp_path / "model")
    batch = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    scorer = Scorer(tmp_path / "model", inputs={"pixels": (1, 3, 3)}, outputs=["probs"], bad_rows="mark")
    expected = model.predict(batch).probs.numpy()
    nested = np.empty(4, dtype=object)  # as Arrow and Spark have arrays of arrays
    for row, image in enumerate(batch.numpy()):
        nested[row] = np.array([None], dtype=object)
        nested[row][0] = np.array([None] * 3, dtype=object)
        for line in range(3):
            nested[row][0][line] = image[0, line]
    for column in (batch.numpy(), batch.flatten(1).numpy(), batch.flatten(1).tolist(), batch.squeeze(1), nested):
        np.testing.assert_array_equal(scorer({"pixels": column})["probs"], expected)
    short = scorer({"pixels": [*batch.flatten(1).tolist()[:3], [0.0] * 8]})
    np.testing.assert_allclose(short["probs"][:3], expected[:3], atol=1e-6)
    assert short["error"][3] == "row 3 of column 'pixels' has shape (8,), expected (1, 3, 3)"


def test_half_precision_weights_are_given_half_precision(tmp_path: Path) -> None:
    model = hesitant.Deterministic(network().to(torch.bfloat16))
    batch = rows(6)
    answers = Scorer(saved(tmp_path / "model", model, policy=False), inputs="x")(batch)
    expected = model.predict(torch.from_numpy(batch["x"]).to(torch.bfloat16))
    np.testing.assert_array_equal(answers["probs"], expected.probs.numpy())


# ---------------------------------------------------------------- bad rows


BAD = {
    "missing": (None, "row 2 of column 'x' is missing, expected numbers"),
    "not finite": ([0, 1, np.nan, 0, 0, 0], "row 2 of column 'x' holds nan, expected finite numbers of torch.float32"),
    "too large for the type": ([1e300] * WIDTH, "row 2 of column 'x' holds 1e+300, expected finite numbers"),
    "of another shape": ([0.0] * 5, "row 2 of column 'x' has shape (5,), expected (6,)"),
    "a text": ("a", "row 2 of column 'x' is a text, expected numbers, and the folder has no tokenizer"),
    "a dict": ({"a": 1}, "row 2 of column 'x' is a dict, expected numbers"),
    "a ragged list": ([[1.0], [1.0, 2.0]], "row 2 of column 'x' is a list that holds something else"),
    "so large that the logits are not finite": ([3e38] * WIDTH, "row 2: logits"),
}


def spoiled(value: Any) -> dict[str, Any]:
    """Answers five rows, of which the third is this."""
    batch = rows(5)
    column = np.empty(5, dtype=object)
    column[:] = list(batch["x"])
    column[2] = value
    return {"id": batch["id"] + 100, "x": column}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_with_its_column_and_identifier(folder: Path, kind: str) -> None:
    value, reason = BAD[kind]
    with pytest.raises(BadRows) as raised:
        Scorer(folder, inputs={"x": (WIDTH,)}, keep=["id"])(spoiled(value))
    assert str(raised.value).startswith(f"1 of 5 rows cannot be scored: {reason}")
    assert "(id=102)" in str(raised.value)
    assert list(raised.value.reasons) == [2]
    copied = pickle.loads(pickle.dumps(raised.value))  # out of another process
    assert (str(copied), copied.reasons) == (str(raised.value), raised.value.reasons)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_marked_and_the_others_answered_as_without_it(folder: Path, kind: str) -> None:
    value, reason = BAD[kind]
    outputs = ["probs", "label", "label_name", "confidence", "uncertainty", "accept"]
    scorer = Scorer(folder, inputs={"x": (WIDTH,)}, keep=["id"], outputs=outputs, bad_rows="mark")
    answers, others = scorer(spoiled(value)), [0, 1, 3, 4]
    alone = scorer({name: column[others] for name, column in rows(5).items()})
    for name in outputs:
        if answers[name].dtype.kind == "f":
            np.testing.assert_allclose(answers[name][others], alone[name], atol=1e-6)
            assert np.isnan(answers[name][2]).all()
        else:
            np.testing.assert_array_equal(answers[name][others], alone[name])
    assert (answers["label"][2], answers["label_name"][2], answers["accept"][2]) == (-1, "", False)
    assert answers["error"][2].startswith(reason)
    assert answers["error"][others].tolist() == [""] * 4
    assert answers["id"].tolist() == [100, 101, 102, 103, 104]


def test_what_is_wrong_with_all_rows_is_marked_but_no_fault_of_the_model(folder: Path) -> None:
    batch = {"x": np.array([None, None], dtype=object)}
    marked = Scorer(folder, inputs={"x": (WIDTH,)}, bad_rows="mark")(batch)
    assert marked["probs"].shape == (2, NUM_CLASSES)
    assert (marked["error"] != "").all()
    with pytest.raises(ValueError, match="num_samples"):  # of no row
        Scorer(folder, inputs="x", bad_rows="mark", posterior="monte_carlo", num_samples=0)(rows(3))


def test_rows_of_several_shapes_want_a_shape(folder: Path) -> None:
    with pytest.raises(BadInputs, match=r"row 2 of column 'x' has shape \(5,\).*say which"):
        Scorer(folder, inputs="x", bad_rows="mark")(spoiled([0.0] * 5))


def test_no_rows_are_answered_with_none(folder: Path) -> None:
    none = {name: column[:0] for name, column in rows(3).items()}
    answers = Scorer(folder, inputs="x", keep=["id"], bad_rows="mark")(none)
    shapes = {name: column.shape for name, column in answers.items()}
    assert shapes.pop("probs") == (0, NUM_CLASSES)
    assert set(shapes.values()) == {(0,)}
    listed = Scorer(folder, inputs={"x": (WIDTH,)})({"x": []})
    assert listed["probs"].shape == (0, NUM_CLASSES)
    with pytest.raises(BadInputs, match="do not say what one would be"):
        Scorer(folder, inputs="x")({"x": []})


@pytest.mark.parametrize(
    ("batch", "error", "says"),
    [
        (np.zeros((2, WIDTH)), TypeError, "columns by name"),
        ({}, BadInputs, "no columns"),
        ({"x": np.zeros((2, WIDTH)), "id": [1]}, BadInputs, "of the lengths"),
        ({"y": np.zeros((2, WIDTH)), "id": [1, 2]}, BadInputs, "expected 'x' among them"),
        ({"x": np.zeros((2, WIDTH))}, BadInputs, "expected 'id', which keep names"),
        ({"x": "text", "id": [1]}, TypeError, "'x' is a str"),
        ({"x": np.float32(1), "id": [1]}, TypeError, "'x'"),
    ],
)
def test_a_batch_without_the_columns_is_refused(folder: Path, batch: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        Scorer(folder, inputs="x", keep=["id"])(batch)


def test_columns_that_nothing_names_are_asked_for(folder: Path) -> None:
    with pytest.raises(BadInputs, match=r"say which of them it takes, Scorer\(..., inputs='pixels'\)"):
        Scorer(folder)({"pixels": np.zeros((2, WIDTH)), "id": [1, 2]})


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"outputs": ["prob"]}, ValueError, "outputs"),
        ({"outputs": []}, ValueError, "outputs"),
        ({"inputs": ()}, ValueError, "at least one column"),
        ({"inputs": 3}, TypeError, "inputs=3"),
        ({"bad_rows": "drop"}, ValueError, "'raise' or 'mark'"),
        ({"keep": ["label"]}, ValueError, "'label'"),
        ({"keep": ["error"]}, ValueError, "'error'"),
    ],
)
def test_an_option_out_of_its_range_is_refused(folder: Path, options: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        Scorer(folder, **options)


def test_what_a_folder_does_not_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Scorer(tmp_path / "none")
    plain = saved(tmp_path / "model", hesitant.Deterministic(network()), policy=False)
    with pytest.raises(ValueError, match="holds no policy"):
        Scorer(plain, outputs=["accept"]).load()
    with pytest.raises(ValueError, match="holds no label_names"):
        Scorer(plain, outputs=["label_name"]).load()
    assert "accept" not in Scorer(plain, inputs="x")(rows(2))
    with pytest.raises(hesitant.prediction.UnavailableError, match="logit_variance"):
        Scorer(plain, inputs="x", outputs=["logit_variance"])(rows(2))


# ---------------------------------------------------------------- processes and threads


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    loads: list[int] = []
    load = loading.load

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(threading.get_ident())
        return load(*args, **kwargs)

    monkeypatch.setattr(loading, "load", counted)
    return loads


def test_it_loads_when_it_is_first_asked_and_once_for_all_copies_and_threads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    scorer = Scorer(folder, inputs="x")
    copies = [pickle.loads(pickle.dumps(scorer)) for _ in range(8)]
    assert loads == []
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda copy: copy(rows(5))["probs"], copies))
    assert len(loads) == 1
    assert all((answer == answers[0]).all() for answer in answers)
    assert Scorer(folder, outputs=["label"]).load() is scorer.load()  # what is asked for is no other model
    assert len(loads) == 1


def test_a_pickle_holds_no_weights_and_a_loaded_scorer_is_pickled_as_before(folder: Path) -> None:
    scorer = Scorer(folder, inputs="x")
    before = pickle.dumps(scorer)
    scorer(rows(3))
    assert pickle.dumps(scorer) == before
    assert len(before) < 2000


def test_a_network_that_is_given_travels_is_loaded_once_and_keeps_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hesitant.MCDropout(network(), num_samples=3)
    model.save_pretrained(tmp_path / "model", architecture={"kind": "given"})
    loads, given = count_loads(monkeypatch), network(seed=5)
    before = [parameter.clone() for parameter in given.parameters()]
    scorer = Scorer(tmp_path / "model", inputs="x", model=given)
    copies = [pickle.loads(pickle.dumps(scorer)) for _ in range(2)]
    expected = model.predict(torch.from_numpy(rows(5)["x"])).probs.numpy()
    for copy in (*copies, scorer):
        np.testing.assert_array_equal(copy(rows(5))["probs"], expected)
    assert len(loads) == 1
    assert all(torch.equal(one, other) for one, other in zip(before, given.parameters(), strict=True))


def test_a_folder_that_was_changed_since_is_not_scored_by(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", sngp())
    before = Scorer(folder, inputs="x")
    loaded = Scorer(folder, inputs="x")
    expected = loaded(rows(3))["probs"]
    saved(folder, sngp(seed=1))
    np.testing.assert_array_equal(loaded(rows(3))["probs"], expected)  # what it has loaded it keeps
    loading._kept.folders.clear()  # another process
    with pytest.raises(ValueError, match=r"held .* where the scorer was made"):
        before(rows(3))
    assert (Scorer(folder, inputs="x")(rows(3))["probs"] != expected).any()


def test_a_process_forgets_the_folders_that_it_has_not_used_for_long(tmp_path: Path) -> None:
    for seed in range(6):
        Scorer(saved(tmp_path / str(seed), hesitant.Deterministic(network(seed)), policy=False)).load()
    assert len(loading._kept.folders) == 4


def test_threads_are_answered_as_one_after_another(folder: Path) -> None:
    scorer = Scorer(folder, inputs="x")
    batches = [rows(7, seed) for seed in range(24)]
    alone = [scorer(batch)["probs"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: scorer(batch)["probs"], batches))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


class Table(Dataset[dict[str, Any]]):
    """Rows one by one."""

    def __init__(self, num_rows: int) -> None:
        self.columns = rows(num_rows)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: column[row] for name, column in self.columns.items()}


class Scored:
    """A loader's ``collate_fn`` that scores what it has gathered, in the loader's workers."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return self.scorer({name: np.stack([example[name] for example in examples]) for name in examples[0]})


def gathered(batches: Iterator[dict[str, Any]], name: str) -> Any:
    return np.concatenate([batch[name] for batch in batches])


def test_a_loader_gives_it_batches(folder: Path) -> None:
    scorer = Scorer(folder, inputs="x", keep=["id"], outputs=["probs"])
    loader = DataLoader(Table(50), batch_size=16)
    answers = [scorer(batch) for batch in loader]
    np.testing.assert_array_equal(gathered(iter(answers), "id"), np.arange(50))
    np.testing.assert_allclose(gathered(iter(answers), "probs"), scorer(rows(50))["probs"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_workers_of_a_loader_score(folder: Path, start: str) -> None:
    scorer = Scorer(folder, inputs="x", keep=["id"], outputs=["probs"])
    expected = scorer(rows(50))["probs"]  # a fork finds the folder loaded
    loader = DataLoader(
        Table(50), batch_size=8, num_workers=2, collate_fn=Scored(scorer), multiprocessing_context=start
    )
    answers = list(loader)
    np.testing.assert_array_equal(gathered(iter(answers), "id"), np.arange(50))
    np.testing.assert_allclose(gathered(iter(answers), "probs"), expected, atol=1e-6)


def scored_while_locked(scorer: Scorer) -> Any:
    return scorer(rows(4))["probs"]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_process_that_is_forked_while_another_thread_loads_does_not_wait_for_it(folder: Path) -> None:
    scorer = Scorer(folder, inputs="x")
    with loading._kept.lock, ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        answer = pool.submit(scored_while_locked, scorer).result(timeout=60)
    np.testing.assert_allclose(answer, scorer(rows(4))["probs"], atol=1e-6)
