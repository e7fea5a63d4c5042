"""CIFAR-10: a small fast network on a CPU, WRN-28-10 on a GPU; other classes, other images and corruptions to notice.

    python benchmarks/cifar10.py                                      # everything, of data/ as `make data` fills it
    python benchmarks/cifar10.py --parts ten --seeds 0 --rows deterministic sngp
    python benchmarks/cifar10.py --phases choose                      # or measure; see _real_data.py
    python benchmarks/cifar10.py --device cuda                        # WRN-28-10 with AugMix
    python benchmarks/cifar10.py --table                              # as Markdown for docs/figures.md

Writes benchmarks/results/cifar10.json, after each row and seed; what a kill leaves undone a second call does. Parts:

ten    All ten classes; Fashion-MNIST and MNIST as colour images of 32 x 32 to detect (far); the first 1,000 test images
       under fifteen corruptions at five strengths, for calibration under shift.
six    Trained on the six animals, to detect the four vehicles (near). Written down before any result.

Of the 50,000 training images, stratified, 5 % are `tune` and 5 % `defer`. Two seeds of single models (three on a GPU),
one ensemble, of which they are the first. All networks of a device share optimizer, schedule and epochs, which were
chosen on held-out training images; SNGP is at its defaults. The choosing phase reads CIFAR-10's training images alone,
of part `six` those of its classes; test images, MNIST and Fashion-MNIST are in files that it never opens.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from _cifar10_images import CLASSES, Part, cifar10
from _corruptions import CORRUPTIONS, STRENGTHS, corrupted
from _fast_network import Augmented, FastNetwork, triangular, whitening
from _real_data import Known, Row, Study, Unseen, bounded, choose, measure, read, standard_rows
from _tables import tables
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hesitant import SNGP, fit
from hesitant.data import fashion_mnist, mnist, split
from hesitant.nn.models import WideResNet

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cifar10.json"
ANIMALS = tuple(CLASSES.index(name) for name in ("bird", "cat", "deer", "dog", "frog", "horse"))
KEPT = {"ten": tuple(range(10)), "six": ANIMALS}
TITLES = {
    "ten": "CIFAR-10, fast network",
    "six": "CIFAR-10's animals, fast network",
    "ten-wrn": "CIFAR-10, WRN-28-10",
    "six-wrn": "CIFAR-10's animals, WRN-28-10",
    "vehicles": "vehicles",
    "fashion": "Fashion-MNIST",
    "mnist": "MNIST",
}
NUM_TIMED = 512
NUM_CORRUPTED = 1000
WIDTHS = (64, 128, 256)


@dataclass(frozen=True)
class Recipe:
    """How the networks of a device are trained."""

    suffix: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    num_members: int
    seeds: tuple[int, ...]

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Answers SGD with Nesterov's momentum."""
        return SGD(parameters, lr=self.learning_rate, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)


RECIPES = {
    "cpu": Recipe("", 16, 256, 0.3, 5e-4, num_members=4, seeds=(0, 1)),
    "cuda": Recipe("-wrn", 200, 128, 0.1, 5e-4, num_members=3, seeds=(0, 1, 2)),
}


