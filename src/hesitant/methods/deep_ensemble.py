"""Deep ensembles: several models trained apart, whose disagreement tells what they do not know."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hesitant.inputs import Batch, as_class_targets, batches, map_tensors, tensors_of
from hesitant.methods.calibration_digest import calibration_digest
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.members import DeterministicMembers, require_own_weights, require_same_shapes
from hesitant.methods.models_of_keras import require_module
from hesitant.methods.outputs import (
    Ending,
    Outputs,
    log_probs_of,
    logits_of,
    require_outputs_argument,
    require_rows,
    with_logits,
)
from hesitant.methods.random_state import derived_seed, random_state_kept, require_seed, seed_all
from hesitant.methods.sngp import SNGP
from hesitant.methods.temperature import Tempered, tempered
from hesitant.methods.wrapper import Gathered, ModelWrapper, bind_forward, device_of, takes_labels
from hesitant.prediction import Mixture, Prediction

_BATCHES_AT_ONCE, _BYTES_AT_ONCE = 16, 2**26  # what every member is asked about before the next batches are read
_NO_SPLIT = (
    "the members answer by the mean-field approximation, with one distribution each, which cannot be split: predict"
    ' with posterior="monte_carlo".'
)


class DeepEnsemble(Tempered):
    """Answers with the mean of its members' predictive distributions.

    Members are classifiers trained apart: plain models, or models within :class:`SNGP` or :class:`MCDropout`, of one
    architecture or of several, on one device or on several. ``hesitant.fit(ensemble, data)`` trains all of them.

    In eval mode ``forward`` answers the logarithm of the mean probabilities, so that its softmax is the predictive
    distribution. In training mode it raises: a loop around it would train the average and not the members.

    Source: Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
    NeurIPS.

    Example:
        >>> import torch
        >>> from hesitant import DeepEnsemble
        >>> ensemble = DeepEnsemble.from_builder(lambda: torch.nn.Linear(2, 3), num_members=5)
        >>> ensemble.predict(torch.randn(4, 2)).probs.shape
        torch.Size([4, 3])
        >>> ensemble.predict_samples(torch.randn(4, 2)).shape
        torch.Size([5, 4, 3])

    Args:
        members: The models, each a module of its own.
        vectorize: Whether ``hesitant.fit`` trains them, and ``predict`` asks plain ones, in one vectorised pass: None
            where that can be and pays, True wherever it can be, False nowhere. The answers are the same either way, and
            so is training but for rounding and for which masks dropout draws.
        temperature: What divides the logits of each member, beside its own, before the mean (see :attr:`temperature`).
        outputs: What plain members answer: ``"probabilities"`` if they end in a softmax or a sigmoid, else
            ``"logits"``; a method around a member says so itself.

    Attributes:
        members: The models.

    Raises:
        TypeError: A member is no ``torch.nn.Module``.
        ValueError: There is none, or one stands twice.
    """

    members: nn.ModuleList

    def __init__(
        self,
        members: Iterable[nn.Module],
        *,
        vectorize: bool | None = None,
        temperature: float = 1.0,
        outputs: Outputs = "logits",
    ) -> None:
        super().__init__()
        require_outputs_argument(outputs)
        if not isinstance(members, nn.ModuleList) and isinstance(members, nn.Module):
            raise TypeError(f"members is one {type(members).__name__}: expected models, DeepEnsemble([first, second]).")
        members = list(members)
        if not members:
            raise ValueError("members is empty: expected at least one model.")
        for position, member in enumerate(members):
            require_module(f"members[{position}]", member)
            own = _unwrapped(member)
            twin = next((i for i, other in enumerate(members[:position]) if _unwrapped(other) is own), None)
            if twin is not None:
                raise ValueError(
                    f"members[{position}] is members[{twin}] once more: expected models of their own. Build each anew,"
                    " as DeepEnsemble.from_builder does."
                )
        self.members = nn.ModuleList(members)
        self.vectorize = vectorize
        self.temperature = temperature
        self.outputs: Outputs = outputs
        self.ending = Ending()  # of the plain members
        bind_forward(self, members[0])

    @classmethod
    def from_builder(
        cls,
        build: Callable[[], nn.Module],
        num_members: int = 10,
        *,
        seed: int = 0,
        outputs: Outputs = "logits",
    ) -> "DeepEnsemble":
        """Answers an ensemble of ``num_members`` models, each with the initialisation that the model gives itself.

        Args:
            build: Makes one model, its weights drawn as models draw them: from the global generators, which are seeded
                for each member and put back afterwards.
            num_members: How many.
            seed: Not negative; members follow from it one by one, so that the first of five are the first of ten.
            outputs: What the models answer, as for the class.

        Raises:
            ValueError: A number is out of its range, or the builder makes the same weights again and again, or weights
                that get their values only with the first input.
            TypeError: It is no function, or makes no ``torch.nn.Module``.
        """
        if isinstance(build, nn.Module):
            raise TypeError(
                f"build is a {type(build).__name__}: expected a function that makes one anew at each call, such as"
                f" lambda: {type(build).__name__}(...)."
            )
        _require_integer("num_members", num_members, 1)
        _require_integer("seed", seed, 0)
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        members = []
        for position in range(num_members):
            with random_state_kept(devices):
                seed_all(derived_seed(int(seed), position), devices)
                members.append(build())
        ensemble = cls(members, outputs=outputs)
        require_own_weights(members)
        return ensemble

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Binds ``forward`` anew, as a copy forgets its signature."""
        super().__setstate__(state)
        bind_forward(self, self.members[0])

    @takes_labels
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answers :meth:`call`, under the signature of the first member's ``forward``."""
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Answers the first member's output with the logarithm of the mean probabilities for logits.

        Raises:
            RuntimeError: The ensemble is in training mode.
            ValueError: A member's output is not ``(B, C)``, or not of the same inputs and classes as the first's.
        """
        if self.training:
            raise RuntimeError(
                "a DeepEnsemble in training mode has no forward: a loss of the mean would train one model of its"
                " members. Train them with hesitant.fit(ensemble, data), or each of ensemble.members by itself; to"
                " evaluate, call ensemble.eval() first."
            )
        return self._ask(args, kwargs, self.temperature, 0)

    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float, seed: int) -> Any:
        output: Any = None
        answers: list[Tensor] = []
        seed = derived_seed(seed, 0)  # as for the first batches of predict
        for index, member in enumerate(self.members):
            batch = map_tensors(Batch(args, kwargs).to(device_of(member)), Tensor.clone)  # a model may write to them
            answer, log_probs = self._answer_of(member, batch, temperature, derived_seed(seed, index))
            output = answer if output is None else output
            answers.append(log_probs.to(logits_of(output).device))
        require_same_shapes(answers)
        mean = torch.logsumexp(torch.stack(answers), 0) - math.log(len(answers))
        labels = kwargs.get("labels")
        return with_logits(output, mean, None if labels is None else labels.to(mean.device))

    def _answer_of(self, member: nn.Module, batch: Batch, temperature: float, seed: int) -> tuple[Any, Tensor]:
        """Answers what a member answers, and its log-probabilities ``(B, C)`` at the temperature of what is around."""
        if isinstance(member, DeepEnsemble):
            answer = member._ask(batch.args, batch.kwargs, temperature * member.temperature, seed)
        elif isinstance(member, MCDropout):
            answer = member.sampled(batch.args, batch.kwargs, seed=seed, temperature=temperature * member.temperature)
        elif isinstance(member, ModelWrapper):
            answer = member.ask(batch.args, batch.kwargs, temperature * member.temperature)
        else:
            answer = member(*batch.args, **batch.kwargs)
            logits = require_rows(logits_of(answer), None, member)
            return answer, tempered(log_probs_of(logits, self.outputs), temperature)
        return answer, log_probs_of(require_rows(logits_of(answer), None, member), "logits")

    def calibration_state(self) -> tuple[Any, ...]:
        """Answers what tells this method's scores from those of another."""
        own = [member.calibration_state() if isinstance(member, Tempered) else self.outputs for member in self.members]
        return *super().calibration_state(), own

    def saved_options(self) -> dict[str, Any]:
        """Answers the options of the constructor, as JSON, with which the ensemble is made again."""
        return {"vectorize": self.vectorize, "temperature": self.temperature, "outputs": self.outputs}

    def predict(
        self, inputs: Any, *, seed: int = 0, batch_size: int | None = None, **member_options: Any
    ) -> Prediction:
        """Answers the Prediction for inputs of any length, in batches.

        Its ``class_std`` is the standard deviation over members, and over the samples of members that sample: total
        uncertainty is that of the mean, aleatoric the mean over members and samples, epistemic their difference. Its
        ``logits`` are the mean of the members' before any temperature, where all have some. An ensemble of SNGPs also
        has ``logit_variance``: the mean of their variances plus the variance of their means. Its ``ood_score`` is the
        mean of the members' distances where all of them are SNGPs with ``ood_score="knn"``.

        Args:
            inputs: A tensor, a list or a dict of several, ``(inputs, targets)``, a Dataset, a DataLoader, a list of
                examples (see :func:`hesitant.inputs.understood`), read once. A few batches at a time are kept for all
                members to answer; all of them where a member shares its dropout masks.
            seed: Not negative; members that draw samples draw others than the next.
            batch_size: Inputs in one forward pass; None chooses by their size.
            member_options: Further options of the members' own ``predict``, such as ``posterior`` and ``num_samples``.

        Raises:
            ValueError: The inputs are empty, an option is out of its range, or the members' classes differ.
            TypeError: No member's ``predict`` has such an option, or the inputs are of an unknown type.
        """
        answer = self.answer(batches(inputs, batch_size), temperature=self.temperature, seed=seed, **member_options)
        return answer.with_calibration(calibration_digest(self, **member_options))

    def answer(self, given: Iterable[Batch], *, temperature: float, seed: int, **member_options: Any) -> Prediction:
        """Answers the Prediction for batches, at a temperature in place of the ensemble's own."""
        plain = self._plain_members()
        answers = []
        for group, group_seed in self._groups(given, seed, member_options):
            if plain is None:
                answers.append(self._mixed(self._answers(group, temperature, group_seed, member_options)))
                continue
            targets = Gathered()
            for batch in group:
                targets.append(as_class_targets(batch.targets))
            mixture, evidence = plain.mixture(group, temperature)
            answers.append(
                Prediction(
                    mixture.probs,
                    targets=targets.tensor(),
                    log_probs=mixture.log_probs,
                    logits=mixture.logits,
                    evidence=evidence,
                    expected_entropy=mixture.expected_entropy,
                    class_std=mixture.class_std,
                )
            )
        return Prediction.cat(answers)

    def predict_samples(
        self, inputs: Any, *, seed: int = 0, batch_size: int | None = None, **member_options: Any
    ) -> Tensor:
        """Answers the probabilities ``(M, N, C)`` of each member; the arguments are those of :meth:`predict`."""
        samples = Gathered()
        plain = self._plain_members()
        for group, group_seed in self._groups(batches(inputs, batch_size), seed, member_options):
            if plain is not None:
                probs = tempered(plain.log_probs(group), self.temperature).exp()
            else:
                predictions = self._answers(group, self.temperature, group_seed, member_options)
                probs = torch.stack([prediction.probs for prediction in predictions])
            samples.append(probs.transpose(0, 1))  # (B, M, C)
        gathered = samples.tensor()
        assert gathered is not None
        return gathered.transpose(0, 1).contiguous()

    # ---------------------------------------------------------------- inside

    def _groups(self, given: Iterable[Batch], seed: int, options: dict[str, Any]) -> Iterator[tuple[list[Batch], int]]:
        """Gives some batches at a time, with what seeds the members' answers to them."""
        require_seed(seed)
        taken = _options_of(self)
        unknown = sorted(set(options) - taken)
        if unknown:
            raise TypeError(f"predict has no option {unknown}: its members take {sorted(taken) or 'none'}.")
        # Those who share masks must see all inputs in one call: they check that the masks fit each batch.
        shared = any(isinstance(module, MCDropout) and module.masks == "shared" for module in self.modules())
        for position, group in enumerate(_grouped(given, together=shared)):
            yield group, derived_seed(int(seed), position)

    def _plain_members(self) -> DeterministicMembers | None:
        """Answers the members, if all of them are plain models."""
        methods = (ModelWrapper, DeepEnsemble)
        plain = all(type(member) is Deterministic or not isinstance(member, methods) for member in self.members)
        return DeterministicMembers(list(self.members), self.vectorize, self.outputs, self.ending) if plain else None

    def _answers(
        self, group: Sequence[Batch], temperature: float, seed: int, options: dict[str, Any]
    ) -> list[Prediction]:
        """Answers every member's prediction of some batches, at the temperature of what is around them."""
        first_device = device_of(self.members[0])
        answers = []
        for index, member in enumerate(self.members):
            method: Any = self.method_of(member)
            own = {name: value for name, value in options.items() if name in _options_of(method)}
            given = (map_tensors(batch, Tensor.clone) for batch in group)  # a model may write to them
            answer = method.answer(
                given, temperature=temperature * method.temperature, seed=derived_seed(seed, index), **own
            )
            answers.append(answer.to(first_device))
        self.ending.seen = True
        require_same_shapes([answer.probs for answer in answers])
        return answers

    def method_of(self, member: nn.Module) -> "ModelWrapper | DeepEnsemble":
        """Answers a member as a method: a plain model within :class:`Deterministic`."""
        if isinstance(member, (ModelWrapper, DeepEnsemble)):
            return member
        plain = Deterministic(member, outputs=self.outputs)
        plain.ending = Ending(self.ending.seen)
        return plain

    def _mixed(self, predictions: list[Prediction]) -> Prediction:
        """Answers the prediction that the members make together, each with the same weight."""
        parts = [_as_mixture(prediction) for prediction in predictions]
        mixture = parts[0]
        for part in parts[1:]:
            mixture = mixture.merged(part)
        split = all(
            "class_std" in prediction.available or not isinstance(member, (SNGP, DeepEnsemble))
            for member, prediction in zip(self.members, predictions, strict=True)
        )
        logits = evidence = variance = None
        if all("logits" in prediction.available for prediction in predictions):
            means = torch.stack([prediction.logits for prediction in predictions])
            logits = means.mean(0)
            if any(prediction.evidence is not prediction.logits for prediction in predictions):
                evidence = torch.stack([prediction.evidence for prediction in predictions]).mean(0)
            if all("logit_variance" in prediction.available for prediction in predictions):
                within = torch.stack([prediction.logit_variance for prediction in predictions]).mean(0)
                variance = within + means.var(0, correction=0)
        by_distance = all(isinstance(member, SNGP) and member.neighbors is not None for member in self.members)
        return Prediction(
            mixture.probs,
            targets=predictions[0].targets,
            log_probs=mixture.log_probs,
            logits=logits,
            evidence=evidence,
            ood_score=torch.stack([each.ood_score for each in predictions]).mean(0) if by_distance else None,
            logit_variance=variance,
            expected_entropy=mixture.expected_entropy if split else None,
            class_std=mixture.class_std if split else None,
            split_unavailable=None if split else _NO_SPLIT,
        )


