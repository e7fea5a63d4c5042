from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hesitant.methods.gaussian_head.fingerprint import fingerprint
from hesitant.nn.models import MLP

NONE = "nothing is called so"


def model() -> MLP:
    return MLP(4, 3, hidden=(8, 8), generator=torch.Generator().manual_seed(0))


def test_it_is_a_function_of_the_weights() -> None:
    assert fingerprint(model(), NONE) == fingerprint(model(), NONE)
    assert 0 <= fingerprint(model(), NONE) < 2**63
    assert fingerprint(nn.ReLU(), NONE) == 0


@torch.no_grad()
@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.data.view(-1)[3:4].copy_(torch.nextafter(w.view(-1)[3:4], torch.tensor(9.0))),
        lambda w: w.data.neg_(),
        lambda w: w.data.copy_(w.flip(0)),
        lambda w: w.data.copy_(w.flip(1)),
        lambda w: w.data.copy_(w.roll(1)),
        lambda w: w.detach().numpy().__setitem__((0, 0), 7.0),
        lambda w: w.set_(torch.zeros_like(w)),
        lambda w: w.fill_(float("nan")),
    ],
    ids=["one bit", "sign", "rows swapped", "columns swapped", "rolled", "numpy", "set_", "NaN"],
)
def test_every_write_shows(write: Callable[[Tensor], object]) -> None:
    changed = model()
    before = fingerprint(changed, NONE)
    weight = next(p for p in changed.parameters() if p.shape == (8, 8))
    write(weight)
    assert fingerprint(changed, NONE) != before


@torch.no_grad()
def test_a_sign_that_moves_to_another_weight_shows() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    before = fingerprint(layer, NONE)
    layer.weight.neg_()
    assert fingerprint(layer, NONE) != before


@torch.no_grad()
def test_weights_that_change_places_show() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = fingerprint(layers, NONE)
    first = layers[0].weight.clone()
    layers[0].weight.copy_(layers[1].weight)
    layers[1].weight.copy_(first)
    assert fingerprint(layers, NONE) != before


def test_statistics_show_and_what_is_left_out_does_not() -> None:
    norm = nn.Sequential(nn.BatchNorm1d(2))
    before, without = fingerprint(norm, NONE), fingerprint(norm, "0.running")
    norm(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert fingerprint(norm, NONE) != before
    norm[0].num_batches_tracked.zero_()
    assert fingerprint(norm, "0.running") == without


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.int64, torch.bool]
)
def test_every_dtype_shape_and_layout_is_read(dtype: torch.dtype) -> None:
    for shape in ((), (0,), (1,), (5,), (3, 4), (2, 3, 4, 5)):
        holder = nn.Module()
        holder.register_buffer("values", torch.zeros(shape, dtype=dtype))
        before = fingerprint(holder, NONE)
        holder.values = torch.ones(shape, dtype=dtype)
        assert (fingerprint(holder, NONE) != before) == (holder.values.numel() > 0)
    plain, strided = nn.Module(), nn.Module()
    values = torch.arange(12).reshape(3, 4).to(dtype)
    plain.register_buffer("values", values)
    strided.register_buffer("values", values.T.contiguous().T)
    assert fingerprint(plain, NONE) == fingerprint(strided, NONE)
