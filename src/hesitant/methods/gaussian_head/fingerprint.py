"""A number that changes when the weights of a model do, whatever changed them."""

import torch
from torch import nn

from hesitant.nn import bit_sum

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses no bit
_MASK = 2**63 - 1


def fingerprint(model: nn.Module, without: str = "") -> int:
    """Answers a 63-bit number of the bits of all parameters and saved buffers but those under the prefix ``without``.

    An empty prefix leaves nothing out.

    Sums of integers do not depend on their order, so the number is the same on every device. It reads the weights once:
    optimizers that write without telling autograd, weights loaded, averaged, moved about or set by hand all show.
    """
    tensors = [t for name, t in model.state_dict(keep_vars=True).items() if not (without and name.startswith(without))]
    sums = [bit_sum(tensor) for tensor in tensors]
    answer = 0
    # One device as a rule: a copy to the host for each tensor would make a GPU wait as many times.
    for value in torch.stack([s.to(sums[0].device) for s in sums]).tolist() if sums else []:
        answer = (answer * _MULTIPLIER + value) & _MASK
    return answer
