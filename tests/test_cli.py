import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hesitant.cli import app

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, list(arguments))


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.startswith("hesitant 0.")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["demo", "two-moons", "--help"], ["demo", "digits", "-h"]]
)
def test_help_is_there_at_every_level(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_names_every_demo_and_every_option():
    assert {"two-moons", "digits"} <= set(run("demo", "--help").output.split())
    text = run("demo", "two-moons", "--help").output
    assert all(option in text for option in ("--methods", "--seed", "--epochs", "--out", "--device"))


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from hesitant.cli import app\n"
        "assert CliRunner().invoke(app, ['demo', 'two-moons', '--help']).exit_code == 0\n"
        "print(sorted({'matplotlib', 'sklearn', 'accelerate', 'torchmetrics', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("demo", ["two-moons", "digits"])
def test_demo_prints_a_table_and_writes_picture_and_figures(demo, tmp_path):
    result = run("demo", demo, "--methods", "deterministic", "--epochs", "1", "--seed", "5", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "Deterministic" in result.stdout
    assert "AUROC" in result.stdout
    assert (tmp_path / f"{demo}.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / f"{demo}.json").read_text(encoding="utf-8"))
    assert (content["seed"], content["epochs"]) == (5, 1)


@pytest.mark.parametrize("given", [["-m", "sngp,deterministic"], ["-m", "sngp", "--methods", "deterministic"]])
def test_methods_come_separated_by_commas_or_repeated(given, tmp_path):
    result = run("demo", "two-moons", *given, "--epochs", "1", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "two-moons.json").read_text(encoding="utf-8"))
    assert list(content["methods"]) == ["sngp", "deterministic"]


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
