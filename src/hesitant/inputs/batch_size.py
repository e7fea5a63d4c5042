"""How many inputs run in one forward pass where nobody says: told from their shapes alone, so that seeds reproduce."""

from torch import Tensor

from hesitant.inputs.batch import Batch, tensors_of

_MOST_INPUTS = 1024
_BYTES = 2**25  # of the inputs of a batch: the activations of an image model are some twenty times as many
_BYTES_OF_A_TOKEN = 2**10  # an integer is looked up in a table: it stands for a row of numbers


def chosen_batch_size(batch: Batch, num_rows: int) -> int:
    """Answers a power of two from 1 to 1,024: 32 for images of 224 x 224, 128 for texts of 64 tokens.

    Args:
        batch: Some inputs.
        num_rows: How many.
    """
    size = sum(_bytes(tensor) for tensor in tensors_of(batch) if tensor.ndim > 0) / max(1, num_rows)
    most = int(_BYTES // max(1.0, size))
    return min(_MOST_INPUTS, 1 << max(0, most.bit_length() - 1))


def require_batch_size(batch_size: int | None) -> None:
    """Raises ValueError for what is no number of inputs."""
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"batch_size={batch_size!r} is no integer of at least 1: leave it out, and it is chosen by the inputs'"
            " size."
        )


def _bytes(tensor: Tensor) -> int:
    if tensor.ndim < 4 and not tensor.is_floating_point() and tensor.element_size() >= 4:
        return tensor.numel() * _BYTES_OF_A_TOKEN
    return tensor.numel() * max(4, tensor.element_size())
