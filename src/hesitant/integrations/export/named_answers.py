"""The module that is exported: what the model takes, and answers by name."""

import inspect
from typing import Any

from torch import Tensor, nn

from hesitant.evaluation import DeferralPolicy
from hesitant.inputs import Batch, tensors_of
from hesitant.integrations.export.answer import Answer
from hesitant.integrations.export.capture import LayerByLayer
from hesitant.integrations.export.decision import accepted
from hesitant.integrations.export.dropout_graph import DropoutGraph
from hesitant.integrations.export.example import MASKS
from hesitant.integrations.export.graphs import DeterministicGraph, EnsembleGraph, SNGPGraph
from hesitant.methods import SNGP, DeepEnsemble, Deterministic, MCDropout, Tempered


def graph_of(method: nn.Module, batch: Batch, dynamic: dict[int, dict[int, Any]]) -> nn.Module:
    """Answers a method as a module whose forward answers an :class:`Answer`.

    Args:
        method: One of the four, fitted.
        batch: What it is to be asked, for example.
        dynamic: Which axes of each tensor of the batch have any length.

    Raises:
        TypeError: It is none of them.
        ValueError: Its passes cannot stand in one graph.
    """
    if isinstance(method, SNGP):
        return SNGPGraph(method, batch)
    if isinstance(method, MCDropout):
        return DropoutGraph(method, batch, dynamic)
    if isinstance(method, DeepEnsemble):
        methods = [method.method_of(member) for member in method.members]
        return EnsembleGraph([graph_of(member, batch, dynamic) for member in methods], list(methods))
    if isinstance(method, Deterministic):
        return DeterministicGraph(method.model, method.outputs)
    raise _no_graph(method)


def require_method(model: Any) -> Any:
    """Answers the model, if it is a method, each of whose members is one or a network, all on one device.

    Raises:
        TypeError: It is not.
        ValueError: The members are on several devices.
    """
    if not isinstance(model, (SNGP, MCDropout, DeepEnsemble, Deterministic)):
        raise _no_graph(model)
    devices = {tensor.device for tensor in model.parameters()}
    if len(devices) > 1:
        raise ValueError(f"the model is on {sorted(map(str, devices))}: move all of it to one device, model.to('cpu').")
    return model


def _no_graph(model: Any) -> TypeError:
    return TypeError(
        f"model is a {type(model).__name__}: expected a Deterministic, SNGP, MCDropout or DeepEnsemble. A plain network"
        " is exported as hesitant.Deterministic(network); what a FeatureDetector adds to a method has no graph: export"
        ' its method, or an SNGP with ood_score="knn", which answers the distance to the training data by itself.'
    )


class NamedAnswers(nn.Module):
    """Answers a dict of ``probs`` ``(B, C)``, ``uncertainty`` ``(B,)``, and what else the method knows.

    Its forward has the signature of the model's; where masks are given, ``dropout_masks``, a list of them, beside it.

    Args:
        method: What it answers for.
        graph: The method in a graph.
        policy: Says which inputs to answer.
        fixed: Arguments of the model's forward that are no inputs.
        takes_masks: Whether dropout masks are given.
    """

    def __init__(
        self,
        method: Tempered,
        graph: nn.Module,
        policy: DeferralPolicy | None,
        *,
        fixed: dict[str, Any],
        takes_masks: bool,
    ) -> None:
        super().__init__()
        self.method_graph, self.policy, self.temperature, self.fixed = graph, policy, method.temperature, fixed
        signature = inspect.signature(model_of(method).forward)
        if takes_masks:
            given = inspect.Parameter(MASKS, inspect.Parameter.KEYWORD_ONLY)
            parameters = list(signature.parameters.values())
            at = sum(each.kind != inspect.Parameter.VAR_KEYWORD for each in parameters)
            signature = signature.replace(parameters=[*parameters[:at], given, *parameters[at:]])
        self.signature = signature.replace(return_annotation=inspect.Signature.empty)
        self.__dict__["forward"] = _with_signature(self, self.signature)
        self.train(False)

    @property
    def names(self) -> list[str]:
        """What the answers are called, in their order."""
        variance = ["logit_variance"] if self.has_variance else []
        return ["probs", "uncertainty", *variance, *([] if self.policy is None else ["accept"])]

    @property
    def has_variance(self) -> bool:
        """Whether the method has a distribution over logits."""
        return _has_variance(self.method_graph)

    @property
    def num_samples(self) -> int | None:
        """Of how many passes a part of the answer is the mean; None where nothing is drawn."""
        return min((each.num_samples for each in self.modules() if isinstance(each, DropoutGraph)), default=None)

    @property
    def is_half(self) -> bool:
        """Whether a part of it computes in half precision."""
        return any(each.is_floating_point() and each.dtype.itemsize < 4 for each in self.state_dict().values())

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], masks: list[Tensor] | None) -> Answer:
        """Answers all that there is."""
        given = {**kwargs, **self.fixed}
        answer: Answer = self.method_graph(args, given, self.temperature, None if masks is None else iter(masks))
        return answer

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Answers what is exported."""
        kwargs = dict(kwargs)
        with LayerByLayer():
            answer = self.answer(args, kwargs, kwargs.pop(MASKS, None))
        named = {"probs": answer.probs, "uncertainty": answer.ood_score}
        if answer.logit_variance is not None:
            named["logit_variance"] = answer.logit_variance
        if self.policy is not None:
            named["accept"] = accepted(answer, self.policy)
        return named

    def example_masks(self, batch: Batch) -> tuple[list[Tensor], list[float]]:
        """Answers masks that were drawn for some inputs, in the order in which they are taken, and their rates."""
        kept: list[Tensor] = []
        rates: list[float] = []
        for module in self.modules():
            if isinstance(module, DropoutGraph):
                drawn = module.drawn_masks(tensors_of(batch), module.num_samples)
                kept += drawn.kept
                rates += drawn.rates
        return kept, rates


def model_of(method: Any) -> nn.Module:
    """Answers the network that a method asks, of an ensemble the first."""
    while isinstance(method, Tempered):
        method = method.members[0] if isinstance(method, DeepEnsemble) else method.model
    network: nn.Module = method
    return network


def _has_variance(graph: nn.Module) -> bool:
    if isinstance(graph, EnsembleGraph):
        return all(map(_has_variance, graph.members))
    return isinstance(graph, SNGPGraph)


def _with_signature(module: NamedAnswers, signature: inspect.Signature) -> Any:
    def forward(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return module.named(args, kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward
