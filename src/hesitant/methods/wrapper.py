"""What every method around one model shares: the model's signature, its attributes, how it is asked."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch
from hesitant.methods.models_of_keras import require_module
from hesitant.methods.outputs import (
    Ending,
    OutputProbe,
    Outputs,
    log_probs_of,
    logits_of,
    require_outputs_argument,
    require_rows,
    with_logits,
)
from hesitant.methods.temperature import Tempered, tempered
from hesitant.methods.tied_tensors import name_tied_tensors_once, with_all_names
from hesitant.prediction import Prediction, as_floating, evidence_of, two_class_logits


def takes_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Has the ``forward`` of a class name ``labels``: Hugging Face's Trainer asks the class for the names of targets.

    That of an instance has the signature of its model's.
    """
    parameters = dict(inspect.signature(forward).parameters)
    labels = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
    kwargs = parameters.popitem()[1]
    forward.__signature__ = inspect.Signature([*parameters.values(), labels, kwargs])  # type: ignore[attr-defined]
    return forward


class ModelWrapper(Tempered):
    """A model with a method around it, which can stand wherever the model stood.

    ``forward`` keeps the signature of the model's (training libraries read it), and attributes that the wrapper does
    not have are the model's.
    """

    model: nn.Module
    # Hugging Face's Trainer: the loss of a batch is a mean, to be divided by the batches of a step.
    accepts_loss_kwargs = False

    def __init__(self, model: nn.Module, *, temperature: float = 1.0, outputs: Outputs = "logits") -> None:
        super().__init__()
        require_module("model", model)
        require_outputs_argument(outputs)
        self.model = model
        self.temperature = temperature
        self.outputs: Outputs = outputs
        self.ending = Ending()
        bind_forward(self, model)
        name_tied_tensors_once(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Binds ``forward`` anew: a pickled or copied method forgets its signature, or whose it is."""
        super().__setstate__(state)
        bind_forward(self, self.model)

    @takes_labels
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answers :meth:`call`, under the signature of the model's own ``forward``."""
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Answers what ``forward`` answers: in eval mode logits whose softmax is the predictive distribution."""
        return self.ask(args, kwargs, self.temperature)

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float) -> Any:
        """Answers what ``forward`` answers to these arguments at a temperature, in place of the method's own."""
        return self.tempered_output(self.model(*args, **kwargs), kwargs, temperature)

    def tempered_output(self, output: Any, kwargs: dict[str, Any], temperature: float) -> Any:
        """Answers what the model answered, its logits divided by the temperature; in training mode as it is."""
        if self.training or (temperature == 1 and self.outputs == "logits"):
            return output
        logits = logits_of(output)
        if logits.ndim not in (1, 2):
            raise ValueError(
                f"the model answers logits of shape {tuple(logits.shape)}, which a temperature of {temperature:g}"
                " cannot divide: expected (B, C), or (B, 1) or (B,) for a binary model. Set temperature=1.0."
            )
        if self.outputs == "logits":
            answer = two_class_logits(logits) / temperature
        else:
            answer = tempered(log_probs_of(logits, self.outputs), temperature).to(logits.dtype)
        return with_logits(output, answer, kwargs.get("labels"))

    def saved_options(self) -> dict[str, Any]:
        """Answers the options of the constructor, as JSON, with which the method is made again."""
        return {"temperature": self.temperature, "outputs": self.outputs}

    def output_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """Answers the logits of a batch, without gradients; the first time it looks at how the code ends.

        Args:
            model: The method's model, or a replica of it.
            batch: What it is asked, on the model's device.

        Raises:
            ValueError: The code ends in a softmax or sigmoid and ``outputs`` does not say so, or the answer is not one
                row for each input.
        """
        rows = batch.num_inputs
        with torch.no_grad():
            if self.ending.seen:
                return require_rows(logits_of(model(*batch.args, **batch.kwargs)), rows, self.model)
            logits = probed_logits(model, batch, self.outputs)
        self.ending.seen = True
        return require_rows(logits, rows, self.model)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        with_all_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getattr__(self, name: str) -> Any:
        """Answers the model's attribute where the wrapper has none of that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None:
                raise
            return getattr(model, name)


def prediction_of(
    output: Tensor,
    outputs: Outputs,
    targets: Tensor | None,
    *,
    temperature: float,
    mean_logits: Tensor | None = None,
    evidence: Tensor | None = None,
    logit_variance: Tensor | None = None,
    split_unavailable: str | None = None,
) -> Prediction:
    """Answers the Prediction of an output ``(B, C)``, at a temperature that its logits do not know.

    Nor does its evidence, unless it is given.
    """
    if outputs == "logits":
        if temperature != 1:
            output = as_floating("logits", output)  # half precision would round once more
            evidence = evidence_of(output) if evidence is None else evidence
            mean_logits = output if mean_logits is None else mean_logits
            output = output / temperature
        return Prediction.from_logits(
            output,
            targets=targets,
            mean_logits=mean_logits,
            evidence=evidence,
            logit_variance=logit_variance,
            split_unavailable=split_unavailable,
        )
    log_probs = tempered(log_probs_of(output, outputs), temperature)
    return Prediction(
        log_probs.exp(),
        targets=targets,
        log_probs=log_probs,
        logits=None if mean_logits is None else two_class_logits(mean_logits),
        evidence=evidence,
        logit_variance=None if logit_variance is None else two_class_logits(logit_variance),
        split_unavailable=split_unavailable,
    )


def probed_logits(model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor:
    """Answers the logits of a batch.

    Raises:
        ValueError: The code ends in a softmax or sigmoid, and ``outputs`` are said to be logits.
    """
    if outputs == "probabilities" or any("_orig_mod" in module._modules for module in model.modules()):
        return logits_of(model(*batch.args, **batch.kwargs))  # compiled code is not looked into
    with OutputProbe() as probe:
        logits = logits_of(model(*batch.args, **batch.kwargs))
    probe.require(logits, outputs, model)
    return logits


def outputs_of(model: nn.Module) -> Outputs:
    """Answers what a model's outputs are: logits, unless a method around it says otherwise."""
    return model.outputs if isinstance(model, ModelWrapper) else "logits"


def bind_forward(wrapper: nn.Module, model: nn.Module) -> None:
    """Gives the wrapper's ``forward`` the signature of the model's.

    A model of PEFT passes all on to the one within, and may have no signature of its own: then that counts.
    """
    signature = inspect.signature(model.forward)
    named = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    around: Any = model
    if not named and hasattr(around, "get_base_model"):
        signature = inspect.signature(around.get_base_model().forward)
    wrapper.__dict__["forward"] = types.MethodType(_with_signature(type(wrapper).forward, signature), wrapper)


def _with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Answers a copy of a method whose signature, after ``self``, is another function's."""
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, function.__closure__)
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    copy.__signature__ = signature.replace(parameters=[self_parameter, *signature.parameters.values()])  # type: ignore[attr-defined]
    return copy


