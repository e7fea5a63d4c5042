"""A number that changes when the weights of a model do, whatever changed them."""

import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses no bit
_MASK = 2**63 - 1


def fingerprint(model: nn.Module, without: str) -> int:
    """Answers a 63-bit number of the bits of all parameters and saved buffers but those under the prefix ``without``.

    Sums of integers do not depend on their order, so the number is the same on every device. It reads the weights once:
    optimizers that write without telling autograd, weights loaded, averaged or set by hand all show.
    """
    tensors = [t for name, t in model.state_dict(keep_vars=True).items() if not name.startswith(without)]
    answer = 0
    for value in torch.stack([_bit_sum(tensor).cpu() for tensor in tensors]).tolist() if tensors else []:
        answer = (answer * _MULTIPLIER + value) & _MASK
    return answer


def _bit_sum(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype == torch.bool:
        return tensor.sum(dtype=torch.int64)
    return tensor.view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
