"""Several passes of a small model at once: its code runs once, on tensors that hold what each pass has at a place.

These are the tensors of ``torch.vmap``, whose rules say what an operation does for each of them; a tensor that no draw
has reached is one for all, and computed once. Where the code looks at a number, the passes that have the same one go on
together, and the others count for nothing: they run again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.vmap import vmap_increment_nesting
from torch._ops import OpOverload

from hesitant.methods.dropout.interception import APART, Met, Role, intercepted
from hesitant.methods.dropout.masks import Mask, Masks
from hesitant.methods.dropout.masks_ahead import MasksAhead
from hesitant.methods.dropout.operations import (
    Layout,
    attends,
    attention_in_parts,
    device_of_draw,
    draw_otherwise,
    draws,
    drop,
    is_dropout,
    is_recurrent,
    taking_a_generator,
    written_by,
)
from hesitant.methods.dropout.replay import OtherCourseError
from hesitant.methods.dropout.watched_pass import require_unguarded
from hesitant.methods.operation_calls import Place, map_call, tensors_in
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

    def _meet(self, met: Met, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answers one operation."""
        role, func = met.role, met.func
        if role is Role.DROPS and args[2] is True and 0 < args[1] <= 1:
            self._require_own_level(func)
            return args[0] * self._several(self._masks.noise(args[0], float(args[1])))
        if role is Role.LOOKS:
            return self._look(func, args[0])
        for tensor in (args[0],) if role is Role.WRITES else written_by(func, args, kwargs):
            require_unguarded(tensor, self._guarded(), self.wrote)
            if not _is_several(tensor) and any(map(_is_several, args[1:])):  # sooner than functorch would say so
                raise OtherCourseError(f"{func} would write to what is the same in all passes")
        if role is Role.WRITES:
            return met.run(*args, **kwargs)
        if not draws(func, args, kwargs):
            if met.has_rule or not any(_is_several(tensor) for _, tensor in tensors_in(args, kwargs)):
                return met.run(*args, **kwargs)
            if attends(func):
                return attention_in_parts(*args, **kwargs)
            raise OtherCourseError(f"{func} is not known for several passes at once")
        self._require_own_level(func)
        if is_dropout(func):
            if func._schema.is_mutable and not _is_several(args[0]):
                raise OtherCourseError(f"{func} drops in a tensor that is the same in all passes")
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

            taking = taking_a_generator(func)
            if taking is not None and not any(value is not None for value in values.values()):
                device = device_of_draw(args, kwargs)
                draw, named = taking._op, dict(kwargs)
                named.pop("generator", None)
                answers = [draw(*args, **named, generator=masks.generator(device)) for masks in self._each]
            else:
                answers = [self._draw_one(func, args, kwargs, values, index) for index in range(len(self._each))]
            if func._schema.is_mutable:
                return args[0]
            if isinstance(answers[0], tuple):
                return tuple(self._several(torch.stack(part)) for part in zip(*answers, strict=True))
            return self._several(torch.stack(answers))

    def _draw_one(
        self,
        func: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        values: Mapping[Place, Tensor | None],
        index: int,
    ) -> Any:
        """Answers an operation in one of the passes, of tensors that are ``values`` in each, or the same in all."""

        def own(place: Place, tensor: Tensor) -> Tensor:
            value = values[place]
            return tensor if value is None else value[index]

        return draw_otherwise(func, *map_call(args, kwargs, own), self._each[index])


class _MasksOfSeveral(Masks):
    """The masks of passes that run as one, each of them a tensor that is another in each pass."""

    def __init__(self, passes: VectorizedPasses) -> None:
        self._of = passes

    def draw(self, shape: Sequence[int], drop_rate: float, device: torch.device) -> Mask:
        """Answers a mask ``(1, *shape)``, as for a pass alone."""
        kept, keep_rate = self._of._masks.draw(shape, drop_rate, device)
        return Mask(self._of._several(kept.unsqueeze(1)), keep_rate)


def _is_several(value: Any) -> bool:
    return isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value)
