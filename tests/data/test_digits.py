import sys

import pytest
import torch
from sklearn.datasets import load_digits

from hesitant.data import digits


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sizes_types_and_ranges():
    data = digits(generator=seeded())
    assert (len(data.train), len(data.test), len(data.ood)) == (1082, 361, 354)
    for inputs in (data.train.tensors[0], data.test.tensors[0], data.ood):
        assert inputs.dtype == torch.float32
        assert inputs.shape[1:] == (64,)
        assert inputs.min() == 0
        assert inputs.max() == 1
    for split in (data.train, data.test):
        assert split.tensors[1].dtype == torch.int64
        assert split.tensors[1].unique().tolist() == list(range(8))


def test_the_parts_are_the_scans_each_once_with_its_own_target():
    data = digits(generator=seeded())
    pixels, names = load_digits(return_X_y=True)
    ours = [*zip(*data.train.tensors, strict=True), *zip(*data.test.tensors, strict=True)]
    theirs = [(row, name) for row, name in zip(pixels, names, strict=True) if name < 8]
    assert sorted((*(16 * x).tolist(), int(y)) for x, y in ours) == sorted((*row, name) for row, name in theirs)
    torch.testing.assert_close(16 * data.ood, torch.from_numpy(pixels[names >= 8]).float())


def test_every_class_is_tested():
    share = digits(generator=seeded()).test.tensors[1].bincount() / 361
    assert share.min() > 0.06


def test_a_seed_decides_the_split_and_the_global_generator_is_untouched():
    state = torch.get_rng_state()
    first, again, other = digits(generator=seeded(3)), digits(generator=seeded(3)), digits(generator=seeded(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.train.tensors[0], again.train.tensors[0])
    assert not torch.equal(first.train.tensors[0], other.train.tensors[0])
    assert torch.equal(first.ood, other.ood)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'hesitant\[data\]'"):
        digits(generator=seeded())
