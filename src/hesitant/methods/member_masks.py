"""Draws the dropout of ensemble members in training from streams of their own, alone or side by side under vmap."""

import copy
import enum
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hesitant.methods.dropout_draws import draws
from hesitant.methods.masks import Mask, Masks
from hesitant.methods.random_state import derived_seed
from hesitant.methods.under_vmap import below_vmap

_aten = torch.ops.aten
_WORD_BITS = 31
_WORDS_AT_ONCE = 2**20  # of each member, on an accelerator: 4 MiB


class Drawing(enum.Enum):
    """How a model draws in training, and so how its masks can be given to it."""

    FUNCTIONS = "with F.dropout alone, or not at all"
    OPERATIONS = "with Bernoulli draws below it too: attention, alpha and feature dropout, stochastic depth"
    OWN = "in a way that is not known: it keeps PyTorch's generators, and its members are trained one by one"


class UnknownDrawError(RuntimeError):
    """The model draws random numbers in a way for which there are no masks."""


class _Words:
    """Random numbers of each member on a device, drawn many at a time: a launch for each member and mask adds up."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._drawn = torch.empty(len(seeds), _WORDS_AT_ONCE, dtype=torch.int32, device=device)
        self._used = [_WORDS_AT_ONCE] * len(seeds)

    def draw(self, members: range, count: int) -> Tensor:
        """Answers ``(members, count)`` numbers of 31 bits, int32."""
        if count > _WORDS_AT_ONCE:
            words = self._drawn.new_empty(len(members), count)
            for member, row in zip(members, words, strict=True):
                row.random_(generator=self._generators[member])
            return words
        for member in members:
            if self._used[member] + count > _WORDS_AT_ONCE:
                self._drawn[member].random_(generator=self._generators[member])
                self._used[member] = 0
        starts = [self._used[member] for member in members]
        for member in members:
            self._used[member] += count
        if len(set(starts)) == 1:
            return self._drawn[members.start : members.stop, starts[0] : starts[0] + count]
        rows = zip(members, starts, strict=True)
        return torch.stack([self._drawn[member, start : start + count] for member, start in rows])


class MemberMasks(Masks):
    """The masks of some members: each draws from its own stream, whether it trains by itself or beside others.

    Args:
        seeds: Of each member, numbers that are not negative.
        device: Where the members are.
        together: Whether they run under vmap, as one; else there is one.
    """

    def __init__(self, seeds: Sequence[tuple[int, ...]], device: torch.device, *, together: bool) -> None:
        super().__init__(seeds)
        self.together = together
        self.busy = False
        self._members = range(len(seeds))
        self._words = _Words([derived_seed(*seed) for seed in seeds], device) if device.type != "cpu" else None

    @property
    def num_members(self) -> int:
        """How many members draw."""
        return len(self._members)

    def of(self, member: int) -> "MemberMasks":
        """Answers the masks of one of the members, drawn from the same stream."""
        one = copy.copy(self)
        one._streams, one._members = self._streams[member : member + 1], self._members[member : member + 1]
        return one

    def _draw_on(self, device: torch.device, all_shape: tuple[int, ...], drop_rate: float) -> Mask:
        assert self._words is not None
        words = self._words.draw(self._members, math.prod(all_shape[1:]))
        threshold = round((1 - drop_rate) * 2**_WORD_BITS)
        return Mask((words < threshold).view(torch.int8).view(all_shape), threshold / 2.0**_WORD_BITS)

    def kept(self, shape: Sequence[int], drop_rate: float, device: torch.device) -> tuple[Tensor, float]:
        """Answers a mask ``(members, *shape)`` of each member's ``shape``, or ``shape`` alone; and its keep rate."""
        self.busy = True
        try:
            mask = self.draw(shape, drop_rate, device)
        finally:
            self.busy = False
        self.shapes.clear()
        return mask.kept if self.together else mask.kept[0], mask.keep_rate

    def noise(self, shape: Sequence[int], drop_rate: float, like: Tensor) -> Tensor:
        """Answers what a tensor is to be multiplied by: 0, or one over the keep rate."""
        kept, keep_rate = self.kept(shape, drop_rate, like.device)
        if like.dtype == torch.get_default_dtype():
            return kept * (1 / keep_rate)  # converts as it multiplies
        return kept.to(like.dtype).mul_(1 / keep_rate)


