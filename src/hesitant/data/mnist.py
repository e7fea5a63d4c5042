"""MNIST and Fashion-MNIST: 70,000 small images each, handwritten digits and clothes, from the original files."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from hesitant.data.idx import read_idx

SIDE = 28
BRIGHTEST = 255


class LabelledImages(NamedTuple):
    """Grey images and their classes, in the order of the files. An input is `(1, 28, 28)`, float32 in [0, 1].

    Attributes:
        train: inputs `(60000, 1, 28, 28)`, and their targets 0 to 9, int64.
        test: 10,000 other images, alike.
    """

    train: TensorDataset
    test: TensorDataset


class _Original(NamedTuple):
    """The four files of a data set, as its authors published them.

    Attributes:
        name: the data set's name in torchvision, of its class and of its folder.
        sha256: the checksum of each uncompressed file, by its name.
        num_train: number of images to train on.
        num_test: number of images to test on.
    """

    name: str
    sha256: dict[str, str]
    num_train: int = 60_000
    num_test: int = 10_000


_MNIST = _Original(
    "MNIST",
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
_FASHION_MNIST = _Original(
    "FashionMNIST",
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)


def mnist(folder: str | os.PathLike[str] | None = None) -> LabelledImages:
    """Answers with MNIST: handwritten digits, 60,000 images to train on and 10,000 to test.

    Pixels are what torchvision's `ToTensor` makes of them, unnormalised: over the training images their mean is 0.1307
    and their standard deviation 0.3081. Every file is checked to the last byte. Source: LeCun, Bottou, Bengio and
    Haffner 1998, "Gradient-Based Learning Applied to Document Recognition".

    Args:
        folder: holds the four original files (`train-images-idx3-ubyte` and so on, plain or `.gz`), itself or in its
            `MNIST/raw`, as a folder of torchvision's does; nothing is downloaded. None reads them from the user's
            cache, `$XDG_CACHE_HOME/hesitant` or `~/.cache/hesitant`, where torchvision downloads them the first time.

    Raises:
        FileNotFoundError: if `folder` lacks a file.
        ImportError: if torchvision is to download the files and is not installed.
        RuntimeError: if torchvision cannot download them.
        ValueError: if a file is not the original one: damaged, cut short, or of another data set.
    """
    return _load(_MNIST, folder)


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> LabelledImages:
    """Answers with Fashion-MNIST: pictures of clothes in ten classes, in the shape of MNIST, which they are no part of.

    Source: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", arXiv:1708.07747.

    Args:
        folder: as for `mnist`, with `FashionMNIST/raw`. Debian's package dataset-fashion-mnist has the files in
            `/usr/share/datasets/fashion-mnist`.

    Raises:
        FileNotFoundError: if `folder` lacks a file.
        ImportError: if torchvision is to download the files and is not installed.
        RuntimeError: if torchvision cannot download them.
        ValueError: if a file is not the original one: damaged, cut short, or of another data set.
    """
    return _load(_FASHION_MNIST, folder)


def _load(original: _Original, folder: str | os.PathLike[str] | None) -> LabelledImages:
    root = _downloaded(original) if folder is None else Path(folder).expanduser()
    return LabelledImages(
        train=_read(original, root, "train", original.num_train), test=_read(original, root, "t10k", original.num_test)
    )


def _read(original: _Original, root: Path, part: str, count: int) -> TensorDataset:
    pixels = _values(original, root, f"{part}-images-idx3-ubyte", (count, SIDE, SIDE))
    labels = _values(original, root, f"{part}-labels-idx1-ubyte", (count,))
    inputs = torch.from_numpy(np.divide(pixels, np.float32(BRIGHTEST), dtype=np.float32)).unsqueeze(1)  # (N, 1, 28, 28)
    return TensorDataset(inputs, torch.from_numpy(labels.astype(np.int64)))


def _values(original: _Original, root: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    path = _find(original, root, name)
    if path is None:
        raise FileNotFoundError(
            f"folder='{root}' does not hold {name}, plain or as .gz, and has none in {original.name}/raw: "
            f"name the folder of the four original files, or leave folder out, and torchvision downloads them."
        )
    return read_idx(path, shape=shape, sha256=original.sha256[name])


def _find(original: _Original, root: Path, name: str) -> Path | None:
    # torchvision's layout first: its root may hold several data sets, whose files have the same names.
    places = (root / original.name / "raw", root)
    candidates = (place / file for place in places for file in (name, f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _downloaded(original: _Original) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    root = (Path(cache) if cache else Path.home() / ".cache") / "hesitant"
    if all(_find(original, root, name) for name in original.sha256):
        return root
    way_out = "pass folder=, the folder where the four original files are"
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(
            f"torchvision is to download {original.name} and is not installed: pip install torchvision, or {way_out}."
        ) from error
    try:
        getattr(datasets, original.name)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"torchvision could not download {original.name} to '{root}' ({error}): try again, or {way_out}."
        ) from error
    return root
