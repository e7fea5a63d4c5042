"""Draws the dropout of ensemble members in training from streams of their own, alone or side by side under vmap."""

import copy
import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hesitant.methods.dropout_draws import draws
from hesitant.methods.masks import Masks

_aten = torch.ops.aten


class Drawing(enum.Enum):
    """How a model draws in training, and so how its masks can be given to it."""

    FUNCTIONS = "with F.dropout alone, or not at all"
    OPERATIONS = "with Bernoulli draws below it too: attention, alpha and feature dropout, stochastic depth"
    OWN = "in a way that is not known: it keeps PyTorch's generators, and its members are trained one by one"


class UnknownDrawError(RuntimeError):
    """The model draws random numbers in a way for which there are no masks."""


class MemberMasks(Masks):
    """The masks of some members: each draws from its own stream, whether it trains by itself or beside others.

    Args:
        seeds: Of each member, numbers that are not negative.
        device: Where the members are.
        together: Whether they run under vmap, as one; else there is one.
    """

    def __init__(self, seeds: Sequence[tuple[int, ...]], device: torch.device, *, together: bool) -> None:
        super().__init__(seeds)
        self.num_members = len(seeds)
        self.together = together
        self.busy = False
        if device.type != "cpu":
            self._generators = [torch.Generator(device).manual_seed(seed) for seed in self._device_seeds]

    def of(self, members: slice) -> "MemberMasks":
        """Answers the masks of some of the members, drawn from the same streams."""
        some = copy.copy(self)
        some._streams, some._generators = self._streams[members], self._generators[members]
        some.num_members = len(some._streams)
        return some

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


class _Drop(torch.autograd.Function):
    """Multiplies the members' tensors by the masks of all: below vmap both have an axis of members."""

    @staticmethod
    def forward(x: Tensor, drop_rate: float, masks: MemberMasks) -> Tensor:
        raise UnknownDrawError("dropout of a tensor that is the same for all members")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps nothing: what is below vmap is differentiated as it runs."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, drop_rate: float, masks: MemberMasks) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return x * masks.noise(x.shape[1:], drop_rate, x), 0


class _Functions(TorchFunctionMode):
    """Draws for every ``F.dropout``, which ``nn.Dropout`` calls too: the cheapest place where a draw is seen."""

    def __init__(self, masks: MemberMasks) -> None:
        super().__init__()
        self.masks = masks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            return self._drop(*args, **kwargs)
        return func(*args, **(kwargs or {}))

    def _drop(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0 or not 0 < p <= 1:
            return F.dropout(x, p, training, inplace)
        if self.masks.together:
            out: Tensor = _Drop.apply(x, p, self.masks)
        else:
            out = x * self.masks.noise(x.shape, p, x)
        return x.copy_(out) if inplace else out


class _Operations(TorchDispatchMode):
    """Draws for every Bernoulli draw of PyTorch's kernels; below vmap the members are the first axis."""

    def __init__(self, masks: MemberMasks) -> None:
        super().__init__()
        self.masks = masks
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
        raise UnknownDrawError(str(func))

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
        with _Functions(masks), _Operations(masks):
            yield


@contextmanager
def plain_attention(drawing: Drawing, device: torch.device) -> Iterator[None]:
    """Keeps attention from kernels that draw their dropout inside, where no mask can be given to them."""
    if drawing is Drawing.OPERATIONS and device.type != "cpu":
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


class Probe:
    """Finds out how a model draws, by a step of training on a copy of it: its forward pass, then its backward pass."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen = _Operations(MemberMasks([(0,)], device, together=False))
        self.drawing = Drawing.FUNCTIONS

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watches the forward pass."""
        with plain_attention(Drawing.OPERATIONS, self._device), _Functions(self._seen.masks), self._seen:
            yield
        if self._seen.drew:
            self.drawing = Drawing.OPERATIONS

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Watches the backward pass: what is computed anew there must find the masks that it had, and would not."""
        self._seen.drew = False
        drew_functions = self._seen.masks.device_seed
        del drew_functions
        with self._seen:
            yield
        if self._seen.drew:
            self.drawing = Drawing.OWN
