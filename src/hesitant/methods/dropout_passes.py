"""Runs a model's forward with dropout, and computes what no drawn number reaches once instead of once a pass.

The first pass runs as it is and notes, for every operation, whether a drawn number had reached its inputs, and the
inputs of those that it had not. Further passes run together, on the inputs repeated. There, an operation that no drawn
number reaches is not computed: it answers with a :class:`Placeholder`, a tensor with a shape and no content, and where
a placeholder meets drawn numbers, the first pass's tensor takes its place. So the model's own code runs each time, in
place or out of place, with shapes that fit each other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hesitant.methods.dropout_draws import Layout, Repeated, draws, drop, is_dropout, takes_repeated
from hesitant.methods.masks import Masks

_CONTIGUOUS = torch.ops.aten.contiguous.default
Place = tuple[int | str, int]  # of a tensor in a call: the argument, and the position where that is a list


class OtherCourseError(Exception):
    """The passes cannot run together: the model does something else for more inputs, or draws once for all of them."""


@dataclass
class Step:
    """One operation of the first pass.

    Attributes:
        func: The operation.
        random: Whether drawn numbers reached it.
        draws: Whether it draws itself.
        inputs: The tensors that no drawn number had reached, where it is random.
        whole: Of those that it wrote to, all of the memory that they were a view of.
        shapes: Of its outputs, where it is random.
        shape: Of its first input, where it draws.
        number: What it answered, where that is a number of Python's.
    """

    func: OpOverload
    random: bool
    draws: bool
    inputs: dict[Place, Tensor] = field(default_factory=dict)
    whole: dict[Place, Tensor] = field(default_factory=dict)
    shapes: list[torch.Size] = field(default_factory=list)
    shape: torch.Size | None = None
    number: bool | int | float | None = None


class _Extent(NamedTuple):
    """The tensor that a memory was made for; all others on it are its views."""

    storage: StorageWeakRef  # keeps the address from being given away
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Extent":
        storage = StorageWeakRef(tensor.untyped_storage())
        return cls(storage, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


class Placeholder(Tensor):
    """The shape of a tensor whose content the first pass has computed."""

    shaped: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shaped: Tensor, device: torch.device) -> "Placeholder":
        """Makes one of the shape of a meta tensor."""
        answer: Placeholder = Tensor._make_wrapper_subclass(
            cls, shaped.shape, strides=shaped.stride(), dtype=shaped.dtype, device=device
        )
        answer.shaped = shaped
        return answer

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Raises: outside of its passes a placeholder stands for nothing."""
        raise RuntimeError(
            f"{func}: this tensor was kept from a forward of MCDropout, which does not compute what is the same in all"
            " passes. Take activations from the model itself."
        )


class DropoutPass(TorchDispatchMode):
    """Runs one pass, its dropout drawn from ``masks``."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self.masks = masks

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, for seconds, only to keep it away from here

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation."""
        kwargs = kwargs or {}
        return self.run(func, args, kwargs, Layout()) if draws(func, args, kwargs) else func(*args, **kwargs)

    def run(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], layout: Layout) -> Any:
        """Answers an operation that draws: from the masks, or by torch where a device does that well."""
        if is_dropout(func):
            first = args[0].value if isinstance(args[0], Repeated) else args[0]
            if layout.shared or first.device.type == "cpu":
                return drop(func, args, kwargs, self.masks, layout)
            if isinstance(args[0], Repeated):
                args = (args[0].tensor(), *args[1:])
        return func(*args, **kwargs)


