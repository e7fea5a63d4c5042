"""Which Linears of a model make the logits that are read from its answer: by running it, or by tracing it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hesitant.methods.operation_calls import address, tensors_in, written_places
from hesitant.methods.outputs import logits_of
from hesitant.methods.replica import replica

_ANOTHER_LAYER = None  # stands for a layer with weights that is no Linear: what went through it is no logit of one
_QUESTIONS = 1000
_SHAPES = {"shape", "dtype", "device", "ndim", "size", "dim", "numel", "ndimension"}  # tell of a tensor no value


def makers_in_a_run(model: nn.Module, linears: Mapping[str, nn.Linear], example_input: Any) -> list[str]:
    """Answers which Linears make the logits that the model answers ``example_input`` with, in order of execution.

    These are the ones whose outputs have a part in the logits with no other layer in between; where several have, of
    these those whose output *is* the logits, else those of as many outputs.

    The model is run in eval mode, as a replica: nothing of it changes.

    Args:
        model: What is run.
        linears: Those that may be answered, by their names.
        example_input: A tensor, several in a tuple or list, or a mapping of arguments.

    Raises:
        ValueError: None of them makes the logits.
    """
    running = replica(model)
    following = _Following(address(p) for p in model.parameters() if _mixes(p))
    outputs: dict[str, Tensor] = {}
    for name in linears:
        _watch(running.get_submodule(_in_replica(name)), name, following, outputs)
    with torch.no_grad(), following:
        if isinstance(example_input, Mapping):
            answer = running(**example_input)
        else:
            answer = running(*([example_input] if isinstance(example_input, Tensor) else example_input))
    logits = logits_of(answer)
    makers = following.makers(logits)
    if not outputs or not makers - {_ANOTHER_LAYER}:
        happened = f"{list(outputs)} ran on example_input, and none of them made" if outputs else "none ran to make"
        raise ValueError(
            f"the logits of {type(model).__name__} are not made by a Linear: of {list(linears)}, {happened} the logits"
            f" {tuple(logits.shape)} that it answered with. Flatten the features and end the model in"
            " nn.Linear(features, classes)."
        )
    width = logits.shape[-1] if logits.ndim > 1 else 1

    def rank(name: str) -> tuple[bool, bool]:
        output = outputs[name]
        same = output.numel() == logits.numel() and torch.equal(output.reshape(logits.shape).to(logits), logits)
        return not same, linears[name].out_features != width

    best = min(rank(name) for name in outputs if name in makers)
    return [name for name in outputs if name in makers and rank(name) == best]


def makers_in_a_trace(model: nn.Module, linears: Mapping[str, nn.Linear]) -> list[list[str]]:
    """Answers which Linears make the logits, in the order in which they run, for each way that the model may take.

    Its eval mode is traced symbolically, twice: with Yes and with No to whatever it asks about its data. A way that
    cannot be traced is left out.
    """
    found: list[list[str]] = []
    for answer in (False, True):
        traced = replica(model)
        try:
            graph = _DecidingTracer(answer).trace(traced)
        except Exception:  # a model whose Python depends on its data cannot be traced, and fails in any way it likes
            continue
        makers = _makers_of(graph, traced, {_in_replica(name): name for name in linears})
        if makers not in found:
            found.append(makers)
    return found


def _mixes(parameter: Tensor) -> bool:
    """Whether a parameter is a layer's matrix, and not a scale or an offset of each class."""
    return sum(length > 1 for length in parameter.shape) > 1


def _in_replica(name: str) -> str:
    """Answers a module's name in the replica, where what was compiled is what it was before."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


# ---------------------------------------------------------------- a run


class _Following(TorchDispatchMode):
    """Follows through every operation which Linears made its inputs."""

    def __init__(self, matrices: Any) -> None:
        super().__init__()
        self._matrices = frozenset(matrices)
        self._makers: dict[int, frozenset[str | None]] = {}  # by the address of the memory, which views share
        self._kept: list[StorageWeakRef] = []  # keeps the addresses from being given away

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, for seconds, only to keep it away from here

    def makers(self, tensor: Tensor) -> frozenset[str | None]:
        """Answers which Linears made a tensor."""
        return self._makers.get(address(tensor), frozenset())

    def note(self, tensor: Tensor, makers: frozenset[str | None]) -> None:
        """Notes which Linears made a tensor."""
        if address(tensor) not in self._makers and tensor.layout == torch.strided:
            self._kept.append(StorageWeakRef(tensor.untyped_storage()))
        self._makers[address(tensor)] = makers

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operation, and notes who made what it answers."""
        kwargs = kwargs or {}
        inputs = dict(tensors_in(args, kwargs))
        makers = frozenset[str | None]().union(*(self.makers(tensor) for tensor in inputs.values()))
        if makers and any(address(tensor) in self._matrices for tensor in inputs.values()):
            makers = frozenset({_ANOTHER_LAYER})
        answer = func(*args, **kwargs)
        if makers:
            written = [inputs[place] for place in written_places(func, args) if place in inputs]
            for tensor in (*written, *(tensor for _, tensor in tensors_in((answer,), {}))):
                self.note(tensor, self.makers(tensor) | makers)
        return answer


def _watch(linear: nn.Module, name: str, following: _Following, outputs: dict[str, Tensor]) -> None:
    """Lets a Linear of the replica tell when it ran: a hook would be the model's too."""
    forward = linear.forward

    def telling(*args: Any, **kwargs: Any) -> Any:
        outputs[name] = output = forward(*args, **kwargs)
        following.note(output, frozenset({name}))
        return output

    linear.forward = telling


# ---------------------------------------------------------------- a trace


class _DecidingTracer(fx.Tracer):
    """Goes on where Python asks about the data, a check of shapes as a rule, with one answer to every question."""

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer, self.questions = answer, 0

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.questions += 1
        if self.questions > _QUESTIONS:
            raise RuntimeError("a loop on the data")
        return self.answer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def _makers_of(graph: fx.Graph, model: nn.Module, names: dict[str, str]) -> list[str]:
    """Walks back from the logits of a graph to the nearest Linears; beyond another layer with weights is none."""
    ahead = [_logits_node(node.args[0]) for node in graph.nodes if node.op == "output"]
    seen: set[fx.Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen or _tells_no_value(node):
            continue
        seen.add(node)
        if not _is_a_layer(node, model):
            ahead.extend(node.all_input_nodes)
    return [names[target] for node in graph.nodes if node in seen and (target := str(node.target)) in names]


def _logits_node(answer: Any) -> fx.Node | None:
    """Answers what :func:`logits_of` reads in a traced model's answer."""
    if isinstance(answer, fx.Node):
        carried = answer.kwargs.get("logits") if answer.op == "call_function" else None
        return carried if isinstance(carried, fx.Node) else answer
    if isinstance(answer, Mapping):
        return _logits_node(answer.get("logits"))
    if hasattr(answer, "logits"):
        return _logits_node(answer.logits)
    if isinstance(answer, (tuple, list)) and answer:
        return _logits_node(answer[0])
    return None


def _tells_no_value(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) in _SHAPES
    return node.op == "call_function" and node.target in (getattr, len) and set(node.args[1:]) <= _SHAPES


def _is_a_layer(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        # The matrix of a single logit looks like a scale of each class.
        return isinstance(module, nn.Linear) or any(_mixes(parameter) for parameter in module.parameters())
    return any(entry.op == "get_attr" and _is_matrix(model, str(entry.target)) for entry in node.all_input_nodes)


def _is_matrix(model: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    found = getattr(model.get_submodule(path), attribute, None)
    return isinstance(found, nn.Parameter) and _mixes(found)
