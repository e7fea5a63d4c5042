"""The features that a method's classifier is given: recorded in the passes that answer, and known to have moved."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch, as_class_targets, batches, map_tensors
from hesitant.methods.deep_ensemble import DeepEnsemble
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.gaussian_head import counted_features, find_classifier, fingerprint, gaussian_process_in
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.replica import in_eval_mode, replica
from hesitant.methods.sngp import SNGP
from hesitant.methods.wrapper import ModelWrapper, device_of
from hesitant.nn import RandomFeatureGaussianProcess, WeightWatch, recorded

Listener = Callable[[Tensor], None]
Method = Deterministic | SNGP | MCDropout


class FeatureSource:
    """What a method's classifier is given: features ``(B, D)``, of the same forward pass as the answer where it is one.

    Of MC dropout, whose passes each have their own, they are those of its model in eval mode, for which that runs once
    more.

    Args:
        method: What answers.
        classifier: Name of the Linear that makes the logits, where it cannot be told otherwise.
        example_input: What the model is called with, to find that Linear by running it.

    Raises:
        TypeError: It has as many features as members.
        ValueError: The classifier cannot be told, or another method stands within this one.
    """

    def __init__(self, method: Any, classifier: str | None = None, example_input: Any = None) -> None:
        if isinstance(method, DeepEnsemble):
            raise TypeError(
                "an ensemble has features of each of its members, in spaces of their own: detect by those of one,"
                " FeatureDetector(ensemble.members[0], ...), or by the ensemble's logits, such as 'energy'."
            )
        self.method: Method = method
        self._watch = WeightWatch()
        if isinstance(method, SNGP):
            if classifier is not None or example_input is not None:
                raise ValueError("classifier and example_input are for a plain model: an SNGP knows its classifier.")
            self._name = None
            return
        inner = next((m for m in method.model.modules() if _is_method(m)), None)
        if inner is not None:
            raise ValueError(
                f"model is a {type(method).__name__} around a {type(inner).__name__}: give the"
                f" {'SNGP' if isinstance(inner, RandomFeatureGaussianProcess) else type(inner).__name__} itself."
            )
        self._name = find_classifier(method.model, classifier, example_input)

    @property
    def head(self) -> nn.Linear | None:
        """The Linear that makes the logits of the features; None for an SNGP, which has none."""
        if self._name is None:
            return None
        linear = self.method.model.get_submodule(self._name)
        assert isinstance(linear, nn.Linear)
        return linear

    @property
    def width(self) -> int:
        """How many numbers a feature has."""
        head = self.head
        return self.method.gp.in_features if head is None else head.in_features

    @property
    def classifier(self) -> str | None:
        """The name of the Linear that makes the logits; None for an SNGP."""
        return self._name

    def features(self, data: Any, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Gives the features ``(B, D)`` of data in eval mode, batch by batch, with their targets where there are some.

        Raises:
            ValueError: They are not one row for each input.
        """
        method, device = self.method, device_of(self.method.model)
        told: list[Tensor] = []
        model = in_eval_mode(method.model) if self._name is None else self._telling(told.append)
        for batch in batches(data, batch_size):
            moved = batch.to(device)
            with torch.no_grad(), recorded(plain=True) as calls:
                answer = model(*moved.args, **moved.kwargs)
                told += [counted_features(model, call, answer, moved.args, moved.kwargs) for call in calls]
            targets = as_class_targets(moved.targets)
            yield _only(told, batch.num_inputs), targets
            told.clear()

    def answer(
        self, given: Iterable[Batch], listener: Listener, *, temperature: float, seed: int, **options: Any
    ) -> Any:
        """Answers the method's Prediction for batches; the listener is told the features ``(B, D)`` of each.

        Raises:
            ValueError: They are not one row for each input.
        """
        method = self.method
        if isinstance(method, SNGP):
            return method.answer(given, temperature=temperature, seed=seed, listener=listener, **options)
        told: list[Tensor] = []
        telling = self._telling(told.append)
        if isinstance(method, MCDropout):
            watched = self._asked_before(given, telling, told, listener)
            return method.answer(watched, temperature=temperature, seed=seed, **options)
        double = Deterministic(telling, outputs=method.outputs)
        double.ending = method.ending
        return double.answer(_heard(given, told, listener), temperature=temperature, seed=seed, **options)

    # ---------------------------------------------------------------- whether the features are those that they were

    def mark(self) -> int:
        """Answers a number of the weights that the features come from."""
        prefix = self._without()
        return 0 if prefix is None else fingerprint(self.method.model, without=prefix)

    def has_moved(self, mark: int) -> bool:
        """Answers whether the weights are others than at that mark."""
        prefix = self._without()
        if prefix is None or not self._watch.suspects(self.method.model, prefix):
            return False
        if self.mark() != mark:
            return True  # and the suspicion stays
        self._watch.trusts(self.method.model, prefix)
        if self.mark() == mark:
            return False
        self._watch.raise_suspicion()  # by who wrote between the two
        return True

    # ---------------------------------------------------------------- inside

    def _without(self) -> str | None:
        """Answers the part of the model whose weights features do not depend on; None where that is all of it."""
        if not isinstance(self.method, SNGP):
            return ""
        path = gaussian_process_in(self.method.model, self.method.classifier_name)[0]
        return f"{path}." if path else None

    def _telling(self, listener: Listener) -> nn.Module:
        """Answers a replica of the model in eval mode that tells what its classifier is given."""
        assert self._name is not None
        double = replica(self.method.model)
        linear = double.get_submodule(self._name.replace("_orig_mod.", "").removesuffix("_orig_mod"))
        # The hooks of a replica are the model's: it gets a list of its own before one is added.
        linear._forward_pre_hooks = OrderedDict(linear._forward_pre_hooks)
        linear._forward_pre_hooks_with_kwargs = OrderedDict(linear._forward_pre_hooks_with_kwargs)

        def tell(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            listener((args[0] if args else kwargs["input"]).detach().clone())  # the model may write to it afterwards

        linear.register_forward_pre_hook(tell, with_kwargs=True)
        return double

    @staticmethod
    def _asked_before(
        given: Iterable[Batch], telling: nn.Module, told: list[Tensor], listener: Listener
    ) -> Iterator[Batch]:
        """Gives the batches on, each after the model was asked for its features."""
        device = device_of(telling)
        for batch in given:
            own = map_tensors(batch.to(device), Tensor.clone)  # a model may write to them
            with torch.no_grad():
                telling(*own.args, **own.kwargs)
            listener(_only(told, batch.num_inputs))
            told.clear()
            yield batch


def _heard(given: Iterable[Batch], told: list[Tensor], listener: Listener) -> Iterator[Batch]:
    """Gives the batches on, and tells of each, once it was answered, the features that were noted meanwhile."""
    for batch in given:
        yield batch
        listener(_only(told, batch.num_inputs))
        told.clear()


def _only(told: list[Tensor], num_inputs: int | None) -> Tensor:
    if len(told) != 1:
        raise ValueError(
            f"the model called its classifier {len(told)} times in one forward pass: features are what it is given in"
            " one call. Name another Linear, classifier=..., or detect by the logits, such as 'energy'."
        )
    features = told[0]
    if features.ndim != 2 or num_inputs not in (None, len(features)):
        of_inputs = "" if num_inputs is None else f" for {num_inputs} inputs"
        raise ValueError(
            f"the classifier is given features of shape {tuple(features.shape)}{of_inputs}: expected (B, D), one row"
            " for each input. Let the model choose or average positions before its classifier, or detect by the"
            " logits, such as 'energy'."
        )
    return features


def _is_method(module: nn.Module) -> bool:
    return isinstance(module, (ModelWrapper, DeepEnsemble, RandomFeatureGaussianProcess))
