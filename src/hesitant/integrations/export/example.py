"""The inputs by which a method is captured: two of them, which stand for any number."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hesitant.inputs import Batch, map_tensors, num_inputs, tensors_of
from hesitant.integrations.export.capture import SequenceAxis, shapes_of

MASKS = "dropout_masks"


@dataclass(frozen=True)
class Example:
    """What a model is called with while it is captured, and what the file is asked afterwards.

    Attributes:
        given: The example as it came, without what is fixed.
        few: Two or three of its inputs, by which the model is captured: other numbers mean the same in every model.
        fixed: Arguments that are no inputs; ``use_cache=False`` is among them where the model's forward has it, for a
            cache of past tokens is nothing that a graph can answer with.
        dynamic: Which axes of each tensor of ``few`` have any length.
    """

    given: Batch
    few: Batch
    fixed: dict[str, Any]
    dynamic: dict[int, dict[int, Any]]

    @classmethod
    def of(cls, batch: Batch, model: nn.Module, sequence_axis: SequenceAxis) -> "Example":
        """Answers what to capture a model by.

        Raises:
            ValueError: No input has the sequence axis that is named, or sequences are of length 1.
        """
        fixed = {name: value for name, value in batch.kwargs.items() if not tensors_of(Batch((value,)))}
        if "use_cache" in inspect.signature(model.forward).parameters:
            fixed.setdefault("use_cache", False)
        given = Batch(batch.args, {name: value for name, value in batch.kwargs.items() if name not in fixed})
        rows = num_inputs(given)
        lengths = {size for tensor in tensors_of(given) for size in tensor.shape[1:2]}
        size = 3 if 2 in lengths else 2

        def chosen(tensor: Tensor) -> Tensor:
            has_rows = tensor.ndim > 0 and len(tensor) == rows
            return tensor[torch.arange(size, device=tensor.device) % rows] if has_rows else tensor.clone()

        few = map_tensors(given, chosen)
        return cls(given, few, fixed, shapes_of(few, size, sequence_axis))

    def first(self) -> Batch:
        """Answers the first input alone."""
        rows = num_inputs(self.given)
        return map_tensors(self.given, lambda tensor: tensor[:1] if tensor.ndim and len(tensor) == rows else tensor)

    def parts(self) -> list[Batch]:
        """Answers what a file is asked: all inputs, the first alone, and shorter sequences if it takes any."""
        axes = {place: list(self.dynamic[id(tensor)])[1:] for place, tensor in enumerate(tensors_of(self.few))}
        if not any(axes.values()):
            return [self.given, self.first()]
        places = iter(range(len(axes)))

        def shorter(tensor: Tensor) -> Tensor:
            for axis in axes[next(places)]:
                tensor = tensor.narrow(axis, 0, max(1, tensor.shape[axis] - 1))
            return tensor.contiguous()  # as compiled programs take their inputs, whatever they are given

        return [self.given, self.first(), map_tensors(self.given, shorter)]

    def with_fixed(self) -> Batch:
        """Answers the inputs to capture by, with what is fixed."""
        return Batch(self.few.args, {**self.few.kwargs, **self.fixed})

    def call(self, signature: inspect.Signature, masks: list[Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Answers the keyword arguments of a call beside ``few.args``, and which axes of all have any length, by name.

        Args:
            signature: Of what is called.
            masks: What dropout keeps, where that is given.
        """
        kwargs: dict[str, Any] = {**self.few.kwargs, **({MASKS: masks} if masks else {})}

        def axes(value: Any) -> Any:
            if isinstance(value, Tensor):
                # Of a mask the inputs' own sizes decide which axes these are.
                of_mask = {axis: Dim.AUTO for axis in range(1, value.ndim) if value.shape[axis] > 1}
                return self.dynamic.get(id(value), of_mask)
            if isinstance(value, dict):
                return {key: axes(entry) for key, entry in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(axes(entry) for entry in value)
            return None

        bound = signature.bind(*self.few.args, **kwargs).arguments
        return kwargs, {name: axes(value) for name, value in bound.items()}

    def axis_names(self, program: ExportedProgram) -> dict[str, str]:
        """Answers what the axes of any length are called, by the symbols that the program has for them."""
        symbols: dict[str, str] = {}
        wanted = set(program.graph_signature.user_inputs)
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
        for node, tensor in zip(placeholders, tensors_of(self.few), strict=False):
            for axis in self.dynamic[id(tensor)]:
                symbol = str(node.meta["val"].shape[axis])
                others = len({name for name in symbols.values() if name.startswith("sequence")})
                name = "batch" if axis == 0 else f"sequence_{others}" if others else "sequence"
                symbols.setdefault(symbol, name)
        return symbols
