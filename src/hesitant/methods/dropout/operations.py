"""Knows every operation of torch that draws dropout, and draws it from masks of our own."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from hesitant.methods.dropout.masks import Masks
from hesitant.methods.operation_calls import written_places

_ALPHA = 1.7580993408473766  # minus the limit of SELU far left: what AlphaDropout puts in the place of what it drops
_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default
_PLAIN = {_aten.dropout.default, _aten.dropout_.default}
_FEATURES = {_aten.feature_dropout.default, _aten.feature_dropout_.default}
_ALPHAS = {_aten.alpha_dropout.default, _aten.alpha_dropout_.default}
_FEATURE_ALPHAS = {_aten.feature_alpha_dropout.default, _aten.feature_alpha_dropout_.default}
_DROPOUTS = {*_PLAIN, *_FEATURES, *_ALPHAS, *_FEATURE_ALPHAS}
KEEPS_STATISTICS = {"aten::batch_norm", "aten::instance_norm"}  # in training, which their schemas do not say
_RECURRENT = {_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input}
_RECURRENT_PACKED = {_aten.lstm.data, _aten.gru.data, _aten.rnn_tanh.data, _aten.rnn_relu.data}


class Repeated(NamedTuple):
    """A tensor of which each of ``times`` passes sees a copy, one after another along ``axis``; None: all the same."""

    value: Tensor
    axis: int | None
    times: int

    @property
    def shape(self) -> torch.Size:
        """Of all copies together."""
        return torch.Size(n * self.times if axis == self.axis else n for axis, n in enumerate(self.value.shape))

    def tensor(self) -> Tensor:
        """Answers the copies in one new tensor."""
        if self.axis is None or self.times == 1:
            return self.value.clone()
        repeats = [self.times if axis == self.axis else 1 for axis in range(self.value.ndim)]
        return self.value.repeat(repeats)


class _Arguments(NamedTuple):
    """Where an operation's schema has what decides whether it draws."""

    tagged: bool
    places: Mapping[str, tuple[int, Any]]

    def value(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if name not in self.places:
            return None
        index, default = self.places[name]
        return args[index] if index < len(args) else kwargs.get(name, default)


@cache
def _arguments(func: OpOverload) -> _Arguments | None:
    if not schema_can_draw(func._schema, func.tags):
        return None
    names = {argument.name: (i, argument.default_value) for i, argument in enumerate(func._schema.arguments)}
    tagged = torch.Tag.nondeterministic_seeded in func.tags
    wanted = ("p", "dropout", "dropout_p", "train", "training", "num_layers")
    return _Arguments(tagged, {name: names[name] for name in wanted if name in names})


def schema_can_draw(schema: torch._C.FunctionSchema, tags: Iterable[torch.Tag]) -> bool:
    """Answers whether any call of an operation of this schema, and these tags, draws random numbers."""
    names = {argument.name for argument in schema.arguments}
    return torch.Tag.nondeterministic_seeded in tags or bool({"dropout", "dropout_p"} & names)


def draws(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Answers whether this call draws random numbers: the same inputs would not give the same outputs."""
    arguments = _arguments(func)
    if arguments is None:
        return False
    if any(arguments.value(name, args, kwargs) is False for name in ("train", "training")):
        return False
    if arguments.value("num_layers", args, kwargs) == 1:  # of a recurrent network, which drops between its layers
        return False
    rates = [arguments.value(name, args, kwargs) for name in ("p", "dropout", "dropout_p")]
    return all(rate is None or not isinstance(rate, (int, float)) or rate > 0 for rate in rates)


def written_by(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Gives the tensors that this call writes to."""
    places: Iterable[int | str] = (place for place, _ in written_places(func, args))
    if func._schema.name in KEEPS_STATISTICS:
        places = (3, 4) if args[5] else ()
    for place in places:
        value = args[place] if isinstance(place, int) else kwargs.get(place)
        yield from (entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, Tensor))


def is_dropout(func: OpOverload) -> bool:
    """Answers whether :func:`drop` can draw for this operation, and can share the masks."""
    return func in _DROPOUTS or func is _ATTENTION


def is_plain_dropout(func: OpOverload) -> bool:
    """Answers whether the operation drops each number by itself, as ``F.dropout`` does."""
    return func in _PLAIN


def attends(func: OpOverload) -> bool:
    """Answers whether the operation is scaled dot-product attention; see :func:`attention_in_parts`."""
    return func is _ATTENTION


def attention_in_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Answers scaled dot-product attention, in operations that ``torch.vmap`` has rules for."""
    attend = _aten._scaled_dot_product_attention_math.default
    answer: Tensor = attend(query, key, value, attn_mask, dropout_p, is_causal, None, **options)[0]
    return answer


def takes_repeated(func: OpOverload) -> bool:
    """Answers whether the first argument of :func:`drop` may be a :class:`Repeated`, which saves the copies."""
    return func in _DROPOUTS and not func._schema.is_mutable


class Layout(NamedTuple):
    """How the passes lie in a tensor.

    Attributes:
        times: S, how many there are.
        axis: Along which they stand one after another.
        shared: Whether all inputs of a pass have the same mask: then the axis holds nothing but inputs.
    """

    times: int = 1
    axis: int = 0
    shared: bool = False


def is_recurrent(func: OpOverload) -> bool:
    """Answers whether the operation is a network that drops between its layers: see :func:`layer_by_layer`."""
    return func in _RECURRENT or func in _RECURRENT_PACKED


def layer_by_layer(
    func: OpOverload, args: Sequence[Any], dropped: Callable[[Tensor, float], Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Answers what a recurrent network does, in operations that each are one layer or one dropout.

    Args:
        func: Of those that :func:`is_recurrent` knows.
        args: Its arguments, all of them.
        dropped: Drops at a rate; None leaves it to torch.
    """
    at = 1 if func in _RECURRENT else 2  # where the state stands: a packed sequence brings the sizes of its batches
    hidden, weights, has_biases, num_layers, drop_rate, _, bidirectional, *rest = args[at:]
    x, several = args[0], isinstance(hidden, (list, tuple))
    states = list(hidden) if several else [hidden]
    directions, per_layer = (2 if bidirectional else 1), len(weights) // num_layers
    last: list[list[Tensor]] = [[] for _ in states]
    for layer in range(num_layers):
        if layer > 0 and drop_rate > 0:
            x = _aten.dropout.default(x, drop_rate, True) if dropped is None else dropped(x, drop_rate)
        of_layer = [state.narrow(0, layer * directions, directions) for state in states]
        own = list(weights[layer * per_layer : (layer + 1) * per_layer])
        state = of_layer if several else of_layer[0]
        x, *after = func(x, *args[1:at], state, own, has_biases, 1, 0.0, False, bidirectional, *rest)
        for kept, tensor in zip(last, after, strict=True):
            kept.append(tensor)
    return x, *(torch.cat(kept) for kept in last)


def draw_otherwise(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    """Answers an operation that draws and is none of :func:`is_dropout`, from a generator of these masks.

    What takes no generator (kernels of other libraries) draws from the process's, which are neither seeded nor put
    back: others in the process draw from them meanwhile.
    """
    if func is _aten.native_dropout.default:
        mask = masks.draw(args[0].shape, float(args[1]), args[0].device)
        kept = mask.kept[0]
        return args[0] * kept.to(args[0].dtype).mul_(1 / mask.keep_rate), kept.bool()
    if kwargs.get("generator") is not None:
        return func(*args, **kwargs)
    generator = masks.generator(device_of_draw(args, kwargs))
    fill = _LIKE.get(func)
    if fill is not None:
        out = torch.empty_like(args[0], **kwargs)
        return fill(out, *args[1:], generator=generator)
    taking = taking_a_generator(func)
    if taking is None:
        return func(*args, **kwargs)
    return taking(*args, **{**kwargs, "generator": generator})


def device_of_draw(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Answers where an operation draws."""
    first = next((arg for arg in args if isinstance(arg, Tensor)), None)
    return torch.device(kwargs.get("device") or (torch.device("cpu") if first is None else first.device))


_LIKE: dict[OpOverload, Callable[..., Tensor]] = {
    _aten.rand_like.default: lambda out, generator: out.uniform_(generator=generator),
    _aten.randn_like.default: lambda out, generator: out.normal_(generator=generator),
    _aten.randint_like.default: lambda out, high, generator: out.random_(0, high, generator=generator),
    _aten.randint_like.low_dtype: lambda out, low, high, generator: out.random_(low, high, generator=generator),
}


@cache
def taking_a_generator(func: OpOverload) -> OpOverload | None:
    """Answers the overload of an operation that takes a generator beside its own arguments."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func
    packet = func._overloadpacket
    for overload in (getattr(packet, name) for name in packet.overloads()):
        theirs = [argument.name for argument in overload._schema.arguments]
        if "generator" in theirs and [name for name in theirs if name != "generator"] == names:
            return overload
    return None


def drop(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], masks: Masks, layout: Layout) -> Tensor:
    """Answers what the operation would, its mask drawn from ``masks``.

    Args:
        func: Of those that :func:`is_dropout` knows.
        args: Its arguments, the first a tensor or, for a dropout, a :class:`Repeated`.
        kwargs: Its further arguments.
        masks: Draws.
        layout: Of the output.
    """
    if func is _ATTENTION:
        return _attention(*args, **kwargs, masks=masks, layout=layout)
    x, drop_rate = args[0], float(args[1])
    value: Tensor = x.value if isinstance(x, Repeated) else x.reshape(x.shape or (1,))
    shape = x.shape or value.shape
    drawn = list(shape)
    if func in _FEATURES or func in _FEATURE_ALPHAS:
        drawn[2:] = [1] * (len(shape) - 2)
    noise, keep_rate = _draw(masks, drawn, drop_rate, value, layout)  # (..., S, B, ...)
    if isinstance(x, Repeated) and x.axis is not None:
        value = value.unsqueeze(layout.axis)
    else:
        value = value.unflatten(layout.axis, (layout.times, shape[layout.axis] // layout.times))
    dropped = (1 - noise) if func in _ALPHAS or func in _FEATURE_ALPHAS else None
    # In place: a fresh tensor's memory has to be mapped page by page, for longer than it takes to multiply.
    fits = noise.numel() == math.prod(shape)
    out = noise.mul_(value) if fits else noise * value
    if dropped is None:
        out.mul_(1 / keep_rate)
    else:
        scale, shift = _alpha_affine(drop_rate, keep_rate)
        out.sub_(dropped, alpha=_ALPHA).mul_(scale).add_(shift)
    out = out.reshape(x.shape)
    return args[0].copy_(out) if func._schema.is_mutable else out


def _draw(masks: Masks, shape: Sequence[int], drop_rate: float, like: Tensor, layout: Layout) -> tuple[Tensor, float]:
    """Answers a mask of numbers, with the passes as an axis of their own before the one that they stand along."""
    once = list(shape)
    once[layout.axis] = 1 if layout.shared else -(-shape[layout.axis] // layout.times)
    mask = masks.draw(once, drop_rate, like.device)  # (S, ...)
    return mask.kept.movedim(0, layout.axis).to(like.dtype), mask.keep_rate  # of integers, a signed byte is fastest


def _alpha_affine(drop_rate: float, keep_rate: float) -> tuple[float, float]:
    """Answers the scale and the shift that give AlphaDropout's output the mean and variance of its input."""
    if drop_rate >= 1:
        return 0.0, 0.0
    scale = 1 / math.sqrt(keep_rate * (1 + (1 - keep_rate) * _ALPHA**2))
    return scale, scale * _ALPHA * (1 - keep_rate)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    masks: Masks,
    layout: Layout,
) -> Tensor:
    """Answers scaled dot-product attention: ``drop(softmax(Q K^T scale + mask)) V``."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))  # (..., T, U)
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores.masked_fill_(~attn_mask, -math.inf)
        else:
            scores += attn_mask
    weights = _aten._safe_softmax.default(scores, -1)  # a row that may attend to nothing answers zeros
    noise, keep_rate = _draw(masks, weights.shape, dropout_p, weights, layout)
    weights = weights.unflatten(layout.axis, (layout.times, weights.shape[layout.axis] // layout.times))
    dropped = noise * weights if layout.shared else noise.mul_(weights)
    return torch.matmul(dropped.mul_(1 / keep_rate).flatten(layout.axis, layout.axis + 1), value)
