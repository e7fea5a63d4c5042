"""The examples run as a new user would run them, in an empty folder, and show what their text says."""

import ast
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from tests.integrations.folders import WIDTH, rows, saved, sngp

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def environment(folder: Path) -> dict[str, str]:
    """Answers what a reader would have set: what is set for the tests is not; where things are found is."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS") if key in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(ROOT / "src"),
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(folder / ".matplotlib"),
    }


def command(name: str, of_others: tuple[str, ...] = ()) -> list[str]:
    """Answers how an example is started. The warnings that a reader would see are errors, but for those of others."""
    ignored = [part for warning in of_others for part in ("-W", f"ignore:{warning}")]
    return [sys.executable, "-W", "error", *ignored, str(ROOT / "examples" / f"{name}.py")]


def run(name: str, folder: Path, of_others: tuple[str, ...] = ()) -> str:
    """Answers what an example prints."""
    settings = {"cwd": folder, "env": environment(folder), "capture_output": True, "text": True, "timeout": 300}
    ran = subprocess.run(command(name, of_others), **settings)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def numbers(text: str, pattern: str) -> list[float]:
    """Answers the numbers that a pattern's groups catch in what an example printed."""
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in what was printed:\n{text}"
    return [float(group) for group in found.groups()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_the_form_that_the_gallery_reads_and_a_test_that_runs_it(example: Path) -> None:
    source = example.read_text(encoding="utf-8")
    title, underline, *text = (ast.get_docstring(ast.parse(source)) or "").split("\n")
    assert title
    assert underline == "=" * len(title)
    assert any(text)
    assert source.count("\n# %%\n") >= 3
    assert "plt.show()" in source or example.stem == "serve"
    assert f"test_{example.stem}" in globals()


@pytest.mark.slow
def test_sngp_two_moons(tmp_path: Path) -> None:
    printed = run("sngp_two_moons", tmp_path)
    line = r"accuracy ([\d.]+), .* ([\d.]+) on test points and ([\d.]+) in the cloud, .* AUROC of ([\d.]+)"
    plain = numbers(printed, f"plain: {line}")
    sngp = numbers(printed, f"SNGP: {line}")
    assert min(plain[0], sngp[0]) > 0.99
    assert plain[2] > 0.99  # sure in the cloud
    assert plain[3] < 0.1
    assert sngp[1] > 0.95
    assert sngp[2] < 0.55
    assert sngp[3] > 0.99


@pytest.mark.slow
def test_mc_dropout_on_your_model(tmp_path: Path) -> None:
    printed = run("mc_dropout_on_your_model", tmp_path)
    line = r"accuracy ([\d.]+), .* AUROC of 8 and 9 ([\d.]+)"
    for name in ("plain", "MC dropout"):
        assert min(numbers(printed, f"{name}: {line}")) > 0.9
    assert numbers(printed, r"AUROC of 8 and 9 by mutual information ([\d.]+)")[0] > 0.9
    entropies = r"mean entropy ([\d.]+), of which ([\d.]+) is mutual information"
    known, unknown = numbers(printed, f"0 to 7: {entropies}"), numbers(printed, f"8 and 9: {entropies}")
    assert all(5 * low < high for low, high in zip(known, unknown, strict=True))
    assert "no dropout took part" in printed


@pytest.mark.slow
def test_deep_ensemble(tmp_path: Path) -> None:
    printed = run("deep_ensemble", tmp_path)
    line = r"accuracy ([\d.]+), NLL ([\d.]+), AUROC of 8 and 9 ([\d.]+)"
    one, all_ten = numbers(printed, f"one member: {line}"), numbers(printed, f"all ten: {line}")
    assert min(one[0], all_ten[0], one[2], all_ten[2]) > 0.9
    assert all_ten[1] < one[1]
    assert numbers(printed, r"AUROC of 8 and 9 by disagreement: ([\d.]+)")[0] > 0.9
    assert numbers(printed, r"361 inputs, 8 classes, accuracy ([\d.]+)")[0] > 0.95


@pytest.mark.slow
def test_calibrate_and_defer(tmp_path: Path) -> None:
    printed = run("calibrate_and_defer", tmp_path)
    before, after = numbers(printed, r"on the test scans: NLL ([\d.]+) -> ([\d.]+)")
    assert after < before
    line = r"answers (\d+) of 144 test scans, ([\d.]+) of them rightly; hands over (\d+) of 354 8s and 9s"
    five, two, tenth = (numbers(printed, f"{name}: {line}") for name in ("risk 5 %", "risk 2 %", "budget 10 %"))
    assert five[0] == 144
    assert five[2] == 0  # as the text says: 8s and 9s are then answered too
    assert five[0] > tenth[0] > 115
    assert five[0] > two[0] > 0
    assert min(five[1], two[1], tenth[1]) > 0.95
    assert tenth[2] > 300
    assert "max_risk=0.01 cannot be promised" in printed


@pytest.mark.slow
def test_report_on_one_page(tmp_path: Path) -> None:
    printed = run("report_on_one_page", tmp_path)
    for_each = {row.split("  ")[0]: re.findall(r"(?<![\d,])\.\d+", row) for row in printed.splitlines()}
    assert len(for_each["AUROC, 8 and 9"]) == 4
    assert min(map(float, for_each["AUROC, 8 and 9"])) > 0.9
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page) > 100_000
    assert all(name in page for name in ("plain", "MC dropout", "deep ensemble", "SNGP", "8 and 9"))


@pytest.mark.slow
def test_serve(tmp_path: Path) -> None:
    saved(tmp_path / "model", sngp())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(tmp_path / "model"), "--input", f"x={WIDTH}", "--port", str(port)]
    server = subprocess.Popen([*command("serve"), *arguments], cwd=tmp_path, env=environment(tmp_path))
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            assert server.poll() is None
            with contextlib.suppress(httpx.ConnectError):
                assert httpx.get(f"{address}/health").json()["status"] == "ok"
                break
            time.sleep(0.1)
        answer = httpx.post(f"{address}/predict", json={"x": rows(3)["x"].tolist()}).json()
        assert list(answer) == ["probs", "label", "confidence", "uncertainty", "accept"]
        assert httpx.post(f"{address}/predict", json={"x": [[1]]}).status_code == 422
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, -signal.SIGINT, 130)


def test_keras_sngp_tutorial(tmp_path: Path) -> None:
    of_keras = "__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    printed = run("keras_sngp_tutorial", tmp_path, (of_keras,))
    plain, sngp = numbers(printed, r"cloud: ([\d.]+) of the deterministic network, ([\d.]+) of SNGP")
    assert plain < 0.01
    assert 0.9 < sngp <= 1
