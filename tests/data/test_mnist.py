import gzip
import hashlib
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchvision import datasets, transforms

from hesitant.data import fashion_mnist, mnist
from hesitant.data.mnist import _FASHION_MNIST, _MNIST, _load, _Original
from hesitant.nn.models import MLP

NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
# Where `make data` puts the real files.
REAL = Path(__file__).parents[2] / "data"


def idx(values):
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.numpy().tobytes()


def small_files(seed=0):
    generator = torch.Generator().manual_seed(seed)
    files = {}
    for part, count in (("train", 6), ("t10k", 3)):
        images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        images[0, 0, :2] = torch.tensor([0, 255])
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8))
    return files


def write(files, folder, *, pack=bytes, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(pack(content))
    return folder


FILES = small_files()


def original(name, files):
    return _Original(name, {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}, 6, 3)


SMALL = original("MNIST", FILES)


def assert_same(data, expected):
    for split, expected_split in zip(data, expected, strict=True):
        for tensor, expected_tensor in zip(split.tensors, expected_split.tensors, strict=True):
            assert torch.equal(tensor, expected_tensor)


def test_images_and_targets_are_torchvisions_to_the_last_bit(tmp_path):
    write(FILES, tmp_path / "MNIST" / "raw")
    data = _load(SMALL, tmp_path)
    for train, ours in ((True, data.train), (False, data.test)):
        theirs = datasets.MNIST(tmp_path, train=train, transform=transforms.ToTensor())
        assert len(ours) == len(theirs)
        for (x, y), (their_x, their_y) in zip(ours, theirs, strict=True):
            assert torch.equal(x, their_x)
            assert y == their_y


def test_shapes_types_and_ranges(tmp_path):
    data = _load(SMALL, write(FILES, tmp_path))
    for split, count in ((data.train, 6), (data.test, 3)):
        inputs, targets = split.tensors
        assert inputs.shape == (count, 1, 28, 28)
        assert inputs.dtype == torch.float32
        assert inputs.is_contiguous()
        assert (inputs.min(), inputs.max()) == (0, 1)
        assert targets.shape == (count,)
        assert targets.dtype == torch.int64
    assert MLP(784, 10)(data.train.tensors[0]).shape == (6, 10)


def test_every_layout_of_the_folder_answers_the_same(tmp_path, monkeypatch):
    expected = _load(SMALL, write(FILES, tmp_path / "plain"))
    assert_same(_load(SMALL, str(tmp_path / "plain")), expected)
    assert_same(_load(SMALL, write(FILES, tmp_path / "packed", pack=gzip.compress, suffix=".gz")), expected)
    write(FILES, tmp_path / "torchvision" / "MNIST" / "raw", pack=gzip.compress, suffix=".gz")
    assert_same(_load(SMALL, tmp_path / "torchvision"), expected)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(_load(SMALL, "~/plain"), expected)


def test_two_data_sets_share_a_folder(tmp_path):
    other_files = small_files(seed=1)
    write(FILES, tmp_path)
    write(other_files, tmp_path / "FashionMNIST" / "raw")
    other = _load(original("FashionMNIST", other_files), tmp_path)
    assert not torch.equal(other.train.tensors[0], _load(SMALL, tmp_path).train.tensors[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_with_the_folder_and_a_way_out(tmp_path, name):
    (write(FILES, tmp_path) / name).unlink()
    message = rf"folder='{re.escape(str(tmp_path))}' does not hold {name},.*MNIST/raw.*torchvision"
    with pytest.raises(FileNotFoundError, match=message):
        _load(SMALL, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_byte_in_any_file_is_noticed(tmp_path, name):
    path = write(FILES, tmp_path) / name
    path.write_bytes(FILES[name][:-1] + bytes([FILES[name][-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{name} is not the original file: its SHA-256"):
        _load(SMALL, tmp_path)


def test_train_and_test_files_put_in_each_others_place_are_noticed(tmp_path):
    write(FILES, tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(FILES["t10k-images-idx3-ubyte"])
    with pytest.raises(ValueError, match=r"dimensions are \(3, 28, 28\), expected \(6, 28, 28\)"):
        _load(SMALL, tmp_path)


@pytest.mark.parametrize("read", [mnist, fashion_mnist])
def test_the_public_functions_take_no_other_files_for_the_originals(tmp_path, read):
    write(FILES, tmp_path)
    with pytest.raises(ValueError, match=r"dimensions are \(6, 28, 28\), expected \(60000, 28, 28\)"):
        read(tmp_path)


@pytest.mark.parametrize("published", [_MNIST, _FASHION_MNIST], ids=lambda published: published.name)
def test_the_files_are_those_that_torchvision_downloads(published):
    theirs = getattr(datasets, published.name)
    assert [f"{name}.gz" for name in published.sha256] == [name for name, _ in theirs.resources]


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """torchvision puts the small files in place without a network; the answer gathers the roots it was called with."""
    roots = []

    def fetch(root, *, download):
        assert download
        write(FILES, Path(root) / "MNIST" / "raw")
        roots.append(Path(root))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "MNIST", fetch)
    return roots


def test_without_a_folder_torchvision_downloads_once_into_the_users_cache(tmp_path, downloads):
    first, again = _load(SMALL, None), _load(SMALL, None)
    assert downloads == [tmp_path / "cache" / "hesitant"]
    assert_same(again, first)
    assert_same(first, _load(SMALL, write(FILES, tmp_path / "plain")))


def test_the_cache_is_in_the_home_folder_by_default(tmp_path, monkeypatch, downloads):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    _load(SMALL, None)
    assert downloads == [tmp_path / ".cache" / "hesitant"]


def test_a_half_downloaded_cache_is_completed(tmp_path, downloads):
    folder = write(FILES, tmp_path / "cache" / "hesitant" / "MNIST" / "raw")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    _load(SMALL, None)
    assert len(downloads) == 1


def test_a_folder_is_read_without_torchvision_and_never_downloaded_to(tmp_path, monkeypatch, downloads):
    with pytest.raises(FileNotFoundError):
        _load(SMALL, tmp_path / "empty")
    assert downloads == []
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert len(_load(SMALL, write(FILES, tmp_path / "plain")).train) == 6


def test_importing_the_data_sets_imports_no_torchvision():
    check = "import hesitant.data, sys; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_without_torchvision_it_says_what_to_install_or_to_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision, or pass folder="):
        _load(SMALL, None)


@pytest.mark.parametrize("error", [RuntimeError("Error downloading"), TimeoutError("timed out")], ids=repr)
def test_a_failed_download_says_so_and_what_to_pass(tmp_path, monkeypatch, error):
    def fail(root, *, download):
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=SimpleNamespace(MNIST=fail)))
    with pytest.raises(RuntimeError, match=rf"could not download MNIST to .*{error}.*pass folder=") as raised:
        _load(SMALL, None)
    assert raised.value.__cause__ is error


def real(read):
    assert REAL.is_dir(), f"{REAL} is missing: this test reads the real files, which `make data` fetches."
    return read(REAL)


@pytest.mark.slow
def test_the_real_mnist_has_its_published_statistics():
    data = real(mnist)
    inputs, targets = data.train.tensors
    assert inputs.shape == (60_000, 1, 28, 28)
    assert inputs.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert inputs.double().std().item() == pytest.approx(0.3081, abs=5e-5)
    assert targets.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test.tensors[0].shape == (10_000, 1, 28, 28)
    assert data.test.tensors[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.slow
def test_the_real_fashion_mnist_has_its_published_statistics():
    data = real(fashion_mnist)
    inputs, targets = data.train.tensors
    assert inputs.shape == (60_000, 1, 28, 28)
    assert inputs.double().mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert inputs.double().std().item() == pytest.approx(0.3530, abs=5e-5)
    assert targets.bincount().tolist() == [6000] * 10
    assert targets[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.test.tensors[0].shape == (10_000, 1, 28, 28)
    assert data.test.tensors[1].bincount().tolist() == [1000] * 10
