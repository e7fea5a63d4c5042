import io
import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from hesitant.demos.methods import METHODS, chosen_methods
from hesitant.demos.result import DemoResult, Figures, require_device, uncertainty
from hesitant.demos.table import result_table
from hesitant.files import write_text
from hesitant.prediction import Prediction

FIGURES = Figures(
    name="SNGP",
    accuracy=0.998,
    nll=0.0137,
    ece=0.0047,
    u_training=0.016,
    u_held_out=0.017,
    u_ood=5e-19,
    u_corners=None,
    auroc=0.9997,
    variance_training=None,
    variance_held_out=None,
    variance_ood=None,
    training_loss=0.1,
    training_seconds=1.86,
    predict_milliseconds=20.04,
    parameters=99714,
)
RESULT = DemoResult(
    demo="two-moons",
    seed=3,
    epochs=7,
    device="cpu",
    settings={"learning_rate": 1e-3},
    methods={"sngp": FIGURES},
    predict_inputs="the grid",
)


def shown(result):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result_table(result))
    return console.export_text()


def test_uncertainty_is_the_tutorials_for_two_classes():
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    prediction = Prediction(torch.stack([1 - p, p], dim=1))
    torch.testing.assert_close(uncertainty(prediction), 4 * p * (1 - p))


@pytest.mark.parametrize("num_classes", [2, 3, 8])
def test_uncertainty_is_one_where_all_classes_are_alike_and_zero_where_one_is_certain(num_classes):
    probs = torch.stack([torch.full((num_classes,), 1 / num_classes), torch.eye(num_classes)[0]])
    torch.testing.assert_close(uncertainty(Prediction(probs)), torch.tensor([1.0, 0.0]))


def test_json_carries_all_that_is_needed_to_find_the_figures_again():
    content = json.loads(RESULT.to_json())
    assert content["seed"] == 3
    assert content["epochs"] == 7
    assert content["settings"] == {"learning_rate": 1e-3}
    assert content["methods"]["sngp"]["nll"] == 0.0137
    assert content["methods"]["sngp"]["u_ood"] == 5e-19
    assert content["versions"]["torch"] == torch.__version__
    assert {"python", "hesitant", "numpy"} <= content["versions"].keys()


def test_table_shows_no_column_that_nobody_fills_and_no_zero_that_is_none():
    text = shown(RESULT)
    assert "u corners" not in text
    assert "5e-19" in text
    assert "0.9997" in text
    assert "20.0" in text


def test_table_of_four_methods_fits_a_terminal_of_80_characters():
    names = ("Deterministic", "SNGP", "MC dropout", "Deep ensemble")
    text = shown(replace(RESULT, methods={name: replace(FIGURES, name=name) for name in names}))
    assert all(name in text for name in (*names, "out-of-domain", "milliseconds"))
    assert "…" not in text


def test_a_device_by_number_is_refused_with_the_way_to_choose_it(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert require_device("cuda") == "cuda"
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=1"):
        require_device("cuda:1")


def test_methods_come_in_the_order_asked_for_and_once():
    assert list(chosen_methods(None)) == list(METHODS)
    assert list(chosen_methods(["sngp", "deterministic", "sngp"])) == ["sngp", "deterministic"]


def test_unknown_methods_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'sgnp'.*choose from .*deterministic, mc-dropout, ensemble, sngp"):
        chosen_methods(["sgnp"])
    with pytest.raises(ValueError, match="methods is empty"):
        chosen_methods([])


def test_files_are_written_whole_or_not_at_all(tmp_path):
    picture = Figure()
    files = RESULT.write(tmp_path, picture, lambda path: write_text(path, "page")).files
    assert {kind: path.name for kind, path in files.items()} == {kind: f"two-moons.{kind}" for kind in files}
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(files["json"].read_text())["seed"] == 3
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    picture.savefig = interrupted
    with pytest.raises(KeyboardInterrupt):
        RESULT.write(tmp_path, picture, lambda path: write_text(path, "page"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def interrupted(path, **options):
    path.write_bytes(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("device", ["abacus", "meta", "vulkan"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    with pytest.raises(ValueError, match=rf"device='{device}' is not there.*this machine has cpu"):
        require_device(device)
