"""Some passes of a captured model together: the inputs stand one after another along the batch axis."""

from typing import Any

from torch import Tensor, fx

from hesitant.integrations.export.dropout_program import DropoutProgram, arguments, aten, run
from hesitant.integrations.export.graph_masks import GraphMasks
from hesitant.methods.dropout import Layout, Repeated, drop


class DropoutPasses:
    """Runs what drawn numbers reach, for several passes; what they do not reach comes once.

    What depends on how many inputs there are and on none of them, as ``arange(B)``, is made anew for so many more.

    Args:
        program: One pass.
        once: What no drawn number reaches, of some inputs (``DropoutProgram.once``).
        times: How many passes.
        masks: What they keep.
        shared: Whether all inputs of a pass have the same masks.
    """

    def __init__(
        self, program: DropoutProgram, once: dict[fx.Node, Any], times: int, masks: GraphMasks, *, shared: bool
    ) -> None:
        self._program, self._once, self._times, self._masks, self._shared = program, once, times, masks, shared
        self._many: dict[fx.Node, Any] = {}

    def output(self) -> Tensor:
        """Answers what the model answers in all of them, ``(times B, ...)``."""
        for node in self._program.operations:
            if node in self._program.random:
                self._many[node] = self._drop(node) if self._program.drops(node) else run(node, self._value)
        answer: Tensor = self._value(self._program.answer)
        return answer

    def _value(self, node: fx.Node) -> Any:
        if node not in self._many:
            self._many[node] = self._repeated(node)
        return self._many[node]

    def _repeated(self, node: Any) -> Any:
        value = self._once[node]
        if not isinstance(value, Tensor):
            if node.target is aten.sym_size.int:
                tensor, axis = node.args
                return value * self._times if self._program.counts_inputs(tensor.meta["val"].shape[axis]) else value
            return run(node, self._value) if node.all_input_nodes else value
        axis = self._program.axis(node)
        if axis is None:
            return value
        return run(node, self._value) if self._is_made_of_sizes(node) else self._copies(node, axis).tensor()

    def _copies(self, node: fx.Node, axis: int) -> Repeated:
        return Repeated(self._once[node], axis, self._times)

    def _is_made_of_sizes(self, node: fx.Node) -> bool:
        ahead, seen = [node], {node}
        for each in ahead:
            if isinstance(self._once[each], (Tensor, tuple, list)):  # of a number the inputs' sizes alone are asked
                if isinstance(self._program.inputs.get(each), int):
                    return False
                before = [input for input in each.all_input_nodes if input not in seen]
                seen.update(before)
                ahead += before
        return True

    def _drop(self, node: Any) -> Any:
        func, first = node.target, node.args[0]
        axis = self._program.axis(first)
        if axis is None:
            raise self._program.refusal(f"{func} draws once for all inputs")
        if self._shared and first.meta["val"].shape[axis].node.expr != self._program.batch_size:
            raise self._program.refusal(f"masks='shared' cannot be kept, for {func} has more than inputs along an axis")
        if func is aten.bernoulli.p:
            return self._bernoulli(first, axis, float(node.args[1]))
        layout = Layout(self._times, axis, self._shared)
        if func is aten.native_dropout.default:
            x = self._value(first) if first in self._program.random else self._copies(first, axis)
            return drop(aten.dropout.default, (x, node.args[1], True), {}, self._masks, layout), None
        args, kwargs = arguments(node, self._value)
        return drop(func, args, kwargs, self._masks, layout)

    def _bernoulli(self, like: fx.Node, axis: int, keep_rate: float) -> Tensor:
        """Answers zeros and ones, as many as a tensor's, whose content counts for nothing."""
        is_random = like in self._program.random
        value = self._value(like) if is_random else self._once[like]
        size = value.shape[axis] // self._times if is_random else value.shape[axis]
        before, after = value.shape[:axis], value.shape[axis + 1 :]
        kept = self._masks.draw((*before, 1 if self._shared else size, *after), 1 - keep_rate, value.device).kept
        kept = kept.movedim(0, axis).expand(*before, self._times, size, *after)
        return kept.reshape(*before, self._times * size, *after).to(value.dtype)