def device_of(module: nn.Module) -> torch.device:
    """Answers where the module's first weight is."""
    tensors = (tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
    return next(tensors, torch.empty(0)).device


class Gathered:
    """Gathers what comes in batches in one tensor whose storage grows by half.

    A list of the batches would do, but small tensors that stay, between large ones that go, fragment the heap: a
    million inputs took 2.4 GiB for 30 MiB of answers.
    """

    def __init__(self) -> None:
        self._storage: Tensor | None = None
        self._length = 0
        self._batches = 0
        self._missing = 0

    def append(self, batch: Tensor | None, *, own: bool = False) -> None:
        """Adds a batch ``(B, ...)``; None stands for a batch that has none of it.

        Args:
            batch: What is added.
            own: Whether nobody else writes to it, so that the first need not be copied.
        """
        self._batches += 1
        if batch is None:
            self._missing += 1
            return
        if own and self._storage is None:
            self._storage, self._length = batch, batch.shape[0]
            return
        needed = self._length + len(batch)
        if self._storage is None or needed > len(self._storage):
            grown = batch.new_empty(max(needed, self._length * 3 // 2), *batch.shape[1:])
            if self._storage is not None:
                grown[: self._length] = self._storage[: self._length]
            self._storage = grown
        self._storage[self._length : needed] = batch
        self._length = needed

    def tensor(self) -> Tensor | None:
        """Answers all batches as one tensor ``(N, ...)``, or None if no batch had any.

        Raises:
            ValueError: Some batches had it and some had not.
        """
        if 0 < self._missing < self._batches:
            raise ValueError("some batches have targets and some have none: give all of them targets, or none.")
        return None if self._storage is None else self._storage[: self._length]
