"""Whatever ends a save, and whoever saves or loads meanwhile: a folder is one model, whole."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.saving.models import assert_same_bits, fit_covariances, mlp, names_in, rows, seeded, sngp

import hesitant
from hesitant import DeferralPolicy, Deterministic, MCDropout, Prediction
from hesitant.methods.saving import committing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

KILLED_AT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from tests.methods.saving.test_whole_folders import model_of, policy_of, save
import hesitant

folder = sys.argv[1]
old, new = model_of(1), model_of(2)


def child(position):
    seen = [0]

    def counted(call):
        def wrapper(*args, **kwargs):
            if seen[0] == position:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1
            return call(*args, **kwargs)
        return wrapper

    for name in sys.argv[2].split(","):
        setattr(os, name, counted(getattr(os, name)))
    from hesitant.methods.saving import writing
    writing.write_tensors = counted(writing.write_tensors)
    save(new, 2, folder)
    os._exit(0)


position, survived = 0, False
while not survived:
    save(old, 1, folder)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child(position)
    status = os.waitpid(pid, 0)[1]
    survived = status == 0
    loaded = hesitant.load(folder)
    policy = hesitant.DeferralPolicy.load(folder)
    which = loaded.label_names[0]
    assert policy.num_calibration == 100 + int(which), (which, policy)
    x = torch.ones(2, 4)
    assert torch.equal(loaded.predict(x).probs, (old, new)[int(which) - 1].predict(x).probs)
    print(position, which, status)
    position += 1
"""


def model_of(seed: int) -> Any:
    method = sngp(seeded(mlp, seed))
    fit_covariances(method, rows())
    return method


def policy_of(number: int) -> DeferralPolicy:
    n = 100 + number
    confidence = torch.linspace(0.5, 1, n)
    targets = (torch.arange(n) >= 20).long()
    return DeferralPolicy.calibrate(
        Prediction(torch.stack([1 - confidence, confidence], 1), targets=targets), budget=0.1
    )


def save(method: Any, number: int, folder: Any) -> None:
    preprocessing = Preprocessing(number)
    names = [str(number), "b", "c"]
    method.save_pretrained(
        folder, label_names=names, policy=policy_of(number), preprocessing=preprocessing, max_shard_size=6000
    )


class Preprocessing:
    """What saves files of its own, as a tokenizer does."""

    def __init__(self, number: int) -> None:
        self.name_or_path = f"vocabulary {number}"

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "deeper").mkdir(parents=True)
        (Path(folder) / "vocabulary.txt").write_text(self.name_or_path)
        (Path(folder) / "deeper" / "merges.txt").write_text(self.name_or_path)


def left(folder: Path) -> set[str]:
    return {name for name in names_in(folder) if committing._OWN.fullmatch(name) or name.startswith(".")}


