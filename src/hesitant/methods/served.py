"""Which inputs a model was chosen on: those of its temperature, and those by which its training was stopped early.

On them a model looks better than it is, so that no promise about new inputs can be made from them. Each is remembered
by a digest of its bits: a copy of it is found again, in whatever order and batches it comes; the same numbers in
another dtype, or augmented anew, are not.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant.methods.batches import Batch
from hesitant.methods.tempering import Tempered
from hesitant.methods.wrapper import Gathered

Reason = Literal["calibrate", "factor", "fit"]

_WORDS_AT_ONCE = 2**20
_MASK_KEY = "attention_mask"
_LOW = 0xFFFFFFFF
# Odd constants of SplitMix64 (Steele, Lea, Flood 2014), as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def digests(batch: Batch) -> Tensor:
    """Answers a number for each input of a batch, ``(B,)`` int64, of the bits of all its tensors and their names.

    A trailing zero counts for nothing, nor does what an ``attention_mask`` ``(B, L)`` leaves out: a text has the same
    digest whatever it was padded to on its right.
    """
    named = sorted(_named(batch), key=lambda pair: pair[0])
    if not named:
        raise TypeError("a batch holds no tensor: expected the inputs along the first axis of one.")
    mask = batch.kwargs.get(_MASK_KEY)
    length = _num_inputs(batch, [len(tensor) for _, tensor in named])
    total = torch.zeros(length, dtype=torch.int64, device=named[0][1].device)
    for name, tensor in named:
        if len(tensor) != length:
            continue  # what is no input of its own, such as a table for all
        if isinstance(mask, Tensor) and mask.ndim == 2 and tensor.shape[:2] == mask.shape:
            tensor = tensor.masked_fill((mask == 0).view(*mask.shape, *[1] * (tensor.ndim - 2)), 0)
        total += _mixed(_row_sums(tensor, zlib.crc32(name.encode()))).to(total.device)
    return total


def digests_of(data: Iterable[Batch]) -> Tensor:
    """Answers the digests of all inputs, each once and in ascending order, on the CPU."""
    found = Gathered()
    for batch in data:
        found.append(digests(batch).cpu())
    numbers = found.tensor()
    return torch.zeros(0, dtype=torch.int64) if numbers is None else numbers.unique()


def remember(model: nn.Module, reason: Reason, numbers: Tensor) -> None:
    """Has a method remember the inputs with these digests, beside those that it remembers for another reason.

    In memory alone: a copy of the method remembers too, a state dict does not. A plain model remembers nothing.
    """
    if isinstance(model, Tempered):
        model._served = {**model._served, reason: numbers}


class Served:
    """Notes for the batches of one call which inputs the model was chosen on.

    Args:
        model: What answers; methods within it remember too.
    """

    def __init__(self, model: nn.Module) -> None:
        known = [n for module in model.modules() if isinstance(module, Tempered) for n in module._served.values()]
        self._known = torch.cat(known).unique() if known else None
        self._marks = Gathered()

    def append(self, batch: Batch) -> None:
        """Looks at a batch; to be called before the model, which may write to it."""
        if self._known is not None:
            numbers = digests(batch)
            self._marks.append(torch.isin(numbers, self._known.to(numbers.device)))

    def tensor(self, num_answers: int) -> Tensor | None:
        """Answers ``(N,)`` booleans; None if the model remembers no input, or it is not known what the inputs are."""
        marks = None if self._known is None else self._marks.tensor()
        return marks if marks is not None and len(marks) == num_answers else None


def _num_inputs(batch: Batch, lengths: list[int]) -> int:
    """Answers the length of the targets, or else of the most tensors: others are no inputs, such as a table for all."""
    if batch.targets is not None and batch.targets.ndim > 0:
        return len(batch.targets)
    return max(lengths, key=lambda length: (lengths.count(length), length))


def _named(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for position, value in enumerate(batch.args):
        yield from _within(str(position), value)
    for key, value in batch.kwargs.items():
        yield from _within(key, value)


def _within(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.ndim > 0:
            yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _within(f"{name}.{key}", entry)
    elif isinstance(value, (tuple, list)):
        for position, entry in enumerate(value):
            yield from _within(f"{name}.{position}", entry)


def _row_sums(tensor: Tensor, salt: int) -> Tensor:
    """Answers for each row ``(B,)`` a sum over words of 8 bytes, mixed with their places; zeros add nothing."""
    rows = _words(tensor)
    salts = torch.arange(1, rows.shape[1] + 1, device=rows.device).mul_(_GOLDEN).add_(salt)
    nothing = _mixed(salts.clone()).sum()
    answer = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    step = max(1, _WORDS_AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        answer[start : start + step] = _mixed(part ^ salts).sum(1)
    return answer - nothing


def _words(tensor: Tensor) -> Tensor:
    """Answers the rows of a tensor as words of 8 bytes, filled up with zeros: ``(B, W)`` int64."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)
    octets = rows.contiguous().view(torch.uint8)  # (B, bytes)
    missing = -octets.shape[1] % 8
    if missing:
        octets = F.pad(octets, (0, missing))
    elif octets.storage_offset() % 8:
        octets = octets.clone()  # words are read from where they are aligned
    return octets.view(torch.int64)


def _mixed(words: Tensor) -> Tensor:
    """Answers the words with all their bits mixed, one to one, in place."""
    words.mul_(_FIRST)
    words.bitwise_xor_((words >> 31).bitwise_and_(_LOW))
    words.mul_(_SECOND)
    return words.bitwise_xor_((words >> 29).bitwise_and_(_LOW))
