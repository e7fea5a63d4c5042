"""The first pass: runs as it is, and records what further passes need.

For every operation it notes whether a drawn number had reached its inputs, and the inputs of those that it had not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef

from hesitant.methods.dropout.masks import Masks
from hesitant.methods.dropout.operations import Layout, draws, is_recurrent, layer_by_layer
from hesitant.methods.dropout.watched_pass import WatchedPass
from hesitant.methods.operation_calls import Place, address, tensors_in, written_places


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


class Extent(NamedTuple):
    """The tensor that a memory was made for; all others on it are its views."""

    storage: StorageWeakRef  # keeps the address from being given away
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Extent":
        """Answers that of a tensor which is no view."""
        storage = StorageWeakRef(tensor.untyped_storage())
        return cls(storage, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


class RecordedPass(WatchedPass):
    """Runs one pass, and notes what further ones need.

    Args:
        masks: Draws.
        guarded: The addresses of what the pass may not write to.
        num_inputs: B, how many inputs there are.
        known: The addresses of the inputs and of what belongs to the model.

    Attributes:
        steps: The operations in their order.
        followed: Whether it could be told where they went; sparse tensors hide it.
        largest: Bytes of the largest tensor that drawn numbers reached.
    """

    def __init__(self, masks: Masks, guarded: set[int], num_inputs: int, known: set[int]) -> None:
        super().__init__(masks, guarded)
        self._num_inputs, self._known = num_inputs, known
        self.steps: list[Step] = []
        self.followed = True
        self.largest = 0
        # By the address of the memory, which views share.
        self._extents: dict[int, Extent] = {}
        self._reached: set[int] = set()
        self._noted: dict[int, list[tuple[dict[Place, Tensor], Place]]] = {}

    def reached(self, tensor: Tensor) -> bool:
        """Answers whether drawn numbers had a part in the tensor, as far as that can be told."""
        return not self.followed or address(tensor) in self._reached

    @property
    def once(self) -> float:
        """The share of operations that no drawn number reached."""
        return sum(not step.random for step in self.steps) / max(1, len(self.steps))

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation and notes it."""
        kwargs = kwargs or {}
        self.guard(func, args, kwargs)
        drawing = draws(func, args, kwargs)
        if drawing and is_recurrent(func):
            with self:
                return layer_by_layer(func, args)
        inputs = dict(tensors_in(args, kwargs))
        self.followed &= all(tensor.layout == torch.strided for tensor in inputs.values())
        if not self.followed:
            self.drew |= drawing
            return self.run(func, args, kwargs, Layout()) if drawing else func(*args, **kwargs)
        for tensor in inputs.values():
            if address(tensor) not in self._extents:
                self._know(tensor)
                # What comes from nowhere once something is drawn may have come through NumPy: taken for random.
                if self.drew and tensor.shape[:1] == (self._num_inputs,) and address(tensor) not in self._known:
                    self._reached.add(address(tensor))
        step = Step(func, drawing or any(self.reached(tensor) for tensor in inputs.values()), drawing)
        self.steps.append(step)
        written = [place for place in written_places(func, args) if place in inputs]
        if step.random:
            self._note(step, inputs, written)
        for place in written:
            self._copy_notes_of(inputs[place])
        answer = self.run(func, args, kwargs, Layout()) if drawing else func(*args, **kwargs)
        outputs = [tensor for _, tensor in tensors_in((answer,), {}) if tensor.layout == torch.strided]
        for tensor in outputs:
            self._know(tensor)
        if drawing:
            self.drew = True
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
            self._extents[address(tensor)] = Extent.of(tensor)

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
