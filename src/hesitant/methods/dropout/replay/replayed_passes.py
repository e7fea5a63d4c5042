"""Further passes: several at once, where what no drawn number reaches is not computed again.

They run on the inputs repeated. An operation that no drawn number reaches is not computed: it answers with a
:class:`Placeholder`, a tensor with a shape and no content, and where a placeholder meets drawn numbers, the first
pass's tensor takes its place. So the model's own code runs each time, in place or out of place, with shapes that fit
each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from hesitant.methods.dropout.masks import Masks
from hesitant.methods.dropout.operations import (
    Layout,
    Repeated,
    draws,
    is_dropout,
    is_recurrent,
    layer_by_layer,
    takes_repeated,
)
from hesitant.methods.dropout.replay.placeholders import OtherCourseError, Placeholder, Placeholders
from hesitant.methods.dropout.replay.recorded_pass import Extent, RecordedPass, Step
from hesitant.methods.dropout.watched_pass import WatchedPass
from hesitant.methods.operation_calls import Place, address, map_call, tensors_in

_CONTIGUOUS = torch.ops.aten.contiguous.default


class ReplayedPasses(WatchedPass):
    """Runs several passes at once, on inputs repeated one after another along their batch axis.

    Args:
        first: The first pass, over.
        masks: Draws.
        guarded: The addresses of what the passes may not write to.
        num_inputs: B, how many inputs a pass has.
        times: How many passes.
        shared: Whether all inputs of a pass have the same mask.
        again: What operations that draw by themselves shall answer once more, instead of drawing.

    Attributes:
        drawn: What such operations answered, and the shapes of it in the first pass.
    """

    def __init__(
        self,
        first: RecordedPass,
        masks: Masks,
        guarded: set[int],
        num_inputs: int,
        times: int,
        *,
        shared: bool,
        again: Iterator[list[Tensor]] | None = None,
    ) -> None:
        super().__init__(masks, guarded)
        self.drawn: list[tuple[list[torch.Size], list[Tensor]]] = []
        self._again = again
        self._steps, self._position = first.steps, 0
        self._num_inputs, self._times, self._shared = num_inputs, times, shared
        self._placeholders = Placeholders()

    def drawn_by(self, sample: int) -> Iterator[list[Tensor]]:
        """Gives what one of the passes drew of ``drawn``."""
        for shapes, tensors in self.drawn:
            axes = [self._axis(shape, tensor.shape) for shape, tensor in zip(shapes, tensors, strict=True)]
            yield [
                tensor if axis is None else tensor.narrow(axis, sample * shape[axis], shape[axis])
                for axis, shape, tensor in zip(axes, shapes, tensors, strict=True)
            ]

    def placeholder(self, tensor: Tensor) -> Tensor:
        """Answers what stands for an input ``(B, ...)`` repeated, or the tensor itself where it is no such input."""
        size = tensor.size()
        if not size or size[0] != self._num_inputs:
            return tensor
        repeated = (self._times * size[0], *size[1:])
        return self._placeholders.standing_for(torch.empty(repeated, dtype=tensor.dtype, device="meta"), tensor.device)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation, or answers what stands for its outputs."""
        kwargs = kwargs or {}
        if is_recurrent(func) and draws(func, args, kwargs):
            with self:
                return layer_by_layer(func, args)
        self.guard(func, args, kwargs)
        step = self._next(func)
        if step.random:
            return self._compute(step, args, kwargs)
        standing = [tensor for _, tensor in tensors_in(args, kwargs) if isinstance(tensor, Placeholder)]
        return self._placeholders.stand_in(step, args, kwargs, standing) if standing else func(*args, **kwargs)

    def _next(self, func: OpOverload) -> Step:
        """Answers the operation's step in the first pass.

        Tensors lie in memory as they happen to, so that ``contiguous`` may have had nothing to do, or have nothing now.
        """
        while self._position < len(self._steps):
            step = self._steps[self._position]
            if step.func is func:
                self._position += 1
                return step
            if func is _CONTIGUOUS:
                return Step(func, random=False, draws=False)
            if step.func is not _CONTIGUOUS:
                raise OtherCourseError(f"the model runs {func} where it ran {step.func} before")
            self._position += 1
        raise OtherCourseError(f"the model runs {func} where it had ended before")

    def _compute(self, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answers a random operation: all of its inputs are computed now."""
        func = step.func
        unfolds = step.draws and takes_repeated(func)

        def content(place: Place, tensor: Tensor) -> Any:
            if not isinstance(tensor, Placeholder):
                return tensor
            memory, contents = address(tensor.shaped), self._placeholders.contents
            if place in step.whole and memory not in contents:
                contents[memory] = self._repeated_whole(step.whole[place], self._placeholders.extent(tensor))
            if memory in contents:
                whole = contents[memory]
                return whole.as_strided(tensor.shape, tensor.stride(), int(tensor.shaped.storage_offset()))
            value = step.inputs[place]
            repeated = self._repeated(value, tensor.shape)
            if unfolds and place == (0, -1) and repeated.axis is not None and value.ndim > 0:
                return repeated
            return value if repeated.axis is None else repeated.tensor()

        args, kwargs = map_call(args, kwargs, content)
        answer = self._draw(step, args, kwargs) if step.draws else func(*args, **kwargs)
        if isinstance(answer, (bool, int, float)):
            raise OtherCourseError("the model's code looks at a number that dropout reached")
        for shape, (_, output) in zip(step.shapes, tensors_in((answer,), {}), strict=True):
            # What differs from pass to pass has to have the passes' axis: else it would be one for all of them.
            if self._axis(shape, output.shape) is None and self._times > 1 and output.numel() > 0:
                raise OtherCourseError(f"{func} brings the inputs of a batch together, or draws once for all of them")
        return answer

    def _draw(self, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        layout = self._drawn_layout(step, args)
        if is_dropout(step.func):
            return self.run(step.func, args, kwargs, layout)
        answer = self.run(step.func, args, kwargs, layout)
        outputs = [tensor for _, tensor in tensors_in((answer,), {})]
        if self._again is None:
            self.drawn.append((step.shapes, [tensor.clone() for tensor in outputs]))
        else:
            for output, drawn in zip(outputs, next(self._again), strict=True):
                output.copy_(drawn)
        return answer

    def _drawn_layout(self, step: Step, args: Sequence[Any]) -> Layout:
        """Answers where the passes lie in what is drawn."""
        if not is_dropout(step.func):
            if self._shared:
                raise OtherCourseError(f"{step.func} draws by itself, for each input apart")
            return Layout()
        assert step.shape is not None
        axis = self._axis(step.shape, args[0].shape, whole=self._shared)
        if axis is None and self._times > 1:
            raise OtherCourseError(f"{step.func} draws once for all inputs")
        return Layout(self._times, axis or 0, self._shared)

    def _repeated(self, value: Tensor, shape: torch.Size) -> Repeated:
        return Repeated(value, self._axis(value.shape, shape, whole=self._shared), self._times)

    def _repeated_whole(self, value: Tensor, extent: Extent) -> Tensor:
        """Answers the content of a placeholder's memory."""
        if extent.offset != 0:
            raise OtherCourseError("a tensor that is written to does not begin where its memory does")
        content = torch.empty_strided(extent.shape, extent.strides, dtype=value.dtype, device=value.device)
        return content.copy_(self._repeated(value, extent.shape).tensor())

    def _axis(self, shape: torch.Size, repeated: torch.Size, *, whole: bool = False) -> int | None:
        """Answers the axis along which the passes stand one after another; ``whole``: it holds nothing but inputs."""
        axes = [axis for axis, (n, m) in enumerate(zip(shape, repeated, strict=False)) if n != m]
        if len(shape) == len(repeated) and not axes:
            return None
        # Where heads or windows share the axis, the inputs are taken for the outer ones; MCDropout verifies a pass.
        if (
            len(shape) != len(repeated)
            or len(axes) > 1
            or repeated[axes[0]] != self._times * shape[axes[0]]
            or (whole and shape[axes[0]] != self._num_inputs)
        ):
            raise OtherCourseError(f"a tensor of shape {tuple(shape)} is of shape {tuple(repeated)} for several passes")
        return axes[0]