def _grouped(given: Iterable[Batch], *, together: bool) -> Iterator[list[Batch]]:
    """Gives batches in groups of so many, or so many bytes; ``together``: in one."""
    group: list[Batch] = []
    size = 0
    for batch in given:
        group.append(batch)
        size += sum(tensor.nbytes for tensor in tensors_of(batch))
        if not together and (len(group) == _BATCHES_AT_ONCE or size >= _BYTES_AT_ONCE):
            yield group
            group, size = [], 0
    if group:
        yield group


def _options_of(method: Any) -> set[str]:
    """Answers the names of the options that are a method's own."""
    if isinstance(method, DeepEnsemble):
        return set().union(*(_options_of(member) for member in method.members))
    if not isinstance(method, ModelWrapper):
        return set()
    return set(inspect.signature(method.predict).parameters) - {"inputs", "seed", "batch_size"}


def _unwrapped(member: nn.Module) -> nn.Module:
    while isinstance(member, ModelWrapper):
        member = member.model
    return member


def _require_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} is no integer of at least {least}.")


def _as_mixture(prediction: Prediction) -> Mixture:
    if "class_std" in prediction.available:
        return Mixture(1, prediction.probs, prediction.log_probs, prediction.expected_entropy, prediction.class_std)
    return Mixture(
        1, prediction.probs, prediction.log_probs, prediction.predictive_entropy, torch.zeros_like(prediction.probs)
    )
