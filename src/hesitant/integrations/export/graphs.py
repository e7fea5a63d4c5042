"""The methods as modules whose answers have names: Deterministic, SNGP, DeepEnsemble, each of its own functions."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from hesitant.inputs import Batch
from hesitant.integrations.export.answer import Answer, answer_of, mixed
from hesitant.integrations.export.frozen_head import FrozenHead
from hesitant.methods import (
    SNGP,
    DeepEnsemble,
    ModelWrapper,
    Outputs,
    in_eval_mode,
    logits_of,
    replica,
    require_rows,
)
from hesitant.methods.gaussian_head import gaussian_process_in
from hesitant.nn import recorded
from hesitant.prediction import evidence_of


class Graph(Protocol):
    """A method within a graph."""

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float, masks: Iterator[Tensor] | None
    ) -> Answer:
        """Answers about the inputs of one forward pass.

        Args:
            args: Of the model's forward.
            kwargs: Of the model's forward.
            temperature: The method's own and those around it together.
            masks: What dropout keeps, in the order in which it is asked; None draws.
        """
        ...


class DeterministicGraph(nn.Module):
    """The plain model.

    Args:
        model: What is asked.
        outputs: What it answers.
    """

    def __init__(self, model: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.model, self.outputs = in_eval_mode(model), outputs

    def forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float, masks: Iterator[Tensor] | None
    ) -> Answer:
        """Answers about the inputs of one forward pass."""
        output = require_rows(logits_of(self.model(*args, **kwargs)), None, self.model)
        return answer_of(output, self.outputs, temperature)


class SNGPGraph(nn.Module):
    """SNGP by the mean-field approximation: one forward pass, and the variance as matrix products.

    A model that picks the logits of one position (a language model's last token) carries the features out in their
    place, so that the Gaussian process is asked once.

    Args:
        method: A fitted SNGP.
        batch: What it is to be asked, for example.
    """

    def __init__(self, method: SNGP, batch: Batch) -> None:
        super().__init__()
        place, gp = gaussian_process_in(method.model, method.classifier_name)
        self.outputs = method.outputs
        self.neighbors: Any = None if method.neighbors is None else in_eval_mode(method.neighbors)
        with recorded() as calls:
            answer = method.output_of(in_eval_mode(method.model), batch)
        picks = len(calls) == 1 and calls[0].output.ndim == 3 and answer.ndim < 3
        self.head = FrozenHead(gp, carries=picks)
        if place:
            self.model = replica(method.model)
            for path, module in list(self.model.named_modules(remove_duplicate=False)):
                if isinstance(module, type(gp)) and module.beta is gp.beta:
                    self.model.set_submodule(path, self.head)
        else:
            self.model = self.head

    def forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float, masks: Iterator[Tensor] | None
    ) -> Answer:
        """Answers about the inputs of one forward pass."""
        self.head.calls.clear()
        output = logits_of(self.model(*args, **kwargs))
        if self.head.carries:
            features = output
            gaussian = self.head.posterior(features)
            output = self.head.mean_field(gaussian).to(features.dtype)
        else:
            if len(self.head.calls) != 1:
                raise ValueError(f"the model ran its classifier {len(self.head.calls)} times in one forward pass.")
            features, gaussian = self.head.calls.pop()
        output = require_rows(output, None, self.model)
        mean, variance = gaussian.mean.reshape(output.shape), gaussian.variance.reshape(output.shape)
        evidence = output if self.outputs == "logits" else self.head.mean_field(gaussian).reshape(output.shape)
        return answer_of(
            output,
            self.outputs,
            temperature,
            mean_logits=mean,
            evidence=evidence_of(evidence.to(mean.dtype) / temperature),
            logit_variance=variance,
            distance=None if self.neighbors is None else self.neighbors.all_at_once(features),
        )


class EnsembleGraph(nn.Module):
    """The members in one graph, each by its own method.

    Args:
        members: Their graphs.
        methods: The members as methods.
    """

    def __init__(self, members: list[nn.Module], methods: list[ModelWrapper | DeepEnsemble]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures: list[float] = [method.temperature for method in methods]

    def forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float, masks: Iterator[Tensor] | None
    ) -> Answer:
        """Answers about the inputs of one forward pass."""
        answers: list[Answer] = [
            member(args, kwargs, temperature * own, masks)
            for member, own in zip(self.members, self.temperatures, strict=True)
        ]
        answer = mixed(answers)
        # As predict: the mean distance is that of members which are SNGPs themselves.
        by_distance = all(isinstance(member, SNGPGraph) for member in self.members)
        return answer if by_distance else answer._replace(distance=None)
