"""What every method answers with: one predictive distribution an input, and the uncertainties that follow from it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesitant.prediction.arguments import as_finite, as_floating, as_part, as_rows
from hesitant.prediction.distributions import (
    as_class_indices,
    as_distributions,
    as_log_probs,
    entropy,
    exact_log,
    sharpened,
    two_class_logits,
)
from hesitant.prediction.evidence import energy_of, evidence_of, uniformity
from hesitant.prediction.joining import require_alike
from hesitant.prediction.mixture import Mixture
from hesitant.prediction.table import as_frame
from hesitant.prediction.unavailable import UnavailableError, reason_for

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True, init=False, eq=False, repr=False)
class Prediction:
    """The predictive distribution of `B` inputs over `C` classes, and what is uncertain about it.

    Immutable: no attribute can be set, and every operation answers a new Prediction. The tensors are detached but not
    copied, so do not write to them. Half precision becomes float32, its rows divided by their sums; float64 stays. Two
    predictions are equal only if they are the same object. Entropies are in nats.

    Example:
        >>> from hesitant import Prediction
        >>> prediction = Prediction([[0.7, 0.3], [0.4, 0.6]], targets=[0, 0])
        >>> prediction
        Prediction(2 inputs, 2 classes, accuracy 0.500, mean confidence 0.650)
        >>> prediction[prediction.confidence > 0.65].labels
        tensor([0])

    Args:
        probs: `(B, C)` floating, `C >= 2`, each row a distribution: in [0, 1] and summing to 1 within 1e-4 for float32
            and float64, 2e-3 for float16, 1.6e-2 for bfloat16. `B = 0` is allowed: it is what a mask that accepts
            nothing leaves.
        targets: `(B,)` integers in [0, C), the truth; kept as int64.
        log_probs: `(B, C)` log of `probs`, where it is known more exactly than `probs` can hold; otherwise computed.
        logits: `(B, C)`; for SNGP the posterior mean, so that `softmax(logits)` need not be `probs`.
        evidence: `(B, C)`, the logits that `energy` and `ood_score` look at, where they are not `logits`.
        ood_score: `(B,)`, what a detector says, higher of what is further from the training data.
        logit_variance: `(B, C)`, not negative.
        expected_entropy: `(B,)`, the mean entropy of the samples whose mean is `probs`.
        class_std: `(B, C)`, not negative, the population standard deviation of `probs` over samples or members.
        split_unavailable: why there is no `expected_entropy`, and what to do; ends the error of who asks for it.
        calibration: of the method and its calibration that made it, 16 hexadecimal digits.

    Attributes:
        probs, targets: as given; `targets` is None where the truth is not known.
        calibration: a digest of the method and its calibration (temperatures, mean-field factors, passes), by which a
            `DeferralPolicy` tells whether a prediction was made as those that it was calibrated on; None for one that
            was made by hand, or of several.
        log_probs: `(B, C)`, at most 0; where a confidence rounds to 1, `log(1 - rest)`, which keeps the order.

    Raises:
        TypeError: a tensor has the wrong kind of numbers.
        ValueError: a shape, a range or a row sum is wrong, or two arguments contradict each other.
    """

    probs: Tensor
    log_probs: Tensor
    targets: Tensor | None
    calibration: str | None
    _logits: Tensor | None
    _evidence: Tensor | None
    _ood_score: Tensor | None
    _logit_variance: Tensor | None
    _expected_entropy: Tensor | None
    _class_std: Tensor | None
    _split_unavailable: str | None

    def __init__(
        self,
        probs: "Tensor | ArrayLike",
        *,
        targets: "Tensor | ArrayLike | None" = None,
        log_probs: Tensor | None = None,
        logits: Tensor | None = None,
        evidence: Tensor | None = None,
        ood_score: Tensor | None = None,
        logit_variance: Tensor | None = None,
        expected_entropy: Tensor | None = None,
        class_std: Tensor | None = None,
        split_unavailable: str | None = None,
        calibration: str | None = None,
    ) -> None:
        rows = as_distributions("probs", probs)
        if rows.dim() != 2:
            raise ValueError(f"probs has shape {tuple(rows.shape)}, expected (B, C): for (S, B, C) use from_samples")
        per_class = rows.shape
        filled(
            self,
            probs=rows,
            log_probs=exact_log(rows) if log_probs is None else as_log_probs("log_probs", log_probs, rows),
            targets=None if targets is None else as_class_indices("targets", targets, rows),
            calibration=calibration,
            _logits=as_part("logits", logits, per_class, like=rows),
            _evidence=as_part("evidence", evidence, per_class, like=rows),
            _ood_score=as_part("ood_score", ood_score, per_class[:1], like=rows.new_empty(0, dtype=torch.float64)),
            _logit_variance=as_part("logit_variance", logit_variance, per_class, like=rows, minimum=0.0),
            _expected_entropy=as_part("expected_entropy", expected_entropy, per_class[:1], like=rows, minimum=0.0),
            _class_std=as_part("class_std", class_std, per_class, like=rows, minimum=0.0),
            _split_unavailable=split_unavailable,
        )
        if self._expected_entropy is not None:
            excess = self._expected_entropy - self.predictive_entropy
            if bool((excess > 1e-3).any()):
                row = int(excess.argmax())
                raise ValueError(
                    f"expected_entropy[{row}] is {self._expected_entropy[row]:.6g}, above the predictive entropy "
                    f"{self.predictive_entropy[row]:.6g} of probs[{row}]: it cannot belong to samples whose mean is "
                    "probs. Make both from the same samples: Prediction.from_samples(samples)"
                )

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        *,
        targets: "Tensor | ArrayLike | None" = None,
        mean_logits: Tensor | None = None,
        evidence: Tensor | None = None,
        logit_variance: Tensor | None = None,
        split_unavailable: str | None = None,
    ) -> "Prediction":
        """The prediction `softmax(logits)`, or for a single logit the binary `[1 - sigmoid(z), sigmoid(z)]`.

        A single logit `z` is the two logits `[0, z]`, with the variances `[0, variance]`.

        Args:
            logits: `(B, C)`, or `(B, 1)` or `(B,)` for a binary model; finite.
            targets: `(B,)` integers in [0, C).
            mean_logits: what `prediction.logits` answers, where that is not `logits`: the posterior mean, when `logits`
                have been scaled by the mean-field approximation. Same shape as `logits`.
            evidence: `(B, C)`, what `prediction.evidence` answers, where it is not `logits`, divided by a temperature.
            logit_variance: variance of the logits, of the same shape as `logits`.
            split_unavailable: as in `Prediction`.

        Raises:
            TypeError: `logits` are not floating.
            ValueError: a shape is wrong, or a number is not finite.
        """
        logits = as_floating("logits", logits)
        if logits.dim() not in (1, 2) or (logits.dim() == 2 and logits.shape[1] == 0):
            raise ValueError(
                f"logits has shape {tuple(logits.shape)}, expected (B, C), or (B, 1) or (B,) for a binary model: pass "
                "one row of logits an input"
            )
        shape = logits.shape
        logits = as_finite("logits", logits, shape, like=logits)
        if evidence is None and (mean_logits is not None or shape[1:] in ((), (1,))):
            evidence = evidence_of(logits)
        logits = two_class_logits(logits)
        mean_logits = as_part("mean_logits", mean_logits, shape, like=logits)
        logit_variance = as_part("logit_variance", logit_variance, shape, like=logits, minimum=0.0)
        # Not through __init__: what is made of finite logits need not be looked at again.
        probs = torch.softmax(logits, dim=-1)
        return filled(
            object.__new__(cls),
            probs=probs,
            log_probs=sharpened(torch.log_softmax(logits, dim=-1)),
            targets=None if targets is None else as_class_indices("targets", targets, probs),
            calibration=None,
            _logits=logits if mean_logits is None else two_class_logits(mean_logits),
            _evidence=as_part("evidence", evidence, probs.shape, like=probs),
            _ood_score=None,
            _logit_variance=None if logit_variance is None else two_class_logits(logit_variance),
            _expected_entropy=None,
            _class_std=None,
            _split_unavailable=split_unavailable,
        )

    @classmethod
    def from_samples(
        cls,
        samples: Tensor,
        *,
        targets: "Tensor | ArrayLike | None" = None,
        logits: Tensor | None = None,
        evidence: Tensor | None = None,
        logit_variance: Tensor | None = None,
        log: bool = False,
    ) -> "Prediction":
        r"""The mean of `S` distributions (dropout passes, members, draws), with its aleatoric and epistemic parts.

        `probs = mean_s p_s`, `expected_entropy = mean_s H(p_s)`, `class_std` the population standard deviation over `s`
        (divided by `S`), `log_probs = logsumexp_s(log p_s) - log S`. Temporary memory is bounded, whatever `B`.

        Args:
            samples: `(S, B, C)` probabilities, `S >= 1`, each row a distribution as in `Prediction`.
            targets: `(B,)` integers in [0, C).
            logits: `(B, C)`, what `prediction.logits` answers.
            evidence: `(B, C)`, what `prediction.evidence` answers, where that is not `logits`.
            logit_variance: `(B, C)`, what `prediction.logit_variance` answers.
            log: `samples` are log-probabilities, which keeps what a probability rounds to 0 or 1.

        Raises:
            TypeError: `samples` are not floating.
            ValueError: the shape is wrong, or a row is not a distribution.
        """
        mixture = Mixture.of(samples, log=log)
        return cls(
            mixture.probs,
            targets=targets,
            log_probs=mixture.log_probs,
            logits=logits,
            evidence=evidence,
            logit_variance=logit_variance,
            expected_entropy=mixture.expected_entropy,
            class_std=mixture.class_std,
        )

    @property
    def labels(self) -> Tensor:
        """`(B,)` int64: the most probable class, the first of them in a tie."""
        return self.probs.argmax(dim=-1)

    @property
    def confidence(self) -> Tensor:
        """`(B,)` in [1/C, 1]: the probability of `labels`."""
        return self.probs.amax(dim=-1)

    @property
    def predictive_entropy(self) -> Tensor:
        """`(B,)` in [0, log C]: the total uncertainty, `H(p) = -sum_c p_c log p_c` with `0 log 0 = 0`, in nats."""
        return entropy(self.probs, self.log_probs)

    @property
    def expected_entropy(self) -> Tensor:
        """`(B,)` in [0, predictive_entropy]: the aleatoric uncertainty, `mean_s H(p_s)`, in nats.

        Raises:
            UnavailableError: the prediction was not made from samples or members.
        """
        # The clamp stands here, for a sum over a slice may round differently from the sum over the whole.
        return torch.minimum(self._given("expected_entropy"), self.predictive_entropy)

    @property
    def mutual_information(self) -> Tensor:
        """`(B,)` in [0, log C]: the epistemic uncertainty, `predictive_entropy - expected_entropy`, in nats.

        The mutual information between the class and the model (Houlsby et al. 2011, https://arxiv.org/abs/1112.5745).

        Raises:
            UnavailableError: the prediction was not made from samples or members.
        """
        total = self.predictive_entropy
        return total - torch.minimum(self._given("expected_entropy", asked="mutual_information"), total)

    @property
    def predictive_variance(self) -> Tensor:
        """`(B,)` in [0, 1 - 1/C]: `sum_c p_c (1 - p_c)`, the variance of the one-hot class."""
        return (self.probs * -torch.expm1(self.log_probs)).sum(dim=-1)  # 1 - p, also where p rounds to 1

    @property
    def class_std(self) -> Tensor:
        """`(B, C)` in [0, 1/2]: the population standard deviation of each probability over samples or members.

        Raises:
            UnavailableError: the prediction was not made from samples or members.
        """
        return self._given("class_std")

    @property
    def logits(self) -> Tensor:
        """`(B, C)`: the logits before any temperature; a single-logit model `z` has `[0, z]`.

        For SNGP the posterior mean, for MC dropout and an ensemble the mean over passes or members.

        Raises:
            UnavailableError: the prediction was made from probabilities.
        """
        return self._given("logits")

    @property
    def evidence(self) -> Tensor:
        """`(B, C)`: the logits `f` that `energy` and `ood_score` look at.

        `logits`, but for SNGP the mean-field logits at their temperature, and of a single logit `z` `[-z/2, z/2]`.

        Raises:
            UnavailableError: the prediction was made from probabilities.
        """
        return self._given("logits", asked="evidence") if self._evidence is None else self._evidence

    @property
    def energy(self) -> Tensor:
        """`(B,)`: `-log sum_c exp f_c`, of the logits `f` of `evidence` (Liu et al. 2020).

        Raises:
            UnavailableError: as `evidence`.
        """
        return energy_of(self.evidence)

    @property
    def ood_score(self) -> Tensor:
        """`(B,)` float64: how little an input is like the training data; higher means less.

        What a detector gave; else, where there are logits, `exp(-KL(uniform || softmax f))` in [0, 1] of `evidence`
        (the module `hesitant.prediction.evidence` says why); else the `predictive_entropy`.
        """
        if self._ood_score is not None:
            return self._ood_score
        if self._evidence is None and self._logits is None:
            return self.predictive_entropy.double()
        return uniformity(self.evidence)

    @property
    def logit_variance(self) -> Tensor:
        """`(B, C)`, not negative: the posterior variance of the logits, which grows with the distance from the data.

        Raises:
            UnavailableError: the method has no distribution over logits.
        """
        return self._given("logit_variance")

    @property
    def available(self) -> tuple[str, ...]:
        """The names of the fields that this prediction has, as `numpy` answers with them."""
        names = ["probs", "log_probs", "labels", "confidence", "predictive_entropy", "predictive_variance", "ood_score"]
        names += ["energy", "evidence"] * (self._evidence is not None or self._logits is not None)
        names += ["expected_entropy", "mutual_information"] * (self._expected_entropy is not None)
        given = ("_class_std", "_logits", "_logit_variance", "targets")
        return (*names, *(name.lstrip("_") for name in given if getattr(self, name) is not None))

    def with_targets(self, targets: "Tensor | ArrayLike") -> "Prediction":
        """The same prediction with `targets`, `(B,)` integers in [0, C), in place of those that it has.

        Raises:
            TypeError: `targets` are not integers.
            ValueError: their number differs from that of the inputs, or one is outside the classes.
        """
        return self._replace(targets=as_class_indices("targets", targets, self.probs))

    def with_calibration(self, calibration: str | None) -> "Prediction":
        """The same prediction as made by the method whose digest this is."""
        return self._replace(calibration=calibration)

    def with_ood_score(self, ood_score: Tensor | None) -> "Prediction":
        """The same prediction with a detector's `ood_score` `(B,)`, floating and finite; None leaves the default.

        Raises:
            ValueError: its number differs from that of the inputs, or one is not finite.
        """
        like = self.probs.new_empty(0, dtype=torch.float64)
        return self._replace(_ood_score=as_part("ood_score", ood_score, self.probs.shape[:1], like=like))

    def to(self, device: torch.device | str) -> "Prediction":
        """The same prediction on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def __len__(self) -> int:
        """`B`, the number of inputs."""
        return self.probs.shape[0]

    def __getitem__(self, index: "int | slice | Tensor | ArrayLike") -> "Prediction":
        """The chosen inputs: an integer (a Prediction of length 1), a slice, a `(B,)` boolean mask, or 1-D integers.

        Raises:
            IndexError: out of range, or not of one dimension, or a mask whose length is not `B`.
        """
        rows = as_rows(index, len(self), self.probs.device)
        return self._map(lambda tensor: tensor[rows])

    @classmethod
    def cat(cls, predictions: "Iterable[Prediction]") -> "Prediction":
        """One prediction of all the inputs of `predictions`, in their order.

        Its `calibration` is that of all, or None where they differ.

        Raises:
            ValueError: there is none, their classes or devices differ, or some have a field that others lack.
        """
        predictions = list(predictions)
        if not predictions:
            raise ValueError("predictions is empty, expected at least one Prediction to concatenate")
        require_alike(
            [f"{each.probs.shape[1]} classes on {each.probs.device}" for each in predictions],
            [[name for name in _TENSORS if getattr(each, name) is not None] for each in predictions],
        )
        first = predictions[0]
        present = [name for name in _TENSORS if getattr(first, name) is not None]
        joined = {name: torch.cat([getattr(p, name) for p in predictions]) for name in present}
        calibrations = {p.calibration for p in predictions}
        return first._replace(**joined, calibration=calibrations.pop() if len(calibrations) == 1 else None)

    def numpy(self) -> "dict[str, np.ndarray[Any, Any]]":
        """Every field that is `available`, by name, copied to NumPy arrays."""
        return {name: getattr(self, name).cpu().numpy().copy() for name in self.available}

    def to_pandas(self) -> "pandas.DataFrame":
        """A `pandas.DataFrame` with a row an input.

        Columns: `label`, `confidence`, the uncertainties, `target` where known, then `probs_0`, `probs_1`,
        ... and likewise `class_std_0`, `logits_0`, `evidence_0`, `logit_variance_0` where available.

        Raises:
            ImportError: pandas is not installed.
        """
        return as_frame(self.numpy())

    def __repr__(self) -> str:
        """Size, accuracy and mean confidence."""
        parts = [f"{len(self)} input{'' if len(self) == 1 else 's'}", f"{self.probs.shape[1]} classes"]
        if len(self) > 0:
            if self.targets is not None:
                parts.append(f"accuracy {(self.labels == self.targets).double().mean().item():.3f}")
            parts.append(f"mean confidence {self.confidence.mean().item():.3f}")
        if self.probs.device.type != "cpu":
            parts.append(str(self.probs.device))
        return f"Prediction({', '.join(parts)})"

    def _given(self, name: str, *, asked: str | None = None) -> Tensor:
        tensor: Tensor | None = getattr(self, f"_{name}")
        if tensor is None:
            raise UnavailableError(f"{asked or name} is not available: {reason_for(name, self._split_unavailable)}")
        return tensor

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Prediction":
        return self._replace(**{name: function(t) for name in _TENSORS if (t := getattr(self, name)) is not None})

    def _replace(self, **changes: Tensor | str | None) -> "Prediction":
        # Not through __init__: rows that have been checked once need not be checked again.
        values = {name: getattr(self, name) for name in (*_TENSORS, "calibration", "_split_unavailable")} | changes
        return filled(object.__new__(Prediction), **values)


_TENSORS = tuple(field.name for field in fields(Prediction) if field.name not in ("calibration", "_split_unavailable"))


def filled(prediction: Prediction, **values: Tensor | str | None) -> Prediction:
    """`prediction` with these values, of all its fields, whatever they are."""
    for name, value in values.items():
        object.__setattr__(prediction, name, value)
    return prediction
