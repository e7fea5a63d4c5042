"""A number of a tensor's bits, by which it is known again."""

import torch
from torch import Tensor

_PLACES = 0x5851F42D4C957F2D
_ROW = 1024


def bit_sum(tensor: Tensor) -> Tensor:
    """Answers a sum of the tensor's bits in which places count, so that weights which change places show."""
    tensor = tensor.detach().resolve_conj().resolve_neg().reshape(-1).contiguous()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor).reshape(-1)
    if tensor.storage_offset() * tensor.element_size() % 8:
        tensor = tensor.clone()  # 8 bytes at once are read ten times as fast as 4, but only from where they are aligned
    octets = tensor.view(torch.uint8)
    whole = len(octets) // 8 * 8
    words = octets[:whole].view(torch.int64)
    rows = words[: len(words) // _ROW * _ROW].view(len(words) // _ROW, _ROW)
    parts = torch.cat([rows.sum(1), rows.sum(0), words[rows.numel() :], octets[whole:].long()])
    return parts.mul_(torch.arange(1, len(parts) + 1, device=parts.device).mul_(_PLACES)).sum()
