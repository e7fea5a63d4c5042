"""The benchmarks on real data choose without test and out-of-domain data, and go on after a kill."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS = ["deterministic", "no_covariance", "sngp", "sngp_knn"]


@pytest.fixture(autouse=True)
def _scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(script: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, phase: str) -> None:
    """Runs a script as its command line does, on embeddings that lie in a folder."""
    arguments = ["--phases", phase, "--seeds", "0", "--epochs", "1", "--folder", folder / "none", "--rows", *ROWS]
    paths = ["--embeddings", folder, "--work", folder / "work", "--out", folder / "results.json"]
    monkeypatch.setattr(sys, "argv", ["script", *map(str, [*arguments, *paths])])
    script.main()


def write_split(path: Path, num_classes: int, a_class: int, seed: int) -> None:
    """Writes embeddings of norm 1 about the centre of each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 384, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(num_classes).repeat(a_class)
    inputs = centres[targets] + 0.5 * torch.randn(len(targets), 384, generator=generator)
    np.savez(path, embeddings=torch.nn.functional.normalize(inputs, dim=1).numpy(), targets=targets.numpy())


@pytest.mark.slow
def test_newsgroups_chooses_without_what_it_is_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import newsgroups

    write_split(tmp_path / "newsgroups-train.npz", 16, 40, seed=1)
    run(newsgroups, monkeypatch, tmp_path, "choose")  # nothing else is there
    chosen = {path.name: path.read_bytes() for path in (tmp_path / "work").rglob("*.*")}
    with pytest.raises(FileNotFoundError):
        run(newsgroups, monkeypatch, tmp_path, "measure")
    write_split(tmp_path / "newsgroups-test.npz", 16, 40, seed=2)
    for seed, name in ((3, "near"), (4, "far")):
        write_split(tmp_path / f"newsgroups-{name}.npz", 20, 2, seed=seed)
    run(newsgroups, monkeypatch, tmp_path, "measure")
    assert {path.name: path.read_bytes() for path in (tmp_path / "work").rglob("*.*")} == chosen
    measured = json.loads((tmp_path / "results.json").read_text())["newsgroups"]["rows"]
    assert list(measured) == ROWS
    assert measured["no_covariance"]["seeds"]["0"]["mean_field_factor"] == 0


@pytest.mark.slow
def test_what_was_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import newsgroups

    for seed, name in enumerate(("train", "test", "near", "far")):
        write_split(tmp_path / f"newsgroups-{name}.npz", 16, 40, seed=seed)
    for phase in ("choose", "measure"):
        run(newsgroups, monkeypatch, tmp_path, phase)
    files = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    table = capsys.readouterr().out.split("\n\n")[-2]
    for phase in ("choose", "measure"):
        run(newsgroups, monkeypatch, tmp_path, phase)
    assert {path: path.read_bytes() for path in files} == before
    assert table in capsys.readouterr().out
    (tmp_path / "work" / "newsgroups" / "sngp-seed0.json").unlink()  # as after a kill: the trained model is there
    for phase in ("choose", "measure"):
        run(newsgroups, monkeypatch, tmp_path, phase)
    again = json.loads((tmp_path / "results.json").read_text())
    assert (
        again["newsgroups"]["rows"]["sngp"]["summary"]["nll"]
        == (json.loads(before[tmp_path / "results.json"])["newsgroups"]["rows"]["sngp"]["summary"]["nll"])
    )


def test_clinc150_chooses_by_the_splits_train_and_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clinc150

    monkeypatch.setattr(clinc150, "minilm", lambda: (None, None))  # no text is made tokens of here
    asked = []

    def split_of(name: str) -> tuple[Tensor, Tensor]:
        asked.append(name)
        return torch.zeros(300, 384), torch.arange(300) % 150

    clinc150.known_embeddings(split_of)
    assert sorted(asked) == ["train", "val"]
    questions = [[f"question {row}", f"intent {row % 3}"] for row in range(12)]
    (tmp_path / "data_full.json").write_text(json.dumps({"train": questions, "val": questions}))
    known = clinc150.known_texts(tmp_path)
    assert len(known.train) == len(known.tune) == len(known.defer) == 1
    with pytest.raises(KeyError):
        clinc150.unseen_texts(tmp_path)


