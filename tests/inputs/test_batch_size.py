import pytest
import torch

from hesitant.inputs import batches


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2,), torch.float32, 1024),
        ((784,), torch.float32, 1024),
        ((3, 32, 32), torch.float32, 1024),
        ((3, 224, 224), torch.float32, 32),
        ((3, 224, 224), torch.uint8, 32),
        ((3, 1024, 1024), torch.float32, 2),
        ((64,), torch.int64, 512),
    ],
)
def test_the_default_goes_by_the_size_of_an_input_alone(
    shape: tuple[int, ...], dtype: torch.dtype, expected: int
) -> None:
    assert len(next(batches(torch.zeros(1, *shape, dtype=dtype).expand(1100, *shape))).args[0]) == expected
    part = next(batches(torch.utils.data.TensorDataset(torch.zeros(1, *shape, dtype=dtype).expand(40, *shape))))
    assert len(part.args[0]) == min(40, expected)


def test_texts_of_several_tensors_count_them_all() -> None:
    text = {name: torch.zeros(300, 64, dtype=torch.long) for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert next(batches(text)).num_inputs == 128