class FirstPass(DropoutPass):
    """Runs one pass, and notes what further ones need.

    Args:
        masks: Draws.
        num_inputs: B, how many inputs there are.
        known: The addresses of the inputs and of what belongs to the model.

    Attributes:
        steps: The operations in their order.
        drew: Whether any drew random numbers.
        repeatable: Whether all of those came from the masks, so that a pass can be run again.
        largest: Bytes of the largest tensor that drawn numbers reached.
    """

    def __init__(self, masks: Masks, num_inputs: int, known: set[int]) -> None:
        super().__init__(masks)
        self._num_inputs, self._known = num_inputs, known
        self.steps: list[Step] = []
        self.drew = False
        self.repeatable = True
        self.largest = 0
        # By the address of the memory, which views share.
        self._extents: dict[int, _Extent] = {}
        self._reached: set[int] = set()
        self._noted: dict[int, list[tuple[dict[Place, Tensor], Place]]] = {}

    def reached(self, tensor: Tensor) -> bool:
        """Answers whether drawn numbers had a part in the tensor."""
        return address(tensor) in self._reached

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation and notes it."""
        kwargs = kwargs or {}
        drawing = draws(func, args, kwargs)
        inputs = dict(_tensors(args, kwargs))
        for tensor in inputs.values():
            if address(tensor) not in self._extents:
                self._know(tensor)
                # What comes from nowhere once something is drawn may have come through NumPy: taken for random.
                if self.drew and tensor.shape[:1] == (self._num_inputs,) and address(tensor) not in self._known:
                    self._reached.add(address(tensor))
        step = Step(func, drawing or any(self.reached(tensor) for tensor in inputs.values()), drawing)
        self.steps.append(step)
        written = [place for name, i in _written(func) if (place := _place(name, i, args)) in inputs]
        if step.random:
            self._note(step, inputs, written)
        for place in written:
            self._copy_notes_of(inputs[place])
        answer = self.run(func, args, kwargs, Layout()) if drawing else func(*args, **kwargs)
        outputs = [tensor for _, tensor in _tensors((answer,), {})]
        for tensor in outputs:
            self._know(tensor)
        if drawing:
            self.drew = True
            self.repeatable &= is_dropout(func) and next(iter(inputs.values())).device.type == "cpu"
            step.shape = next((tensor.shape for tensor in inputs.values()), None)
        if step.random:
            step.shapes = [tensor.shape for tensor in outputs]
            for tensor in (*outputs, *(inputs[place] for place in written)):
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
                self._reached.add(address(tensor))
        elif isinstance(answer, (bool, int, float)):
            step.number = answer
        return answer

    def _know(self, tensor: Tensor) -> None:
        if address(tensor) not in self._extents:
            self._extents[address(tensor)] = _Extent.of(tensor)

    def _note(self, step: Step, inputs: dict[Place, Tensor], written: list[Place]) -> None:
        for place, tensor in inputs.items():
            memory = address(tensor)
            if memory in self._reached:
                continue
            step.inputs[place] = tensor
            notes = self._noted.setdefault(memory, [])
            notes.append((step.inputs, place))
            if place in written:
                extent = self._extents[memory]
                step.whole[place] = tensor.as_strided(extent.shape, extent.strides, extent.offset)
                notes.append((step.whole, place))

    def _copy_notes_of(self, tensor: Tensor) -> None:
        """Copies what was noted of a tensor that is about to be written to."""
        for noted, place in self._noted.pop(address(tensor), []):
            noted[place] = noted[place].clone()


class FurtherPasses(DropoutPass):
    """Runs several passes at once, on inputs repeated one after another along their batch axis.

    Args:
        first: The first pass, over.
        masks: Draws.
        num_inputs: B, how many inputs a pass has.
        times: How many passes.
        shared: Whether all inputs of a pass have the same mask.
    """

    def __init__(self, first: FirstPass, masks: Masks, num_inputs: int, times: int, *, shared: bool) -> None:
        super().__init__(masks)
        self._steps, self._position = first.steps, 0
        self._num_inputs, self._times, self._shared = num_inputs, times, shared
        self._metas: dict[int, tuple[Tensor, Tensor]] = {}
        self._extents: dict[int, _Extent] = {}
        self._contents: dict[int, Tensor] = {}  # of placeholders' memory that drawn numbers were written to

    def placeholder(self, tensor: Tensor) -> Tensor:
        """Answers what stands for an input ``(B, ...)`` repeated, or the tensor itself where it is no such input."""
        size = tensor.size()
        if not size or size[0] != self._num_inputs:
            return tensor
        repeated = (self._times * size[0], *size[1:])
        return self._standing_for(torch.empty(repeated, dtype=tensor.dtype, device="meta"), tensor.device)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation, or answers what stands for its outputs."""
        kwargs = kwargs or {}
        step = self._next(func)
        if step.random:
            return self._compute(step, args, kwargs)
        standing = [tensor for _, tensor in _tensors(args, kwargs) if isinstance(tensor, Placeholder)]
        return self._stand_in(step, args, kwargs, standing) if standing else func(*args, **kwargs)

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
            memory = address(tensor.shaped)
            if place in step.whole and memory not in self._contents:
                self._contents[memory] = self._repeated_whole(step.whole[place], self._extents[memory])
            if memory in self._contents:
                whole = self._contents[memory]
                return whole.as_strided(tensor.shape, tensor.stride(), int(tensor.shaped.storage_offset()))
            value = step.inputs[place]
            repeated = self._repeated(value, tensor.shape)
            if unfolds and place == (0, -1) and repeated.axis is not None and value.ndim > 0:
                return repeated
            return value if repeated.axis is None else repeated.tensor()

        args, kwargs = _mapped(args, kwargs, content)
        answer = self.run(func, args, kwargs, self._drawn_layout(step, args)) if step.draws else func(*args, **kwargs)
        if isinstance(answer, (bool, int, float)):
            raise OtherCourseError("the model's code looks at a number that dropout reached")
        for shape, (_, output) in zip(step.shapes, _tensors((answer,), {}), strict=True):
            # What differs from pass to pass has to have the passes' axis: else it would be one for all of them.
            if self._axis(shape, output.shape) is None and self._times > 1 and output.numel() > 0:
                raise OtherCourseError(f"{func} brings the inputs of a batch together, or draws once for all of them")
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
        return Repeated(value, self._axis(value.shape, shape, whole=True), self._times)

    def _repeated_whole(self, value: Tensor, extent: _Extent) -> Tensor:
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
        # Where heads or windows share the axis with the inputs, the shapes do not tell in what order.
        if (
            len(shape) != len(repeated)
            or len(axes) > 1
            or repeated[axes[0]] != self._times * shape[axes[0]]
            or (whole and shape[axes[0]] != self._num_inputs)
        ):
            raise OtherCourseError(f"a tensor of shape {tuple(shape)} is of shape {tuple(repeated)} for several passes")
        return axes[0]

    def _stand_in(
        self, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any], standing: Sequence[Placeholder]
    ) -> Any:
        """Answers what stands for the outputs of an operation that the first pass has computed."""
        if step.number is not None:
            return step.number
        if any(address(placeholder.shaped) in self._contents for placeholder in standing):
            raise OtherCourseError(f"{step.func} is given what drawn numbers were written to")
        for name, i in _written(step.func):
            if not isinstance(args[i] if i < len(args) else kwargs.get(name), Placeholder):
                raise OtherCourseError(f"{step.func} writes to a tensor that the model did not make from its inputs")
        meta_args, meta_kwargs = _mapped(args, kwargs, lambda _, tensor: self._meta(tensor))
        meta_args = [torch.device("meta") if isinstance(arg, torch.device) else arg for arg in meta_args]
        if meta_kwargs.get("device") is not None:
            meta_kwargs["device"] = torch.device("meta")
        answer = step.func(*meta_args, **meta_kwargs)
        device = standing[0].device

        def stand_in(_: Place, shaped: Tensor) -> Placeholder:
            for placeholder in standing:
                if placeholder.shaped is shaped:  # written to in place, or answered as it is
                    return placeholder
            return self._standing_for(shaped, device)

        (wrapped,), _ = _mapped((answer,), {}, stand_in)
        return wrapped

    def _standing_for(self, shaped: Tensor, device: torch.device) -> Placeholder:
        self._extents.setdefault(address(shaped), _Extent.of(shaped))
        return Placeholder(shaped, device)

    def _meta(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, Placeholder):
            return tensor.shaped
        if id(tensor) not in self._metas:
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            self._metas[id(tensor)] = tensor, meta
        return self._metas[id(tensor)][1]