def test_cifar10_chooses_by_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cifar10
    from _real_data import choose

    asked = []

    def images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
        asked.append(part)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (200, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(200) % 10

    recipe = cifar10.Recipe("", 1, 32, 0.01, 0.0, num_members=2, seeds=(0,))
    monkeypatch.setattr(cifar10, "cifar10", images)
    monkeypatch.setattr(cifar10, "RECIPES", {"cpu": recipe})
    monkeypatch.setattr(cifar10, "WIDTHS", (4, 4))
    known = cifar10.known_images("six", tmp_path)
    assert len(known.train[1]) == 108  # of 120 animals
    study = cifar10.study_of("six", "cpu", cifar10.whitening(known.train[0]), tmp_path)
    choose(study, known, 0, ["deterministic", "sngp"])
    assert asked == ["train"]
    assert study.kept_row("sngp", 0).exists()


def test_a_control_is_bounded_while_it_trains() -> None:
    from _real_data import bounded

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    with torch.no_grad():
        network[0].weight.mul_(7 / torch.linalg.matrix_norm(network[0].weight, 2))
    bounded(network, "1")

    def norm() -> float:
        return torch.linalg.matrix_norm(network[0].weight.detach(), 2).item()

    inputs = torch.randn(4, 8)
    network.train()(inputs)  # takes the norms that the layers came with
    with torch.no_grad():
        network[0].weight.mul_(3)
        network[1].weight.mul_(100)
    last = network[1].weight.clone()
    network.eval()(inputs)
    assert norm() == pytest.approx(21, rel=1e-3)
    for _ in range(20):
        network.train()(inputs)
    assert norm() == pytest.approx(7, rel=2e-2)
    assert torch.equal(network[1].weight, last)


def test_a_first_layer_whitens_the_patches_that_it_is_made_of() -> None:
    from _fast_network import MEAN, STD, FastNetwork, whitening

    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 32)
    images = (smooth * 255).to(torch.uint8)
    network = FastNetwork(10, (4,), whitening(images, floor=1e-6))
    normalised = (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        both = network.whiten(normalised).permute(1, 0, 2, 3).flatten(1).double()
    answers, opposites = both.split(len(both) // 2)
    torch.testing.assert_close(opposites, -answers)
    moments = answers @ answers.T / answers.shape[1]
    present = moments.diagonal() > 0.5  # patches of such images do not span all directions
    assert int(present.sum()) > 10
    torch.testing.assert_close(moments[present][:, present], torch.eye(int(present.sum())).double(), atol=0.05, rtol=0)


@pytest.mark.parametrize("strength", [1, 5])
def test_a_corruption_follows_from_its_seed(strength: int) -> None:
    from _corruptions import CORRUPTIONS, corrupted

    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert len(CORRUPTIONS) == 15
    for name in CORRUPTIONS:
        changed = corrupted(images, name, strength)
        assert changed.shape == images.shape, name
        assert not torch.equal(changed, images), name
        assert torch.equal(changed, corrupted(images, name, strength)), name


@pytest.mark.parametrize("script", ["clinc150", "newsgroups", "cifar10"])
def test_the_page_of_figures_has_the_tables_that_were_measured(script: str) -> None:
    from _real_data import read
    from _tables import tables

    results = read(BENCHMARKS / "results" / f"{script}.json")
    titles = __import__(script).TITLES
    page = (BENCHMARKS.parent / "docs" / "figures.md").read_text()
    for table in tables(results, titles).strip().split("\n\n"):
        assert table in page