def images_of(folder: Path, part: Part, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Answers the images of some classes, which are numbered anew."""
    images, targets = cifar10(folder, part)
    rows = torch.isin(targets, torch.tensor(classes))
    return images[rows], torch.searchsorted(torch.tensor(classes), targets[rows])


def build(device: str, num_classes: int, filters: Tensor | None, kind: str, number: int) -> nn.Module:
    """Answers an untrained model; `filters` are those of the first layer, None where weights are loaded next."""
    torch.manual_seed(number)
    if device == "cuda":
        model = Augmented(WideResNet(num_classes=num_classes), shift=4, augmix=True)
    else:
        model = Augmented(FastNetwork(num_classes, WIDTHS, filters))
    if kind == "sngp":
        return SNGP(model, generator=torch.Generator().manual_seed(number))
    return bounded(model, "network.classifier") if kind == "control" else model


def train(device: str, model: nn.Module, known: Known, kind: str, number: int) -> None:
    """Trains a model, all kinds alike."""
    recipe = RECIPES[device]
    steps = recipe.epochs * -(-len(known.train[1]) // recipe.batch_size)
    fit(
        model,
        known.train,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        optimizer=recipe.optimizer,
        scheduler=lambda optimizer: triangular(optimizer, steps),
        schedule_every="step",
        mixed_precision="bf16",
        seed=number,
        device="cpu" if device == "cpu" else None,
        progress=False,
    )


def rows_of(device: str) -> dict[str, Row]:
    """Answers the rows; SCALE asks for features that are not negative, which those after a GELU are not."""
    rows = standard_rows(RECIPES[device].num_members, 100, ensembles=(0,))
    return {name: row for name, row in rows.items() if device == "cuda" or name != "deterministic_scale"}


def study_of(part: str, device: str, filters: Tensor | None, work: Path) -> Study:
    """Answers the study of a part and device."""
    recipe = RECIPES[device]
    rows = rows_of(device)
    settings = {
        "network": "WRN-28-10, AugMix" if device == "cuda" else f"fast network of widths {WIDTHS}",
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "mixed_precision": "bf16",
        "weight_decay": recipe.weight_decay,
        "classes": [CLASSES[index] for index in KEPT[part]],
        "validation": "a tenth of the training images, halved",
        "corrupted_images": NUM_CORRUPTED,
    }
    make = partial(build, device, len(KEPT[part]), filters)
    return Study(part + recipe.suffix, rows, make, partial(train, device), work, settings)


def known_images(part: str, folder: Path) -> Known:
    """Answers what the choosing phase is given."""
    return Known(*split(images_of(folder / "CIFAR10", "train", KEPT[part]), [0.9, 0.05, 0.05]))


def unseen_images(part: str, folder: Path) -> Unseen:
    """Answers what the measuring phase alone is given."""
    images, targets = images_of(folder / "CIFAR10", "test", KEPT[part])
    timed = images[:NUM_TIMED]
    if part == "six":
        others = tuple(index for index in range(10) if index not in ANIMALS)
        return Unseen(
            (images, targets), {"vehicles": images_of(folder / "CIFAR10", "test", others)[0]}, timed, NUM_TIMED
        )
    far = {
        "fashion": in_colour(fashion_mnist(folder).test.tensors[0]),
        "mnist": in_colour(mnist(folder).test.tensors[0]),
    }
    some, classes = images[:NUM_CORRUPTED], targets[:NUM_CORRUPTED]
    shifts = {
        str(strength): {name: (corrupted(some, name, strength), classes) for name in CORRUPTIONS}
        for strength in STRENGTHS
    }
    return Unseen((images, targets), far, timed, NUM_TIMED, shifts)


def in_colour(grey: Tensor) -> Tensor:
    """Answers images `(N, 1, 28, 28)` in [0, 1] as CIFAR-10 has its own: `(N, 3, 32, 32)`, uint8."""
    return (nn.functional.pad(grey, [2] * 4) * 255).round().to(torch.uint8).repeat(1, 3, 1, 1)


def main() -> None:
    """Chooses and measures what the command line asks for."""
    rows = list(rows_of("cuda"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(KEPT), default=list(KEPT))
    parser.add_argument("--phases", nargs="+", choices=["choose", "measure"], default=["choose", "measure"])
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 0 and 1, on a GPU 0 to 2")
    parser.add_argument("--folder", type=Path, default=ROOT / "data", help="holds CIFAR10, MNIST and FashionMNIST")
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "work" / "cifar10", help="remove to start anew")
    parser.add_argument("--device", choices=list(RECIPES), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured, measure nothing")
    arguments = parser.parse_args()
    device, seeds = arguments.device, arguments.seeds or RECIPES[arguments.device].seeds
    rows = [row for row in arguments.rows if row in rows_of(device)]
    for part in [] if arguments.table else arguments.parts:
        known = known_images(part, arguments.folder)
        if "choose" in arguments.phases:
            study = study_of(part, device, whitening(known.train[0]), arguments.work)
            for seed in seeds:
                choose(study, known, seed, rows)
        if "measure" in arguments.phases:
            study, unseen = study_of(part, device, None, arguments.work), unseen_images(part, arguments.folder)
            for seed in seeds:
                measure(study, known, unseen, seed, rows, device, arguments.out)
    print(tables(read(arguments.out), TITLES))


if __name__ == "__main__":
    main()
