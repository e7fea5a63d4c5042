"""Monte Carlo dropout within a graph: what comes before the first dropout once, the rest for all passes together."""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind
from torch.fx.node import map_arg

from hesitant.inputs import Batch, map_tensors, tensors_of
from hesitant.integrations.export.answer import Answer, answer_of_passes
from hesitant.integrations.export.capture import LayerByLayer, capture, quiet
from hesitant.integrations.export.graph_masks import GraphMasks
from hesitant.methods import MCDropout, log_probs_of, logits_of, require_rows
from hesitant.methods.dropout import Layout, Repeated, draws, drop, dropping_replicas, is_dropout
from hesitant.prediction import as_floating, two_class_logits

_aten = torch.ops.aten
_CHECKED = 3  # passes that are run together and one by one, before anything is written
_ROUNDING = {False: 1e-4, True: 5e-2}  # of probabilities, in half precision or not


class DropoutGraph(nn.Module):
    """The passes of MC dropout.

    The model's operations are captured once, with its dropout active and all else as in eval mode. Those that no drawn
    number reaches run on the B inputs; for the others the inputs stand S times one after another along the batch axis.
    What depends on the number of inputs alone, as ``arange(B)``, is made anew for S times as many.

    Args:
        method: What it answers for.
        batch: What it is to be asked, for example; at least two inputs.
        dynamic: Which axes of each tensor of the batch have any length (``shapes_of``).

    Raises:
        ValueError: The passes cannot run together, or cannot share masks.
    """

    def __init__(self, method: MCDropout, batch: Batch, dynamic: dict[int, dict[int, Any]]) -> None:
        super().__init__()
        self.outputs, self.num_samples, self.shared = method.outputs, method.num_samples, method.masks == "shared"
        self.at_once = min(method.chunk_size or method.num_samples, method.num_samples)
        self.name = type(method.model).__name__
        tensors, self.keywords = tensors_of(batch), list(batch.kwargs)
        flat = _Flat(dropping_replicas(method.model, stochastic_depth=method.stochastic_depth).fresh(), batch)
        program = capture(flat, tensors, {}, {"tensors": tuple(dynamic[id(tensor)] for tensor in tensors)})
        with quiet():
            program = program.run_decompositions({})  # without writing in place, and all else as it is
        self.graph = program.graph
        self.inputs: dict[fx.Node, int | str] = {}  # the place among the tensors, or the name of what is kept
        position = 0
        kept = {**program.state_dict, **program.constants}
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                self.inputs[node] = position
                position += 1
            else:
                self.register_buffer(f"kept_{len(self.inputs)}", kept[str(spec.target)].detach())
                self.inputs[node] = f"kept_{len(self.inputs)}"
        rows = next(node for node, place in self.inputs.items() if place == 0)
        self.batch_size: Any = rows.meta["val"].shape[0].node.expr
        self.random = self._random_nodes()
        self._check(tensors)

    def forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float, masks: Iterator[Tensor] | None
    ) -> Answer:
        """Answers about the inputs of one forward pass."""
        given = None if masks is None else [next(masks) for _ in range(self.num_masks)]
        inputs = tensors_of(Batch(args, {name: kwargs[name] for name in self.keywords}))
        self._note_equal_sizes(inputs)
        output = self._outputs(inputs, self.num_samples, given)
        single = output.ndim == 1 or output.shape[-1] == 1
        if self.outputs == "logits":
            output = two_class_logits(as_floating("logits", output))
        else:
            output = log_probs_of(output, self.outputs)
        logits = output.unflatten(0, (self.num_samples, output.shape[0] // self.num_samples))  # (S, B, C)
        return answer_of_passes(logits, self.outputs, temperature, single=single)

    @property
    def num_masks(self) -> int:
        """How many masks there are to be drawn."""
        return sum(self._drops(node) for node in self.graph.nodes)

    def masks(self, tensors: Sequence[Tensor], num_samples: int) -> GraphMasks:
        """Answers masks that were drawn for some inputs, with their rates and shapes."""
        drawn = GraphMasks(None, num_samples)
        self._pass(tensors, num_samples, drawn)
        return drawn

    # ---------------------------------------------------------------- which operations dropout reaches

    def _note_equal_sizes(self, tensors: Sequence[Tensor]) -> None:
        """Says again which lengths the model takes for one: in the graph nothing else does."""
        sizes: dict[str, Any] = {}
        for node, place in self.inputs.items():
            if isinstance(place, int):
                for axis, size in enumerate(node.meta["val"].shape):
                    now = tensors[place].shape[axis]
                    torch._check(sizes.setdefault(str(size), now) == now)

    def _random_nodes(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            drawing = isinstance(node.target, OpOverload) and draws(node.target, node.args, node.kwargs)
            if node.op == "call_function" and (drawing or any(each in found for each in node.all_input_nodes)):
                found.add(node)
        answer = next(node for node in self.graph.nodes if node.op == "output").args[0][0]
        if answer not in found:
            raise ValueError(f"no dropout reached the logits of {self.name}: all its samples would be the same.")
        return found

    def _drops(self, node: fx.Node) -> bool:
        """Whether an operation is a dropout, whose masks can be given."""
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            return False
        if not draws(node.target, node.args, node.kwargs):
            return False
        return is_dropout(node.target) or node.target in (_aten.native_dropout.default, _aten.bernoulli.p)

    def _axis(self, node: fx.Node) -> int | None:
        """Answers the axis along which the inputs stand; None where the tensor is the same for all."""
        axes = [axis for axis, size in enumerate(node.meta["val"].shape) if self._counts_inputs(size)]
        if len(axes) > 1:
            raise self._apart(f"{node.target} has the inputs along several axes")
        return axes[0] if axes else None

    def _counts_inputs(self, size: Any) -> bool:
        return not isinstance(size, int) and self.batch_size in size.node.expr.free_symbols

    def _apart(self, why: str) -> ValueError:
        return ValueError(
            f"the dropout passes of {self.name} cannot stand in one graph: {why}. Export another method, such as SNGP."
        )

    # ---------------------------------------------------------------- running them

    def _outputs(self, tensors: Sequence[Tensor], num_samples: int, given: list[Tensor] | None) -> Tensor:
        """Answers what the model answers in all passes, ``(S B, ...)``."""
        once = self._once(tensors)
        outputs = []
        for start in range(0, num_samples, self.at_once):
            times = min(self.at_once, num_samples - start)
            part = None if given is None else [mask[start : start + times] for mask in given]
            outputs.append(_Passes(self, once, times, GraphMasks(part, times)).output())
        return require_rows(outputs[0] if len(outputs) == 1 else torch.cat(outputs), None, self)

    def _pass(self, tensors: Sequence[Tensor], times: int, masks: GraphMasks) -> Tensor:
        return _Passes(self, self._once(tensors), times, masks).output()

    def _once(self, tensors: Sequence[Tensor]) -> dict[fx.Node, Any]:
        """Answers all that no drawn number reaches."""
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                place = self.inputs[node]
                values[node] = tensors[place] if isinstance(place, int) else getattr(self, place)
            elif node.op == "call_function" and node not in self.random:
                values[node] = run(node, values.__getitem__)
        return values

    @torch.no_grad()
    def _check(self, tensors: Sequence[Tensor]) -> None:
        """Requires that passes answer together what each answers by itself."""
        drawn = self.masks(tensors, _CHECKED)
        together = self._pass(tensors, _CHECKED, GraphMasks(drawn.kept, _CHECKED))
        parts = [[mask[index : index + 1] for mask in drawn.kept] for index in range(_CHECKED)]
        alone = torch.cat([self._pass(tensors, 1, GraphMasks(part, 1)) for part in parts])
        kind = "logits" if self.outputs == "logits" else "probabilities"
        difference = (log_probs_of(together, kind).exp() - log_probs_of(alone, kind).exp()).abs().amax()
        if not bool(difference <= _ROUNDING[together.dtype.itemsize < 4]):
            raise self._apart("the model's answer to an input depends on the others in its batch")


class _Passes:
    """Some passes of a graph together.

    Args:
        of: The graph.
        once: What no drawn number reaches.
        times: How many passes.
        masks: What they keep.
    """

    def __init__(self, of: DropoutGraph, once: dict[fx.Node, Any], times: int, masks: GraphMasks) -> None:
        self.of, self.once, self.times, self.masks = of, once, times, masks
        self.many: dict[fx.Node, Any] = {}

    def output(self) -> Tensor:
        """Answers what the model answers in all of them, ``(times B, ...)``."""
        for node in self.of.graph.nodes:
            if node in self.of.random:
                self.many[node] = self._drop(node) if self.of._drops(node) else run(node, self.value)
            elif node.op == "output":
                answer: Tensor = self.value(node.args[0][0])
                return answer
        raise AssertionError("a graph without an output")

    def value(self, node: fx.Node) -> Any:
        """Answers a value for all passes: a tensor with the inputs ``times`` times along its batch axis."""
        if node not in self.many:
            self.many[node] = self._repeated(node)
        return self.many[node]

    def _repeated(self, node: fx.Node) -> Any:
        value = self.once[node]
        if not isinstance(value, Tensor):
            if node.target is _aten.sym_size.int:
                tensor, axis = node.args
                return value * self.times if self.of._counts_inputs(tensor.meta["val"].shape[axis]) else value
            return run(node, self.value) if node.all_input_nodes else value
        axis = self.of._axis(node)
        if axis is None:
            return value
        if self._is_made_of_sizes(node):
            return run(node, self.value)
        return Repeated(value, axis, self.times).tensor()

    def _is_made_of_sizes(self, node: fx.Node) -> bool:
        """Whether a tensor depends on how many inputs there are, and on none of them."""
        ahead = [node]
        while ahead:
            each = ahead.pop()
            if isinstance(self.once[each], (Tensor, tuple, list)):  # of a number the inputs' sizes alone are asked
                if isinstance(self.of.inputs.get(each), int):
                    return False
                ahead += each.all_input_nodes
        return True

    def _drop(self, node: fx.Node) -> Any:
        func, first = node.target, node.args[0]
        assert isinstance(func, OpOverload)
        assert isinstance(first, fx.Node)
        axis = self.of._axis(first)
        if axis is None:
            raise self.of._apart(f"{func} draws once for all inputs")
        if self.of.shared and first.meta["val"].shape[axis].node.expr != self.of.batch_size:
            raise ValueError(f"masks='shared' cannot be kept: {func} has more than inputs along an axis.")
        layout = Layout(self.times, axis, self.of.shared)
        if func is _aten.bernoulli.p:
            # Whatever is in the tensor counts for nothing.
            like = self.value(first) if first in self.of.random else self.once[first]
            size = like.shape[axis] // (self.times if first in self.of.random else 1)
            before, after = like.shape[:axis], like.shape[axis + 1 :]
            drawn = 1 if self.of.shared else size
            kept = self.masks.draw((*before, drawn, *after), 1 - float(node.args[1]), like.device).kept
            kept = kept.movedim(0, axis).expand(*before, self.times, size, *after)
            return kept.reshape(*before, self.times * size, *after).to(like.dtype)
        if func is _aten.native_dropout.default:
            inside = first in self.of.random
            x = self.value(first) if inside else Repeated(self.once[first], axis, self.times)
            return drop(_aten.dropout.default, (x, node.args[1], True), {}, self.masks, layout), None
        args, kwargs = arguments(node, self.value)
        return drop(func, args, kwargs, self.masks, layout)


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


def run(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """Answers an operation, given the values of what it is of."""
    args, kwargs = arguments(node, value)
    assert callable(node.target)
    if node.target is operator.getitem and args[0] is None:
        return None
    return node.target(*args, **kwargs)


def arguments(node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Answers the arguments of an operation, given the values of what it is of."""
    return map_arg(node.args, value), map_arg(node.kwargs, value)
