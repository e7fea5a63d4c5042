"""Tensors with a shape and no content, for what the first pass has computed and further passes do not compute again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from hesitant.methods.dropout.replay.recorded_pass import Extent, Step
from hesitant.methods.operation_calls import Place, address, map_call, tensors_in, written_places


class OtherCourseError(Exception):
    """The passes cannot run together: the model does something else for more inputs, or draws once for all of them."""


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


class Placeholders:
    """The placeholders of some further passes, and the memory that lies behind those which drawn numbers reach.

    Attributes:
        contents: By the address of a placeholder's memory, what drawn numbers were written to.
    """

    def __init__(self) -> None:
        self.contents: dict[int, Tensor] = {}
        self._metas: dict[int, tuple[Tensor, Tensor]] = {}
        self._extents: dict[int, Extent] = {}

    def standing_for(self, shaped: Tensor, device: torch.device) -> Placeholder:
        """Answers a placeholder of the shape of a meta tensor."""
        self._extents.setdefault(address(shaped), Extent.of(shaped))
        return Placeholder(shaped, device)

    def extent(self, placeholder: Placeholder) -> Extent:
        """Answers that of the tensor which the placeholder's memory was made for."""
        return self._extents[address(placeholder.shaped)]

    def stand_in(
        self, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any], standing: Sequence[Placeholder]
    ) -> Any:
        """Answers what stands for the outputs of an operation that the first pass has computed."""
        if step.number is not None:
            return step.number
        if any(address(placeholder.shaped) in self.contents for placeholder in standing):
            raise OtherCourseError(f"{step.func} is given what drawn numbers were written to")
        tensors = dict(tensors_in(args, kwargs))
        if not all(isinstance(tensors.get(place), Placeholder) for place in written_places(step.func, args)):
            raise OtherCourseError(f"{step.func} writes to a tensor that the model did not make from its inputs")
        meta_args, meta_kwargs = map_call(args, kwargs, lambda _, tensor: self._meta(tensor))
        meta_args = [torch.device("meta") if isinstance(arg, torch.device) else arg for arg in meta_args]
        if meta_kwargs.get("device") is not None:
            meta_kwargs["device"] = torch.device("meta")
        answer = step.func(*meta_args, **meta_kwargs)
        device = standing[0].device

        def stand_in(_: Place, shaped: Tensor) -> Placeholder:
            for placeholder in standing:
                if placeholder.shaped is shaped:  # written to in place, or answered as it is
                    return placeholder
            return self.standing_for(shaped, device)

        (wrapped,), _ = map_call((answer,), {}, stand_in)
        return wrapped

    def _meta(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, Placeholder):
            return tensor.shaped
        if id(tensor) not in self._metas:
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            self._metas[id(tensor)] = tensor, meta
        return self._metas[id(tensor)][1]
