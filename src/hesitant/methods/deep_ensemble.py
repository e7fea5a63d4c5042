"""Deep ensembles: several models trained apart, whose disagreement tells what they do not know."""

import inspect
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hesitant.methods.batches import Batch, batches, logits_of, map_tensors, with_logits
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.own_weights import require_own_weights
from hesitant.methods.plain_members import PlainMembers, require_same_shapes
from hesitant.methods.random_state import derived_seed, random_state_kept, seed_all
from hesitant.methods.served import Served
from hesitant.methods.sngp import SNGP
from hesitant.methods.tempering import Tempered, at_temperature, tempered
from hesitant.methods.wrapper import Gathered, ModelWrapper, bind_forward, device_of, log_probs_of
from hesitant.mixture import Mixture
from hesitant.prediction import Prediction

_BATCHES_AT_ONCE = 16  # what every member is asked about before the next batches are read
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

    Args:
        members: The models, each a module of its own.
        vectorize: Whether ``hesitant.fit`` trains them, and ``predict`` asks plain ones, in one vectorised pass: None
            where that can be and pays, True wherever it can be, False nowhere. The answers are the same either way.
        temperature: What divides the logits of each member, beside its own, before the mean (see :class:`Tempered`).

    Attributes:
        members: The models.

    Raises:
        TypeError: A member is no ``torch.nn.Module``.
        ValueError: There is none, or one stands twice.
    """

    members: nn.ModuleList

    def __init__(
        self, members: Iterable[nn.Module], *, vectorize: bool | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if not isinstance(members, nn.ModuleList) and isinstance(members, nn.Module):
            raise TypeError(f"members is one {type(members).__name__}: expected models, DeepEnsemble([first, second]).")
        members = list(members)
        if not members:
            raise ValueError("members is empty: expected at least one model.")
        for position, member in enumerate(members):
            if not isinstance(member, nn.Module):
                raise TypeError(f"members[{position}] is a {type(member).__name__}: expected a torch.nn.Module.")
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
        bind_forward(self, members[0])

    @classmethod
    def from_builder(cls, build: Callable[[], nn.Module], num_members: int = 10, seed: int = 0) -> "DeepEnsemble":
        """Answers an ensemble of ``num_members`` models, each with the initialisation that the model gives itself.

        Args:
            build: Makes one model, its weights drawn as models draw them: from the global generators, which are seeded
                for each member and put back afterwards.
            num_members: How many.
            seed: Not negative; members follow from it one by one, so that the first of five are the first of ten.

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
        ensemble = cls(members)
        require_own_weights(members)
        return ensemble

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Binds ``forward`` anew, as a copy forgets its signature."""
        super().__setstate__(state)
        bind_forward(self, self.members[0])

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
        return self._call(args, kwargs, _Draws(0, 0, (), 0, self.temperature))

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], draws: "_Draws") -> Any:
        output: Any = None
        answers: list[Tensor] = []
        for index, member in enumerate(self.members):
            batch = map_tensors(Batch(args, kwargs).to(device_of(member)), Tensor.clone)  # a model may write to them
            of_member = draws._replace(member=(*draws.member, index))
            left = draws.temperature  # to be applied to the member's answer
            if isinstance(member, DeepEnsemble):
                answer, left = member._call(batch.args, batch.kwargs, of_member.within(member)), 1.0
            elif isinstance(member, MCDropout):
                seed = of_member.options_for(member, {})["seed"]
                answer, left = member.sampled(batch.args, batch.kwargs, seed=seed, beside=left), 1.0
            else:
                answer = member(*batch.args, **batch.kwargs)
            logits = logits_of(answer)
            if logits.ndim not in (1, 2):
                raise ValueError(
                    f"members[{len(answers)}] answers logits of shape {tuple(logits.shape)}: expected (B, C), or (B, 1)"
                    " or (B,) for a binary model."
                )
            output = answer if output is None else output
            answers.append(tempered(log_probs_of(logits), left).to(logits_of(output).device))
        require_same_shapes(answers)
        mean = torch.logsumexp(torch.stack(answers), 0) - math.log(len(answers))
        labels = kwargs.get("labels")
        return with_logits(output, mean, None if labels is None else labels.to(mean.device))

    def predict(
        self, inputs: Any, *, seed: int | None = None, batch_size: int = 1024, **member_options: Any
    ) -> Prediction:
        """Answers the Prediction for inputs of any length, in batches.

        Its ``class_std`` is the standard deviation over members, and over the samples of members that sample: total
        uncertainty is that of the mean, aleatoric the mean over members and samples, epistemic their difference. An
        ensemble of SNGPs also has ``logits`` and ``logit_variance``: the mean of the members' means, and the mean of
        their variances plus the variance of their means.

        Args:
            inputs: What the members take (a tensor, several, a dict of them), a Dataset or a DataLoader, read once.
                Targets come as the last entry of a tuple in a Dataset, or as ``labels`` in a dict. A few batches at a
                time are kept for all members to answer; all of them where a member shares its dropout masks.
            seed: Not negative; members that draw samples draw others than the next. None leaves it to them.
            batch_size: Inputs in one forward pass.
            member_options: Further options of the members' own ``predict``, such as ``posterior`` and ``num_samples``.

        Raises:
            ValueError: The inputs are empty, an option is out of its range, or the members' classes differ.
            TypeError: No member's ``predict`` has such an option, or the inputs are of an unknown type.
        """
        groups = self._groups(inputs, seed, batch_size, member_options)
        plain = self._plain_members()
        served = Served(self)
        answers = []
        for group, draws in groups:
            for batch in group:
                served.append(batch)
            answers.append(self._answer(group, draws, batch_size, member_options, plain))
        prediction = Prediction.cat(answers)
        return prediction.with_served(served.tensor(len(prediction)))

    def predict_samples(
        self, inputs: Any, *, seed: int | None = None, batch_size: int = 1024, **member_options: Any
    ) -> Tensor:
        """Answers the probabilities ``(M, N, C)`` of each member; the arguments are those of :meth:`predict`."""
        samples = Gathered()
        plain = self._plain_members()
        for group, draws in self._groups(inputs, seed, batch_size, member_options):
            if plain is not None:
                probs = tempered(plain.log_probs(group), draws.temperature).exp()
            else:
                predictions = self._answers(group, draws, batch_size, member_options)
                probs = torch.stack([prediction.probs for prediction in predictions])
            samples.append(probs.transpose(0, 1))  # (B, M, C)
        gathered = samples.tensor()
        assert gathered is not None
        return gathered.transpose(0, 1).contiguous()

    # ---------------------------------------------------------------- inside

    def _groups(
        self, inputs: Any, seed: int | None, batch_size: int, options: dict[str, Any]
    ) -> "Iterator[tuple[list[Batch], _Draws]]":
        """Gives some batches at a time, with what seeds the members' answers to them."""
        if seed is not None:
            _require_integer("seed", seed, 0)
        taken = _options_of(self)
        unknown = sorted(set(options) - taken)
        if unknown:
            raise TypeError(f"predict has no option {unknown}: its members take {sorted(taken) or 'none'}.")
        shared = any(isinstance(module, MCDropout) and module.masks == "shared" for module in self.modules())
        # Those who share masks must see all inputs in one call: they check that the masks fit each batch.
        groups = _grouped(batches(inputs, batch_size), None if shared else _BATCHES_AT_ONCE)
        mask_seed = secrets.randbits(63) if seed is None else int(seed)
        for position, group in enumerate(groups):
            yield group, _Draws(int(seed or 0), mask_seed, (), position, self.temperature)

    def _plain_members(self) -> PlainMembers | None:
        """Answers the members, if all of them are plain models."""
        methods = (ModelWrapper, DeepEnsemble)
        plain = all(type(member) is Deterministic or not isinstance(member, methods) for member in self.members)
        return PlainMembers(list(self.members), self.vectorize) if plain else None

    def _answer(
        self,
        group: Sequence[Batch],
        draws: "_Draws",
        batch_size: int,
        options: dict[str, Any],
        plain: PlainMembers | None,
    ) -> Prediction:
        """Answers the prediction of some batches."""
        if plain is None:
            return self._mixed(self._answers(group, draws, batch_size, options))
        targets = Gathered()
        for batch in group:
            targets.append(batch.targets)
        mixture = Mixture.of_passes(tempered(plain.log_probs(group), draws.temperature))
        return Prediction(
            mixture.probs,
            targets=targets.tensor(),
            log_probs=mixture.log_probs,
            expected_entropy=mixture.expected_entropy,
            class_std=mixture.class_std,
        )

    def _answers(
        self, group: Sequence[Batch], draws: "_Draws", batch_size: int, options: dict[str, Any]
    ) -> list[Prediction]:
        """Answers every member's prediction of some batches."""
        first_device = device_of(self.members[0])
        answers = []
        for index, member in enumerate(self.members):
            of_member = draws._replace(member=(*draws.member, index))
            if isinstance(member, DeepEnsemble):
                within = of_member.within(member)
                answer = member._answer(group, within, batch_size, options, member._plain_members())
            else:
                method: Any = member if isinstance(member, ModelWrapper) else Deterministic(member)
                own = {name: value for name, value in options.items() if name in _options_of(method)}
                inputs = (map_tensors(batch, Tensor.clone) for batch in group)  # a model may write to them
                with at_temperature(method, of_member.within(method).temperature):
                    answer = method.predict(inputs, batch_size=batch_size, **own, **of_member.options_for(method, own))
            answers.append(answer.to(first_device))
        require_same_shapes([answer.probs for answer in answers])
        return answers

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
        logits = variance = None
        if all("logit_variance" in prediction.available for prediction in predictions):
            means = torch.stack([prediction.logits for prediction in predictions])
            within = torch.stack([prediction.logit_variance for prediction in predictions]).mean(0)
            logits, variance = means.mean(0), within + means.var(0, correction=0)
        return Prediction(
            mixture.probs,
            targets=predictions[0].targets,
            log_probs=mixture.log_probs,
            logits=logits,
            logit_variance=variance,
            expected_entropy=mixture.expected_entropy if split else None,
            class_std=mixture.class_std if split else None,
            split_unavailable=None if split else _NO_SPLIT,
        )


class _Draws(NamedTuple):
    """What makes a member draw other samples than the next, and other ones for further batches.

    Attributes:
        seed: Of draws that agree from call to call where no seed is given.
        mask_seed: Of dropout masks, which then do not.
        member: Its place, and within an ensemble of ensembles the places on the way to it.
        position: Of the group of batches.
        temperature: Of the ensembles around the members, all of them.
    """

    seed: int
    mask_seed: int
    member: tuple[int, ...]
    position: int
    temperature: float

    def within(self, method: Tempered) -> "_Draws":
        """Answers the same with the temperature of what is within a member."""
        return self._replace(temperature=self.temperature * method.temperature)

    def options_for(self, method: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Answers the options of the method's ``predict`` that seed it."""
        if isinstance(method, MCDropout):
            place = self.member if method.masks == "shared" else (*self.member, self.position)
            return {"seed": derived_seed(self.mask_seed, *place)}
        if isinstance(method, SNGP) and given.get("posterior") == "monte_carlo" and given.get("generator") is None:
            seed = derived_seed(self.seed, *self.member, self.position)
            return {"generator": torch.Generator(device_of(method)).manual_seed(seed)}
        return {}


def _grouped(items: Iterable[Batch], size: int | None) -> Iterator[list[Batch]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
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