class _Functions(TorchFunctionMode):
    """Draws for every ``F.dropout``, which ``nn.Dropout`` calls too: the cheapest place where a draw is seen.

    Under vmap it takes linear layers over as well, whose product and bias are one operation then, and all of it in the
    precision that autocast asks for.
    """

    def __init__(self, masks: MemberMasks) -> None:
        super().__init__()
        self.masks = masks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            return self._drop(*args, **kwargs)
        if func is F.linear and self.masks.together:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None:
            return F.linear(x, weight)
        return below_vmap(_stacked_linear, self.masks.num_members, x, weight, bias)

    def _drop(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0 or not 0 < p <= 1:
            return F.dropout(x, p, training, inplace)
        if self.masks.together:
            masks = self.masks
            out = below_vmap(lambda every: every * masks.noise(every.shape[1:], p, every), masks.num_members, x)
        else:
            out = x * self.masks.noise(x.shape, p, x)
        return x.copy_(out) if inplace else out


def _stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = x.reshape(len(x), -1, x.shape[-1])  # (M, N, in)
    out = torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
    return out.view(*x.shape[:-1], weight.shape[1])


class _Operations(TorchDispatchMode):
    """Draws for every Bernoulli draw of PyTorch's kernels; below vmap the members are the first axis.

    What is drawn in another way, a member by itself draws from PyTorch's generators; members together must not.
    """

    def __init__(self, masks: MemberMasks, *, strict: bool) -> None:
        super().__init__()
        self.masks, self.strict = masks, strict
        self.drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.masks.busy or not draws(func, args, kwargs):
            return func(*args, **kwargs)
        self.drew = True
        if kwargs.get("generator") is None:
            if func is _aten.bernoulli.p:
                return self._filled(torch.empty_like(args[0], memory_format=torch.contiguous_format), args[1])
            if func is _aten.bernoulli_.float:
                return self._filled(*args)
            if func is _aten.native_dropout.default:
                kept = self._kept(args[0].shape, args[1], args[0].device)
                scale = 0.0 if args[1] >= 1 else 1 / (1 - args[1])
                return args[0] * kept.to(args[0].dtype).mul_(scale), kept.bool()
        if self.strict:
            raise UnknownDrawError(f"{func} draws random numbers in a way that is not known")
        return func(*args, **kwargs)

    def _filled(self, out: Tensor, keep_rate: float = 0.5) -> Tensor:
        if keep_rate >= 1:
            return out.fill_(1)
        return out.copy_(self._kept(out.shape, 1 - keep_rate, out.device))

    def _kept(self, shape: Sequence[int], drop_rate: float, device: torch.device) -> Tensor:
        if not self.masks.together:
            return self.masks.kept(shape, drop_rate, device)[0]
        if shape[0] != self.masks.num_members:
            raise UnknownDrawError(f"a draw of shape {tuple(shape)} for {self.masks.num_members} members")
        return self.masks.kept(shape[1:], drop_rate, device)[0]


@contextmanager
def drawing_from(masks: MemberMasks, drawing: Drawing) -> Iterator[None]:
    """Lets what runs within draw from the masks; the backward pass is to run outside."""
    if drawing is Drawing.OWN:
        yield
    elif drawing is Drawing.FUNCTIONS:
        with _Functions(masks):
            yield
    else:
        with _Functions(masks), _Operations(masks, strict=masks.together):
            yield


@contextmanager
def plain_attention(drawing: Drawing, device: torch.device) -> Iterator[None]:
    """Keeps attention from kernels that draw their dropout inside, where no mask can be given to them."""
    if drawing is Drawing.OPERATIONS and device.type != "cpu":
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


class MemberDropout:
    """The dropout of one member that trains by itself, from the stream that it has beside others.

    Args:
        seed: Of the member.
        drawing: How its model draws.
    """

    def __init__(self, seed: int, drawing: Drawing) -> None:
        self._seed, self._drawing = seed, drawing
        self._masks: MemberMasks | None = None

    def begin(self, epoch: int, device: torch.device, worker: int = 0) -> None:
        """Begins the epoch's stream, which no other epoch has a part in: a resumed run draws as an unbroken one."""
        self._masks = MemberMasks([(self._seed + worker, epoch)], device, together=False)

    def step(self) -> AbstractContextManager[None]:
        """Draws the dropout of a forward pass within."""
        assert self._masks is not None
        return drawing_from(self._masks, self._drawing)

    def attention(self, device: torch.device) -> AbstractContextManager[None]:
        """Keeps attention, all the while, where its dropout can be drawn."""
        return plain_attention(self._drawing, device)


class Probe:
    """Finds out how a model draws, from a step of training: the forward pass, then the backward pass.

    Attributes:
        drawing: What has been found.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._masks = MemberMasks([(0,)], device, together=False)
        self.drawing = Drawing.FUNCTIONS

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watches the forward pass."""
        below = _Operations(self._masks, strict=True)
        with plain_attention(Drawing.OPERATIONS, self._device), _Functions(self._masks), below:
            yield
        if below.drew and self.drawing is Drawing.FUNCTIONS:
            self.drawing = Drawing.OPERATIONS

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Watches the backward pass: what is computed anew there would draw other masks than it had."""
        below = _Operations(self._masks, strict=True)
        with below:
            yield
        if below.drew:
            self.drawing = Drawing.OWN