@pytest.mark.parametrize(
    ("calls", "least"),
    [
        ("replace,fsync,rmdir", 8),
        pytest.param("open,close,replace,fsync,unlink,mkdir,rmdir,listdir,scandir,rename", 30, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_killed_at_any_call_leaves_the_old_model_or_the_new_one(
    calls: str, least: int, tmp_path: Path
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", KILLED_AT, str(tmp_path), calls],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    points = [line.split() for line in ran.stdout.splitlines()]
    which = [line[1] for line in points]
    assert len(points) > least
    assert which == sorted(which)  # one moment, before which it is the old one and after which the new
    assert {"1", "2"} == set(which)
    assert points[-1][2] == "0"
    # What killed ones left is gone with the next save.
    referred = json.loads((tmp_path / "config.json").read_text())
    assert left(tmp_path) == {*referred["weights"]["files"], referred["preprocessing"]["folder"]}


def test_a_process_that_is_killed_at_any_time_leaves_a_whole_model(tmp_path: Path) -> None:
    old, new = model_of(1), model_of(2)
    context = multiprocessing.get_context("fork")
    save(old, 1, tmp_path)
    for attempt in range(8):
        process = context.Process(target=save, args=((old, new)[attempt % 2], attempt % 2 + 1, tmp_path))
        process.start()
        time.sleep(0.004 * attempt)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        loaded: Any = hesitant.load(tmp_path)
        which = int(loaded.label_names[0])
        assert_same_bits(loaded.predict(rows()), (old, new)[which - 1].predict(rows()))
        assert DeferralPolicy.load(tmp_path).num_calibration == 100 + which


@pytest.mark.parametrize("where", ["write_tensors", "write_preprocessing", "_policy"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left"), MemoryError])
def test_an_error_leaves_the_old_model_and_no_other_file(
    where: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hesitant.methods.saving import writing

    old = model_of(1)
    save(old, 1, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real = getattr(writing, where)

    def failing(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise error

    monkeypatch.setattr(writing, where, failing)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        save(model_of(2), 2, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_a_new_save_replaces_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("another library's")
    (tmp_path / "preprocessing-mine").mkdir()
    save(model_of(1), 1, tmp_path)
    first = left(tmp_path)
    Deterministic(seeded(mlp)).save_pretrained(tmp_path)
    assert not first & names_in(tmp_path)
    assert len(left(tmp_path)) == 1
    assert {"README.md", "model-00001-of-00002.safetensors", "preprocessing-mine"} <= names_in(tmp_path)


def test_the_model_of_another_library_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config.json is of another library.*save into another folder"):
        Deterministic(mlp()).save_pretrained(tmp_path)
    assert names_in(tmp_path) == {"config.json"}


def test_what_is_no_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        Deterministic(mlp()).save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_save_at_once_end_in_one_whole_model(
    locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:  # as on a file system that has none

        def refusing(*_: Any) -> None:
            raise OSError("no locks here")

        monkeypatch.setattr("fcntl.flock", refusing)
    models = [model_of(seed) for seed in (1, 2, 3)]
    context = multiprocessing.get_context("fork")

    def several(number: int) -> None:
        for _ in range(4):
            save(models[number - 1], number, tmp_path)

    processes = [context.Process(target=several, args=(number,)) for number in (1, 2, 3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if (tmp_path / "config.json").exists():  # who loads meanwhile gets one of them, whole
            loaded: Any = hesitant.load(tmp_path)
            number = int(loaded.label_names[0])
            assert_same_bits(loaded.predict(rows()), models[number - 1].predict(rows()))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    loaded = hesitant.load(tmp_path)
    number = int(loaded.label_names[0])
    assert_same_bits(loaded.predict(rows()), models[number - 1].predict(rows()))
    assert loaded.preprocessing["name"] == f"vocabulary {number}"
    if locks:
        assert len([name for name in left(tmp_path) if name.startswith("preprocessing")]) == 1


def test_a_model_can_be_saved_into_the_folder_that_it_was_loaded_from(tmp_path: Path) -> None:
    save(model_of(1), 1, tmp_path)
    loaded: Any = hesitant.load(tmp_path)
    expected = loaded.predict(rows())
    loaded.save_pretrained(tmp_path)
    again: Any = hesitant.load(tmp_path)
    assert_same_bits(again.predict(rows()), expected)
    assert (Path(again.preprocessing["folder"]) / "deeper" / "merges.txt").read_text() == "vocabulary 1"


def test_weights_that_are_nan_are_not_saved(tmp_path: Path) -> None:
    method = MCDropout(mlp())
    method.save_pretrained(tmp_path)
    before = names_in(tmp_path)
    with torch.no_grad():
        method.model[3].bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"model.3.bias holds NaN"):
        method.save_pretrained(tmp_path)
    assert names_in(tmp_path) == before


def test_what_is_no_tensor_is_not_saved(tmp_path: Path) -> None:
    class Stateful(torch.nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(TypeError, match=r"_extra_state, a dict: only tensors can be saved"):
        Deterministic(Stateful(2, 3)).save_pretrained(tmp_path / "new")
    with pytest.raises(ValueError, match="has no values yet"):
        Deterministic(torch.nn.LazyLinear(3)).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- the policy


def test_the_policy_is_saved_with_the_model_and_goes_with_it(tmp_path: Path) -> None:
    save(model_of(1), 1, tmp_path)
    assert DeferralPolicy.load(tmp_path) == policy_of(1)
    model_of(1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model without a policy"):
        DeferralPolicy.load(tmp_path)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="policy is a dict"):
        model_of(1).save_pretrained(tmp_path, policy={"threshold": 1})
    assert names_in(tmp_path) == set()
