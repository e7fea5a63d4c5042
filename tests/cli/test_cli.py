import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from hesitant.cli import app
from hesitant.evaluation.deferral.policy import DeferralPolicy

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, list(arguments))


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.startswith("hesitant 0.")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["demo", "--help"], ["demo", "two-moons", "--help"], ["demo", "digits", "-h"], ["evaluate", "-h"]],
)
def test_help_is_there_at_every_level(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_names_every_demo_and_every_option():
    assert {"two-moons", "digits"} <= set(run("demo", "--help").output.split())
    text = run("demo", "two-moons", "--help").output
    assert all(option in text for option in ("--methods", "--seed", "--epochs", "--out", "--device"))


def test_help_of_evaluate_tells_the_format_line_by_line():
    lines = [" ".join(line.split()) for line in run("evaluate", "--help").output.splitlines()]
    assert "probs (N, C) probabilities; or instead" in lines
    assert "targets (N,) the true classes, from 0 on; not one-hot" in lines
    assert "ood.NAME.probs ood.NAME.logits ood.NAME.samples" in lines


def predictions(path, *, seed, signal, ood=True, num_inputs=900):
    draws = np.random.default_rng(seed)
    targets = np.arange(num_inputs) % 3
    logits = draws.normal(size=(num_inputs, 3)) + signal * np.eye(3)[targets]
    arrays = {"logits": logits, "targets": targets, "milliseconds": 0.5}
    if ood:
        arrays["ood.far away.logits"] = draws.normal(size=(40, 3))
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    return [
        predictions(folder / "sngp.npz", seed=1, signal=5.0),
        predictions(folder / "ensemble.npz", seed=2, signal=4.0),
    ]


def test_evaluate_prints_table_and_verdict_and_writes_report_figures_and_policy(two_files, tmp_path):
    result = run("evaluate", *two_files, "--out", str(tmp_path / "new"), "--max-risk", "0.04")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["sngp", "ensemble"]
    assert "AUROC, far away" in result.stdout
    assert "Use sngp: it answers " in result.stdout
    content = json.loads((tmp_path / "new" / "comparison.json").read_text(encoding="utf-8"))
    assert content["methods"]["sngp"]["milliseconds"] == 0.5
    assert content["recommendation"]["method"] == "sngp"
    policy = DeferralPolicy.load(tmp_path / "new" / "policy.json")
    assert policy.guard_threshold == content["recommendation"]["outcomes"]["sngp"]["guard_threshold"]
    assert policy.risk_bound == 0.04
    assert "Use sngp" in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_evaluate_takes_names_classes_inputs_and_intervals(two_files, tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((900, 5, 5)))
    result = run(
        "evaluate", *two_files, "--names", "SNGP,Deep ensemble", "--class-names", "cat,dog,owl", "--max-risk", "0.04",
        "--inputs", str(tmp_path / "images.npy"), "--intervals", "--out", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Deep ensemble" in result.stdout
    assert " ± " in result.stdout
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "owl" in page
    assert page.count("data:image/png") >= 12


def test_evaluate_leaves_no_policy_where_nothing_can_be_promised(tmp_path):
    path = predictions(tmp_path / "poor.npz", seed=1, signal=0.5, ood=False)
    (tmp_path / "policy.json").write_text("of an earlier run", encoding="utf-8")
    result = run("evaluate", path, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "poor cannot promise an error rate of 1 % or less" in result.stdout
    assert not (tmp_path / "policy.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "one"], "names are one for 2 files"),
        (["--class-names", "a,b"], "class_names has 2 names, expected 3"),
        (["--score", "entropy"], "score is 'entropy', expected one of 'confidence'"),
        (["--score", "mutual_information"], "'mutual_information' is not there for 'sngp'"),
        (["--max-risk", "7"], "max_risk is 7"),
        (["--inputs", "nowhere.npy"], "nowhere.npy"),
        (["--out", "/dev/null/here"], "cannot be written to"),
        (["nowhere.npz"], "nowhere.npz"),
    ],
    ids=["names", "classes", "score", "split", "risk", "inputs", "out", "file"],
)
def test_mistakes_of_evaluate_are_named_on_stderr_without_a_traceback(arguments, message, two_files, tmp_path):
    result = run("evaluate", *two_files, "--out", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_files_that_do_not_belong_together_are_refused(two_files, tmp_path):
    other = predictions(tmp_path / "other.npz", seed=1, signal=5.0, num_inputs=600)
    result = run("evaluate", two_files[0], other, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "let all methods predict the same inputs" in " ".join(result.stderr.split())
    without = predictions(tmp_path / "without.npz", seed=1, signal=5.0, ood=False)
    result = run("evaluate", two_files[0], without, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "without.npz lacks ood.far away.probs" in " ".join(result.stderr.split())


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from hesitant.cli import app\n"
        "assert CliRunner().invoke(app, ['demo', 'two-moons', '--help']).exit_code == 0\n"
        "print(sorted({'matplotlib', 'sklearn', 'accelerate', 'torchmetrics', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("demo", "methods"), [("two-moons", ["sngp", "deterministic"]), ("digits", ["deterministic"])])
def test_demo_prints_a_table_and_writes_picture_and_figures(demo, methods, tmp_path, monkeypatch):
    monkeypatch.setattr("hesitant.demos.result.TIMED_REPEATS", 1)
    result = run("demo", demo, "-m", ",".join(methods), "--epochs", "1", "--seed", "5", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "Deterministic" in result.stdout
    assert "AUROC" in result.stdout
    assert (tmp_path / f"{demo}.png").read_bytes().startswith(b"\x89PNG")
    assert "Deterministic" in (tmp_path / f"{demo}.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / f"{demo}.json").read_text(encoding="utf-8"))
    assert (content["seed"], content["epochs"]) == (5, 1)
    assert list(content["methods"]) == methods


@pytest.mark.parametrize("given", [["-m", "sngp,deterministic"], ["-m", "sngp", "--methods", "deterministic"]])
def test_methods_come_separated_by_commas_or_repeated(given, monkeypatch):
    asked = []

    def run_two_moons(methods, **options):
        asked.extend(methods)
        raise ValueError("enough")

    monkeypatch.setattr("hesitant.demos.two_moons.run_two_moons", run_two_moons)
    assert run("demo", "two-moons", *given).exit_code == 2
    assert asked == ["sngp", "deterministic"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sgnp"], "'sgnp', which is none of the known methods: choose from deterministic, mc-dropout"),
        (["--methods", ","], "methods is empty"),
        (["--device", "abacus"], "device='abacus' is not there"),
        (["--epochs", "0"], "epochs"),
        (["--seed", "-1"], "seed"),
        (["--out", "/dev/null/here"], "cannot be written to"),
    ],
)
def test_mistakes_are_named_on_stderr_without_a_traceback(arguments, message):
    result = run("demo", "two-moons", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_an_unknown_demo_is_an_error():
    assert run("demo", "three-moons").exit_code == 2
