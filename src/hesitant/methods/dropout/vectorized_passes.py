"""Several passes of a small model at once: its code runs once, on tensors that hold what each pass has at a place.

These are the tensors of ``torch.vmap``, whose rules say what an operation does for each of them; a tensor that no draw
has reached is one for all, and computed once. Where the code looks at a number, the passes that have the same one go on
together, and the others count for nothing: they run again.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.vmap import vmap_increment_nesting
from torch._ops import OpOverload

from hesitant.methods.dropout.interception import APART, has_rule, intercepted, is_look, plain
from hesitant.methods.dropout.masks import Mask, Masks
from hesitant.methods.dropout.masks_ahead import MasksAhead
from hesitant.methods.dropout.operations import (
    KEEPS_STATISTICS,
    Layout,
    draw_otherwise,
    draws,
    drop,
    is_dropout,
    is_plain_dropout,
    is_recurrent,
    schema_can_draw,
    written_by,
)
from hesitant.methods.dropout.replay import OtherCourseError
from hesitant.methods.dropout.watched_pass import ModelWrittenError
from hesitant.methods.operation_calls import address, map_call, tensors_in
from hesitant.methods.outputs import logits_of


class VectorizedPasses:
    """Runs some passes as one, with the masks that each would have alone.

    Args:
        ahead: Draws.
        passes: Which of its passes.
        guarded: Answers the addresses of what the passes may not write to.

    Attributes:
        same: The places, among ``passes``, of those whose answer counts: the first, and what went the same way.
        drew, reached: Whether any operation drew random numbers, and whether these reached the logits.
        wrote: As of :class:`WatchedPass`.
        structured: Whether the model answered something else than a tensor.
    """

    def __init__(self, ahead: MasksAhead, passes: Sequence[int], guarded: Callable[[], set[int]]) -> None:
        self._ahead, self._passes, self._guarded = ahead, passes, guarded
        self._masks = ahead.of(*passes)
        self._each: list[Masks] = []
        self._level = -1
        self.same = list(range(len(passes)))
        self.drew = self.reached = self.structured = False
        self.wrote: set[int] = set()

    def call(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Answers the logits ``(s, ...)`` of all passes.

        Raises:
            Exception: The passes cannot run as one, or the model raises.
        """

        def run() -> Tensor:
            with vmap_increment_nesting(len(self._passes), "error") as self._level:
                output = model(*args, **kwargs)
                self.structured = not isinstance(output, Tensor)
                logits = logits_of(output)
                self.reached = self.drew and _is_several(logits)
                answer: Tensor = _functorch._remove_batch_dim(logits, self._level, len(self._passes), 0)
                return answer

        return intercepted(self._meet, run, (), {})

    # ---------------------------------------------------------------- inside

    def _meet(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answers one operation."""
        role = _role(func)
        if role is _Role.DROPS and args[2] is True and 0 < args[1] <= 1:
            self._require_own_level(func)
            return args[0] * self._several(self._masks.noise(args[0], float(args[1])))
        if role is _Role.LOOKS:
            return self._look(func, args[0])
        for tensor in (args[0],) if role is _Role.WRITES else written_by(func, args, kwargs):
            memory = address(plain(tensor))
            if memory in self._guarded():
                self.wrote.add(memory)
                raise ModelWrittenError
        if role is _Role.WRITES:
            return func(*args, **kwargs)
        if not draws(func, args, kwargs):
            if not has_rule(func) and any(_is_several(tensor) for _, tensor in tensors_in(args, kwargs)):
                raise OtherCourseError(f"{func} is not known for several passes at once")
            return func(*args, **kwargs)
        self._require_own_level(func)
        if is_dropout(func):
            return drop(func, args, kwargs, _MasksOfSeveral(self), Layout())
        return self._draw_each(func, args, kwargs)

    def _require_own_level(self, func: OpOverload) -> None:
        if _functorch.maybe_current_level() != self._level or is_recurrent(func):
            raise OtherCourseError(f"{func} draws within another transform, or for several layers")
        self.drew = True

    def _several(self, values: Tensor) -> Tensor:
        """Answers the tensor that is one of these ``(s, ...)`` in each pass."""
        answer: Tensor = _functorch._add_batch_dim(values, 0, self._level)
        return answer

    def _values(self, tensor: Tensor) -> Tensor | None:
        """Answers what a tensor is in each pass ``(s, ...)``, or None where it is the same in all.

        Raises:
            OtherCourseError: Another transform than ours is at work.
        """
        if not _is_several(tensor):
            return None
        if _functorch.maybe_get_level(tensor) != self._level:
            raise OtherCourseError("the code transforms tensors itself")
        values: Tensor = _functorch.get_unwrapped(tensor)
        return values.movedim(_functorch.maybe_get_bdim(tensor), 0)

    def _look(self, func: OpOverload, tensor: Tensor) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(APART):
            values = self._values(tensor)
            if values is not None and values[0].numel() == 1:
                seen = (values.bool() if func._schema.name == "aten::is_nonzero" else values).reshape(-1).tolist()
                answer = seen[self.same[0]]
                self.same = [place for place in self.same if seen[place] == answer or place == self.same[0]]
                return answer
        return func(tensor)

    def _draw_each(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answers an operation that draws by itself, pass by pass."""
        if kwargs.get("generator") is not None:
            raise OtherCourseError(f"{func} draws from the model's own generator, one pass after the other")
        if not self._each:
            self._each = [self._ahead.of(index) for index in self._passes]
        with torch._C._ExcludeDispatchKeyGuard(APART):
            values = {place: self._values(tensor) for place, tensor in tensors_in(args, kwargs)}
            if func._schema.is_mutable and values.get((0, -1)) is None:
                raise OtherCourseError(f"{func} draws into a tensor that is the same in all passes")

            def of_pass(index: int) -> Any:
                own, named = map_call(args, kwargs, lambda at, x: x if (v := values[at]) is None else v[index])
                return draw_otherwise(func, own, named, self._each[index])

            answers = [of_pass(index) for index in range(len(self._passes))]
            if func._schema.is_mutable:
                return args[0]
            if isinstance(answers[0], tuple):
                return tuple(self._several(torch.stack(part)) for part in zip(*answers, strict=True))
            return self._several(torch.stack(answers))


class _MasksOfSeveral(Masks):
    """The masks of passes that run as one, each of them a tensor that is another in each pass."""

    def __init__(self, passes: VectorizedPasses) -> None:
        self._of = passes

    def draw(self, shape: Sequence[int], drop_rate: float, device: torch.device) -> Mask:
        """Answers a mask ``(1, *shape)``, as for a pass alone."""
        kept, keep_rate = self._of._masks.draw(shape, drop_rate, device)
        return Mask(self._of._several(kept.unsqueeze(1)), keep_rate)


class _Role(Enum):
    """What an operation is met for."""

    DROPS = "is F.dropout"
    LOOKS = "tells a number"
    WRITES = "writes to its first argument, and does nothing else of these"
    OTHER = "may do several"


@cache
def _role(func: OpOverload) -> _Role:
    if is_plain_dropout(func) and not func._schema.is_mutable:
        return _Role.DROPS
    if is_look(func):
        return _Role.LOOKS
    schema = func._schema
    if schema_can_draw(schema, func.tags) or schema.name in KEEPS_STATISTICS or not has_rule(func):
        return _Role.OTHER
    written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if written == schema.arguments[:1] and str(written[0].type) == "Tensor":
        return _Role.WRITES
    return _Role.OTHER


def _is_several(tensor: Tensor) -> bool:
    return _functorch.is_functorch_wrapped_tensor(tensor)
