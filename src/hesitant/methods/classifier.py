"""Finds the classifier of a model: its last Linear in order of execution."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_QUESTIONS = 1000


def find_classifier(model: nn.Module, name: str | None = None, example_input: Any = None) -> str:
    """Answers the name of the Linear that makes the logits.

    In this order: the name given; the last Linear that runs on ``example_input``; what the model itself names
    (``get_classifier()``, the contract of timm); the only Linear; the last in a symbolic trace of the model; the only
    one with as many outputs as the model has ``num_labels`` (Hugging Face).

    Raises:
        ValueError: The name is no Linear of the model, or the classifier cannot be told from the model alone.
    """
    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    if name is not None:
        if name not in linears:
            raise ValueError(f"classifier={name!r} is not a Linear of the model: it has {list(linears)}.")
        return name
    if not linears:
        raise ValueError(
            f"model={type(model).__name__} has no Linear that could be its classifier: SNGP replaces the last one by a"
            " Gaussian process. Flatten the features and end the model in nn.Linear(features, classes)."
        )
    paths = {id(module): path for path, module in linears.items()}
    if example_input is not None:
        return _last_executed(model, linears, example_input)
    named = getattr(model, "get_classifier", None)
    if callable(named):
        classifier = named()
        if id(classifier) in paths:
            return paths[id(classifier)]
    if len(linears) == 1:
        return next(iter(linears))
    traced = _last_traced(model, linears)
    if traced is not None:
        return traced
    num_labels = getattr(model, "num_labels", None)
    fitting = [path for path, module in linears.items() if module.out_features == num_labels]
    if len(fitting) == 1:
        return fitting[0]
    raise ValueError(
        f"the classifier of {type(model).__name__} cannot be told from its code: give its name, classifier=..., one of"
        f" {list(linears)}, or an example_input to run the model on."
    )


def _last_executed(model: nn.Module, linears: dict[str, nn.Linear], example_input: Any) -> str:
    executed: list[str] = []
    modes = [(module, module.training) for module in model.modules()]
    handles = [
        module.register_forward_hook(lambda _module, _args, _output, path=path: executed.append(path))
        for path, module in linears.items()
    ]
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(example_input, Mapping):
                model(**example_input)
            else:
                model(*([example_input] if isinstance(example_input, Tensor) else example_input))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    if not executed:
        raise ValueError(f"no Linear of the model ran on example_input: it has {list(linears)}.")
    return executed[-1]


class _DecidingTracer(torch.fx.Tracer):
    """Goes on where Python asks about the data, a check of shapes as a rule, with one answer to every question."""

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer, self.questions = answer, 0

    def to_bool(self, obj: torch.fx.Proxy) -> bool:
        self.questions += 1
        if self.questions > _QUESTIONS:
            raise RuntimeError("a loop on the data")
        return self.answer


def _last_traced(model: nn.Module, linears: dict[str, nn.Linear]) -> str | None:
    """Answers the Linear on which the traces that come to an end agree, whatever the data."""
    found = {_last_on_path(model, linears, answer) for answer in (False, True)} - {None}
    return found.pop() if len(found) == 1 else None


def _last_on_path(model: nn.Module, linears: dict[str, nn.Linear], answer: bool) -> str | None:
    try:
        graph = _DecidingTracer(answer).trace(model)
    except Exception:  # a model whose Python depends on its data cannot be traced, and fails in any way it likes
        return None
    called = [str(node.target) for node in graph.nodes if node.op == "call_module" and node.target in linears]
    return called[-1] if called else None