def address(tensor: Tensor) -> int:
    """Answers what a tensor and its views have in common: their memory."""
    return tensor.untyped_storage()._cdata


@cache
def _written(func: OpOverload) -> tuple[tuple[str, int], ...]:
    """Answers the name and position of the tensors that an operation writes to."""
    arguments = enumerate(func._schema.arguments)
    return tuple((a.name, i) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def _place(name: str, index: int, args: Sequence[Any]) -> Place:
    return (index, -1) if index < len(args) else (name, -1)


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[Place, Tensor]]:
    """Gives the tensors of a call, also those in lists, with their places."""
    entries: tuple[tuple[int | str, Any], ...] = (*enumerate(args), *kwargs.items())
    for key, value in entries:
        if isinstance(value, Tensor):
            yield (key, -1), value
        elif isinstance(value, (list, tuple)):
            for position, entry in enumerate(value):
                if isinstance(entry, Tensor):
                    yield (key, position), entry


def _mapped(
    args: Sequence[Any], kwargs: Mapping[str, Any], function: Callable[[Place, Tensor], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Answers a call with its tensors replaced."""

    def replaced(key: int | str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return function((key, -1), value)
        if isinstance(value, (list, tuple)):
            entries = (function((key, i), x) if isinstance(x, Tensor) else x for i, x in enumerate(value))
            return list(entries) if isinstance(value, list) else tuple(entries)
        return value

    return [replaced(i, arg) for i, arg in enumerate(args)], {key: replaced(key, arg) for key, arg in kwargs.items()}
