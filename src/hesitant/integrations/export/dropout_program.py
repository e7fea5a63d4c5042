"""A model's operations with its dropout active: which of them drawn numbers reach, and where the inputs stand."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind
from torch.fx.node import map_arg

from hesitant.inputs import Batch, map_tensors, tensors_of
from hesitant.integrations.export.capture import LayerByLayer, capture, quiet
from hesitant.methods import MCDropout, logits_of
from hesitant.methods.dropout import draws, dropping_replicas, is_dropout

aten = torch.ops.aten


class DropoutProgram(nn.Module):
    """One pass of a model, captured operation by operation.

    Args:
        method: MC dropout around the model.
        batch: What it is to be asked, for example; at least two inputs.
        dynamic: Which axes of each tensor of the batch have any length (``shapes_of``).

    Attributes:
        operations: In their order; none writes in place.
        inputs: Of each placeholder among them the place among the tensors, or the name of what is the model's.
        batch_size: The symbol for how many inputs there are.
        random: Those that a drawn number reaches.

    Raises:
        ValueError: No drawn number reaches the logits.
    """

    def __init__(self, method: MCDropout, batch: Batch, dynamic: dict[int, dict[int, Any]]) -> None:
        super().__init__()
        self.name = type(method.model).__name__
        tensors = tensors_of(batch)
        flat = _Flat(dropping_replicas(method.model, stochastic_depth=method.stochastic_depth).fresh(), batch)
        program = capture(flat, tensors, {}, {"tensors": tuple(dynamic[id(tensor)] for tensor in tensors)})
        with quiet():
            program = program.run_decompositions({})
        self.operations: list[Any] = list(program.graph.nodes)
        self.inputs: dict[fx.Node, int | str] = {}
        kept = {**program.state_dict, **program.constants}
        placeholders = [node for node in self.operations if node.op == "placeholder"]
        position = 0
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                self.inputs[node] = position
                position += 1
            else:
                name = f"kept_{len(self.inputs)}"
                self.register_buffer(name, kept[str(spec.target)].detach())
                self.inputs[node] = name
        rows = next(node for node, place in self.inputs.items() if place == 0)
        self.batch_size: Any = rows.meta["val"].shape[0].node.expr
        self.random = self._reached()

    @property
    def answer(self) -> fx.Node:
        """The operation that makes the logits."""
        output: Any = self.operations[-1]
        answer: fx.Node = output.args[0][0]
        return answer

    def drops(self, node: Any) -> bool:
        """Answers whether an operation is a dropout, whose masks can be given."""
        if node.op != "call_function" or not _draws(node):
            return False
        return is_dropout(node.target) or node.target in (aten.native_dropout.default, aten.bernoulli.p)

    def axis(self, node: fx.Node) -> int | None:
        """Answers the axis along which the inputs stand; None where a tensor is the same for all of them.

        Raises:
            ValueError: There are several.
        """
        axes = [axis for axis, size in enumerate(node.meta["val"].shape) if self.counts_inputs(size)]
        if len(axes) > 1:
            raise self.refusal(f"{node.target} has the inputs along several axes")
        return axes[0] if axes else None

    def counts_inputs(self, size: Any) -> bool:
        """Answers whether a size grows with the number of inputs."""
        return not isinstance(size, int) and self.batch_size in size.node.expr.free_symbols

    def refusal(self, why: str) -> ValueError:
        """Answers an error that says why passes cannot run together."""
        return ValueError(
            f"the dropout passes of {self.name} cannot stand in one graph: {why}. Export another method, such as SNGP."
        )

    def once(self, tensors: Sequence[Tensor]) -> dict[fx.Node, Any]:
        """Answers all that no drawn number reaches, of some inputs."""
        values: dict[fx.Node, Any] = {}
        for node in self.operations:
            if node.op == "placeholder":
                place = self.inputs[node]
                values[node] = tensors[place] if isinstance(place, int) else getattr(self, place)
            elif node.op == "call_function" and node not in self.random:
                values[node] = run(node, values.__getitem__)
        return values

    def note_equal_sizes(self, tensors: Sequence[Tensor]) -> None:
        """Says which lengths of inputs the model takes for one: where it is run anew, nothing else does."""
        sizes: dict[str, Any] = {}
        for node, place in self.inputs.items():
            if isinstance(place, int):
                for axis, size in enumerate(node.meta["val"].shape):
                    now = tensors[place].shape[axis]
                    torch._check(sizes.setdefault(str(size), now) == now)

    def _reached(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.operations:
            if node.op == "call_function" and (_draws(node) or any(each in found for each in node.all_input_nodes)):
                found.add(node)
        if self.answer not in found:
            raise ValueError(f"no dropout reached the logits of {self.name}: all its samples would be the same.")
        return found


class _Flat(nn.Module):
    """A model of its tensors one after another, whose logits it answers."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self, *tensors: Tensor) -> Tensor:
        """Answers the logits."""
        given = iter(tensors)
        filled = map_tensors(self.batch, lambda _: next(given))
        with LayerByLayer():
            return logits_of(self.model(*filled.args, **filled.kwargs))


def run(node: Any, value: Callable[[fx.Node], Any]) -> Any:
    """Answers an operation, given the values of what it is of."""
    args, kwargs = arguments(node, value)
    return None if node.target is operator.getitem and args[0] is None else node.target(*args, **kwargs)


def arguments(node: Any, value: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
    """Answers the arguments of an operation, given the values of what it is of."""
    return map_arg(node.args, value), map_arg(node.kwargs, value)


def _draws(node: Any) -> bool:
    return isinstance(node.target, OpOverload) and draws(node.target, node.args, node.kwargs)
