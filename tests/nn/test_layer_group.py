import pytest
import torch
from torch import nn

from hesitant.nn import SpectralNormalizer
from hesitant.nn.layer_group import LayerGroup, ProjectionStep, bit_checksum, is_faster_alone, shrink, stack
from hesitant.nn.power_iteration import MatrixOperator


def weight(*shape, dtype=torch.float32):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype))


def test_one_weight_is_not_copied_and_several_are():
    one = weight(4, 3)
    assert stack([one]).data_ptr() == one.data_ptr()
    assert stack([one, one]).shape == (2, 4, 3)
    channels_last = nn.Parameter(weight(4, 3, 2, 2).detach().to(memory_format=torch.channels_last))
    assert stack([channels_last])[0].is_contiguous()


def test_large_matrices_and_convolutions_advance_alone():
    assert not is_faster_alone(weight(128, 128))
    assert is_faster_alone(weight(512, 512))
    assert is_faster_alone(weight(8, 8, 3, 3))
    assert not is_faster_alone(torch.empty(512, 512, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("number", [1, 3])
def test_each_weight_is_multiplied_once(number, dtype):
    weights = [weight(4, 3, dtype=dtype) for _ in range(number)]
    before = [w.detach().clone() for w in weights]
    stacked = stack(weights)
    scale = torch.full((number,), 0.5, dtype=stacked.dtype)
    group = LayerGroup(["w"] * number, weights, MatrixOperator(), scale, bit_checksum(stacked), scale)
    shrink(group, ProjectionStep(stacked, bit_checksum(stacked), scale > 0, scale))
    assert all(torch.equal(w, b / 2) for w, b in zip(weights, before, strict=True))
    assert torch.equal(group.checksum, bit_checksum(stack(weights)))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_a_pointwise_convolution_is_bounded_before_it_has_seen_an_input(stride, padding):
    conv = nn.Conv2d(6, 4, 1, stride=stride, padding=padding)
    with torch.no_grad():
        conv.weight.copy_(weight(4, 6, 1, 1))
    normalizer = SpectralNormalizer(nn.Sequential(conv), 1e9)
    norm = normalizer.norms()["0"]
    # As it is written out for one size: the columns of the operator are its answers to unit vectors.
    unit = torch.eye(6 * 5 * 7).view(-1, 6, 5, 7)
    columns = nn.functional.conv2d(unit, conv.weight, None, conv.stride, conv.padding).flatten(1)
    assert norm == pytest.approx(float(torch.linalg.matrix_norm(columns.detach(), ord=2)), rel=1e-5)


@pytest.mark.parametrize("options", [{"groups": 2}, {"padding": 1, "padding_mode": "reflect"}])
def test_other_convolutions_of_kernel_one_depend_on_the_size(options):
    normalizer = SpectralNormalizer(nn.Sequential(nn.Conv2d(6, 4, 1, **options)), 1e9)
    with pytest.raises(ValueError, match="have not seen an input"):
        normalizer.norms()
