"""Who has moved the weights: told by cheap means, so that reading them all can wait until there is a suspicion."""

import threading
import weakref
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_post_hook

from hesitant.nn.compilation import run_eagerly

_NUMBERS = 16  # that a look reads from the weights
_LIVING: "weakref.WeakSet[WeightWatch]" = weakref.WeakSet()
_LOCK = threading.Lock()  # of the set, which may not grow while it is walked


class WeightWatch:
    """Remembers how a model's weights stood when they were trusted, and suspects who has moved them since.

    Seen at once: a step of any torch optimizer in this process, of other models too (``raised``); a tensor that was
    replaced or whose memory is another (``.data = ...``, ``.to(...)``); any write in place that autograd is told of,
    under ``no_grad`` too; and what :meth:`raise_suspicion` is called for, such as weights loaded. For writes that
    autograd is not told of (through ``.data`` or NumPy, by a fused optimizer) a look reads 16 numbers spread over the
    model. **Not seen**: such a write that leaves these numbers as they were, so one to few places; a buffer that no
    state dict holds; in torch 2.6, which drops the optimizers' hooks once something was compiled, a step that shows
    by none of the other means.

    A suspicion proves nothing: the weights may be what they were. Whoever can tell trusts first and compares then, so
    that what moves meanwhile raises a suspicion again. One watch serves any number of threads; its copies, pickled
    ones too, have seen nothing and are suspicious.
    """

    def __init__(self) -> None:
        # A plain attribute: compiled code guards on it, and may be told by it to go back to Python.
        self.raised = True
        self._known: _Weights | None = None
        with _LOCK:
            _LIVING.add(self)

    def suspects(self, module: nn.Module, without: str = "", *, read: bool = True) -> bool:
        """Answers whether weights of the module may have moved since :meth:`trusts` was last called.

        Args:
            module: That was trusted.
            without: The name of a submodule that is left out.
            read: Whether 16 numbers are read too, for which a GPU must be waited.
        """
        known = self._known
        if self.raised or known is None:
            return True
        tensors = _tensors(module, without)
        return known.addresses != _addresses(tensors) or known.show_a_move(tensors, read)

    def has_moved(self, module: nn.Module, without: str = "", *, read: bool = True) -> bool:
        """Answers whether the weights themselves show that they moved, for who cannot look further.

        A step is no evidence here, nor another place in memory: sending a model to another process moves it there, too.
        Then the numbers are read, also where ``read`` is False.
        """
        known = self._known
        if known is None:
            return True
        tensors = _tensors(module, without)
        return known.show_a_move(tensors, read or known.addresses != _addresses(tensors))

    def trusts(self, module: nn.Module, without: str = "") -> bool:
        """Takes the weights as they are for known; answers whether they show that they moved (:meth:`has_moved`)."""
        self.raised = False  # before the look: a step that comes now raises it again
        tensors = _tensors(module, without)
        before, places = self._known, _places(tensors)
        self._known = _Weights(_addresses(tensors), _versions(tensors), places, _numbers(tensors, places))
        return before is not None and before.show_a_move(tensors, True)

    def forget(self) -> None:
        """Knows nothing of the weights from now on, as at the beginning."""
        self._known = None
        self.raised = True

    def raise_suspicion(self) -> None:
        """Suspects the weights until they are trusted again, whatever they show."""
        self.raised = True

    def __reduce__(self) -> tuple[type["WeightWatch"], tuple[()]]:
        return WeightWatch, ()


class _Weights(NamedTuple):
    """What is remembered of weights."""

    addresses: tuple[int, ...]
    versions: int
    places: tuple[tuple[int, int], ...]  # of the numbers read: which tensor, and where in its storage
    numbers: tuple[int, ...]  # their bits, so that NaN is NaN

    def show_a_move(self, tensors: list[Tensor], read: bool) -> bool:
        """Answers whether other tensors are there, or they were written to, or other numbers are in them."""
        if len(tensors) != len(self.addresses) or self.versions != _versions(tensors):
            return True
        if not read:
            return False
        try:
            return self.numbers != _numbers(tensors, self.places)
        except RuntimeError:  # smaller tensors have no such places
            return True


def _tensors(module: nn.Module, without: str) -> list[Tensor]:
    """Answers the parameters and the saved buffers; ``named_parameters`` would take ten times as long."""
    passed: set[nn.Module | None] = {None, module.get_submodule(without.rstrip(".")) if without else None}
    found: list[Tensor | None] = []
    waiting: list[nn.Module | None] = [module]
    for current in waiting:
        if current is None or current in passed:
            continue
        passed.add(current)
        if current._parameters:
            found += current._parameters.values()
        if current._buffers:
            unsaved = current._non_persistent_buffers_set
            found += [b for name, b in current._buffers.items() if name not in unsaved]
        if current._modules:
            waiting += current._modules.values()
    return [tensor for tensor in found if tensor is not None]


def _addresses(tensors: list[Tensor]) -> tuple[int, ...]:
    try:
        return tuple([tensor.data_ptr() for tensor in tensors])
    except (RuntimeError, ValueError):
        return tuple([_address(tensor) for tensor in tensors])


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError):  # it has no memory of its own (sharded), or none yet (lazy)
        return id(tensor)


def _versions(tensors: list[Tensor]) -> int:
    try:
        return sum([tensor._version for tensor in tensors])
    except (RuntimeError, ValueError):  # what was made in inference mode keeps no count
        return sum([tensor._version for tensor in tensors if not (is_lazy(tensor) or tensor.is_inference())])


def _places(tensors: list[Tensor]) -> tuple[tuple[int, int], ...]:
    """Chooses where 16 numbers are read: in as many tensors, or several in each of fewer."""
    readable = [index for index, tensor in enumerate(tensors) if _is_readable(tensor)]
    chosen = readable if len(readable) <= _NUMBERS else readable[:: -(-len(readable) // _NUMBERS)]
    each = _NUMBERS // max(1, len(chosen))
    return tuple((index, offset) for index in chosen for offset in _offsets(tensors[index], each))


def _is_readable(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta
    wide = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return plain and wide and not is_lazy(tensor) and tensor.numel() > 0


def _offsets(tensor: Tensor, num: int) -> list[int]:
    """Answers up to ``num`` places in the storage that numbers of the tensor have."""
    size, start = tensor.numel(), int(tensor.storage_offset())
    span = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if span != size:  # between its numbers are those of another tensor
        return [start]
    return [start + size * (2 * i + 1) // (2 * num) for i in range(min(num, size))]


@torch.no_grad()
def _numbers(tensors: list[Tensor], places: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    picked = [tensors[index].as_strided((), (), offset) for index, offset in places]
    bits: list[int] = []
    for _, group in groupby(picked, key=lambda number: number.device):  # one device as a rule: one copy to the host
        bits += torch.stack(list(group)).cpu().double().view(torch.int64).tolist()
    return tuple(bits)


@run_eagerly
def _after_a_step(*_: Any) -> None:
    with _LOCK:
        for watch in _LIVING:
            watch.raised = True


register_optimizer_step_post_hook(_after_a_step)


class WeightsLoaded:
    """A load_state_dict hook for every module: whoever loads weights, wherever, they are looked at again.

    It knows no module: who copies a layer with its hooks, as dynamo does, would copy the whole model.
    """

    def __init__(self, watch: WeightWatch) -> None:
        self.watch = watch

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        """Raises the suspicion."""
        self.watch.raise_suspicion()
