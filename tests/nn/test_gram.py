import pytest
import torch

from hesitant.nn.gram import add_gram, mirror


@pytest.mark.parametrize("size", [1, 7, 64, 65, 300, 1025])
def test_half_the_sum_and_its_mirror_are_the_whole(size):
    generator = torch.Generator().manual_seed(size)
    total, expected = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
    for rows in (1, 40, 13):
        features = torch.randn(rows, size, generator=generator, dtype=torch.float64)
        weights = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
        add_gram(total, features, features * weights, 0.3)
        expected += 0.3 * features.T @ (features * weights)
    whole = mirror(total)
    assert whole is total
    assert torch.equal(whole, whole.T)
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)


def test_half_of_a_large_sum_is_left_out():
    total = torch.zeros(1024, 1024)
    features = torch.ones(2, 1024)
    add_gram(total, features, features, 1.0)
    assert float((total == 0).sum()) > 0.4 * total.numel()
