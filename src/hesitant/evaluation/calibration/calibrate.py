"""Calibration after training: a temperature for every method, and with it the mean-field factor of an SNGP."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from hesitant.detection import FeatureDetector
from hesitant.evaluation.calibration.components import Components, components_of
from hesitant.evaluation.calibration.given_logits import Given, calibrated, components_of_given
from hesitant.evaluation.calibration.likelihood import BOUNDS, Fit, Likelihood, fitted, likelihood
from hesitant.evaluation.calibration.sample import Held
from hesitant.inputs import Batch, as_class_targets, batches_in_order
from hesitant.methods import SNGP, DeepEnsemble, Tempered
from hesitant.prediction import Prediction

__all__ = ["MEAN_FIELD_FACTORS", "Calibration", "CalibrationWarning", "calibrate"]

MEAN_FIELD_FACTORS: Final = tuple(10 ** (third / 3) for third in range(-6, 7))  # .01, .022, .046, .1 ... 100
_SHARE = 0.02  # of what is known or not known of the targets, that a larger factor may cost

_IMPOSSIBLE = (
    "the model gives the probability 0 to {} of the targets, which no temperature changes: the NLL is infinite. Such a"
    " target was fitted as one of a probability that float32 can just not hold. If the model ends in a softmax that"
    " rounds, let it answer logits."
)


class CalibrationWarning(UserWarning):
    """The calibration data do not determine the temperature."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` set, and what it changed.

    Attributes:
        temperature: what divides the logits, in [1/100, 100].
        mean_field_factor: of the SNGP, or of the SNGPs in an ensemble; None where the method has none, or members keep
            different ones.
        nll_before: the negative log-likelihood of the calibration data as the model was, in nats.
        nll_after: as it is now: on new data it will be a little higher.
        num_inputs: how many inputs it was fitted to, and both likelihoods are of.
        num_available: how many inputs the data had; more than `num_inputs` where memory did not hold them all.
        bounded: whether there was no finite optimum, or none within the bounds.
    """

    temperature: float
    mean_field_factor: float | None
    nll_before: float
    nll_after: float
    num_inputs: int
    num_available: int
    bounded: bool

    def prediction(self, given: Prediction | Tensor | np.ndarray, targets: Any = None) -> Prediction:
        """The calibrated Prediction of other logits ``(B, C)`` of the model that it was fitted to, or of a Prediction.

        It is `softmax(logits / (T sqrt(1 + factor * variance)))`, with the factor where the Prediction has variances.
        For methods of hesitant nothing is to be done: they answer so by themselves.

        Args:
            given: What `calibrate` was given, of other inputs.
            targets: `(B,)`, where they are known; those of a Prediction stay.

        Raises:
            ValueError: A logit is not finite, or a shape is wrong.
        """
        return calibrated(given, self.temperature, self.mean_field_factor, targets)

    def __repr__(self) -> str:
        """The temperature, the factor, the NLL before and after, and on how many inputs."""
        parts = [f"temperature {self.temperature:.4g}{' (not determined by the data)' if self.bounded else ''}"]
        if self.mean_field_factor is not None:
            parts.append(f"mean-field factor {self.mean_field_factor:.4g}")
        of_all = "" if self.num_inputs == self.num_available else f" of {self.num_available:,}"
        parts.append(f"NLL {self.nll_before:.4g} -> {self.nll_after:.4g} on {self.num_inputs:,}{of_all} inputs")
        return f"Calibration({', '.join(parts)})"


def calibrate(
    model: Tempered | FeatureDetector | Given,
    data: Any = None,
    *,
    mean_field_factors: Sequence[float] = MEAN_FIELD_FACTORS,
    batch_size: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Sets the temperature of a trained method, and an SNGP's mean-field factor with it, by data of their own.

    The temperature is that of least negative log-likelihood, found to nine digits: of the mean of the tempered dropout
    passes or members where there are several. It lies in [1/100, 100]. It changes no label of a method with one
    distribution an input, and belongs to the weights that it was fitted with: `fit` sets it to 1 again, and a state
    dict carries it. Nothing notices a training loop of your own: calibrate again after it.

    **The factor.** An SNGP divides its logits by `T sqrt(1 + factor * variance)`. What the factor is for, less
    certainty far from the training data, no in-domain input shows: by NLL alone it falls to the least there is, or T to
    its bound, which destroys the distance awareness. So T is fitted for each factor of a ladder, and the *largest*
    factor is taken whose NLL exceeds the least by no more than the largest of three tolerances:

    - one standard error of the difference, input by input (the one-standard-error rule of Breiman et al. 1984): the
      data cannot tell the two apart;
    - 2 % of the least NLL: they can, but it is not worth having. With many inputs the standard error falls to nothing,
      and a difference of no consequence would decide; a share does not depend on how many inputs there are;
    - 1 / N: a likelihood that is e times as large is "not worth more than a bare mention" (Kass and Raftery 1995, table
      of section 3.2). Where the least NLL is next to 0, all inputs being easy, its share and its standard error are
      nothing, and would take SNGP's caution for a loss.

    Where the targets are hardly predictable the NLL is large and 2 % of it may be all that the model knows, so the last
    two are also at most 2 % of that: of the entropy of the targets' frequencies less the NLL. So what is lost at most
    is known, 2 % of the NLL or less than the data can see. Out-of-domain data have no part in it. The ladder ends at
    100: where `factor * variance` is far above 1 only `T sqrt(factor)` counts. It begins at .01 and not at 0, at which
    SNGP would be switched off: at .01 the answer is nearly that of 0 where the variance is at most 1, as with scaled
    features it is. With `posterior="monte_carlo"` the same temperature divides the draws. In an ensemble of SNGPs all
    members get one factor.

    Where each input is classified rightly (by some pass or member) there is no finite optimum: the likelihood rises as
    long as T falls. Then it warns, and takes the T at which the mean confidence is `(N + 1) / (N + 2)`, what N inputs
    without an error support (Laplace's rule of succession; less what members disagree by at T = 0), or 1 if that is
    lower: such data are no reason to soften.

    **Memory.** What the model answers is held, 512 MiB of it at most: `S * C` numbers an input, of S passes or members
    over C classes (for an SNGP twice as many). Where that is not enough for all inputs, a uniform random sample without
    replacement is held: of 100 passes over 1,000 classes, 1,342 inputs. All that is said and decided is then of the
    sample, which `num_inputs` and `num_available` tell, and what is not in it is hardly asked of the model: of N inputs
    about `K (1 + log(N / K))` for a sample of K. Beside that the model is asked for at most 2**24 numbers at a time, or
    those of one input (a batch whose arguments are not all tensors with an entry an input is asked whole), and the
    search takes about 6 MiB, or 40 bytes for each number of one input where that is more.

    **Other frameworks.** ``calibrate(logits, targets)`` and ``calibrate(prediction)`` do the same for what a model of
    any framework has answered, the factor with it where a Prediction has variances of its logits. Nothing is changed
    then: ``calibration.prediction(logits)`` applies what was found.

    Args:
        model: A trained method, or a `FeatureDetector`, whose method is meant; it is changed in place. Its mode,
            weights, buffers and the global random state are not. Or logits ``(B, C)``, a tensor or an array; or a
            `Prediction` with targets.
        data: In-domain inputs with targets, apart from those trained on: a Dataset, a DataLoader, or a tuple of
            tensors, the targets last, as for `fit`. Of logits the targets ``(B,)``; of a Prediction nothing.
        mean_field_factors: The ladder: these factors and no other, such as `(30.0,)`; `()` keeps the model's own, and
            fits the temperature alone.
        batch_size: Inputs in one forward pass; None leaves it to hesitant.
        seed: Of dropout masks, and of the sample.

    Returns:
        What was set, and the NLL before and after.

    Raises:
        TypeError: `model` is none of hesitant's methods, or the data are of an unknown type.
        ValueError: The data are empty, have no targets, targets of one class alone or ones that are no class; a logit
            is not finite; or a factor is negative or not finite.
        CovarianceError: The covariance of an SNGP is not fitted, or stale.

    Warns:
        CalibrationWarning: There is no optimum within the bounds, or a target has the probability 0.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML; of the third tolerance Kass and Raftery
    1995, "Bayes Factors", JASA 90.
    """
    if isinstance(model, FeatureDetector):
        model = model.method
    method: Tempered | None = None
    if isinstance(model, Tempered):
        method = model
    elif not isinstance(model, (Prediction, Tensor, np.ndarray)):
        raise TypeError(f"model is a {type(model).__name__}: expected a method, such as hesitant.Deterministic(model).")
    for candidate in mean_field_factors:
        if not 0 <= candidate < math.inf:
            raise ValueError(f"mean_field_factors holds {candidate!r}: expected finite numbers of at least 0.")
    held = _held(model, data, batch_size, seed) if isinstance(model, Tempered) else _held_of_given(model, data, seed)
    before = _nll(held, likelihood(held, 1.0 if method is None else method.temperature, None))
    processes = [] if method is None else _processes(method)
    with_factor = bool(processes) or (method is None and next(iter(held)).variance is not None)
    ladder: list[float | None] = [*sorted(set(map(float, mean_field_factors)))] if with_factor else []
    factor, fit = _chosen(held, ladder or [None])
    after = fit.likelihood
    if method is not None:
        method.temperature = after.temperature
    if factor is not None:
        for process in processes:
            process.calibrate_factor(factor)
    if held.num_impossible:
        warnings.warn(_IMPOSSIBLE.format(held.num_impossible), CalibrationWarning, stacklevel=2)
    elif fit.bounded:
        warnings.warn(_reason(fit, held), CalibrationWarning, stacklevel=2)
    if factor is None:
        factor = _common(processes)
    return Calibration(
        after.temperature, factor, before, _nll(held, after), held.num_inputs, held.num_available, fit.bounded
    )


def _processes(method: nn.Module) -> list[SNGP]:
    """Answers the SNGPs whose factor can be fitted: the method, or its members; within another method it stays."""
    if isinstance(method, DeepEnsemble):
        return [process for member in method.members for process in _processes(member)]
    return [method] if isinstance(method, SNGP) else []


def _nll(held: Held, found: Likelihood) -> float:
    return math.inf if held.num_impossible else found.mean


def _held(model: Tempered, data: Any, batch_size: int | None, seed: int) -> Held:
    """Answers the components of the data, or of a sample of them."""

    def ask(batch: Batch, position: int) -> Components:
        return components_of(model, batch, seed=seed, position=position)

    held = Held(seed)
    held.gather(
        (replace(batch, targets=as_class_targets(batch.targets)) for batch in batches_in_order(data, batch_size)), ask
    )
    return _required(held)


def _held_of_given(given: Given, targets: Any, seed: int) -> Held:
    held = Held(seed)
    held.append(components_of_given(given, targets))
    return _required(held)


def _required(held: Held) -> Held:
    if held.num_inputs == 0:
        raise ValueError("data is empty: expected at least one input.")
    if held.only_class is not None:
        raise ValueError(
            f"data has targets of one class alone, {held.only_class}: expected inputs of several, as they come in use."
        )
    return held


def _chosen(held: Held, ladder: Sequence[float | None]) -> tuple[float | None, Fit]:
    """Answers the largest factor of an ascending ladder that costs next to nothing, with its temperature.

    None stands for the factors that the model has.
    """
    rungs: list[tuple[float | None, Fit]] = []
    start = 1.0
    for factor in ladder:
        fit = fitted(held, factor, start, first=not rungs)
        start = fit.likelihood.temperature  # the next one's is near
        rungs.append((factor, fit))
    best = min((fit.likelihood for _, fit in rungs), key=lambda each: each.mean)
    known = max(_entropy_of_targets(held) - best.mean, 0.0)
    share = min(max(_SHARE * best.mean, 1 / held.num_inputs), _SHARE * known)
    allowed = []
    for rung in rungs:
        excess = rung[1].likelihood.losses - best.losses
        error = float(excess.std(correction=0)) / math.sqrt(len(excess))
        if float(excess.mean()) <= max(error, share):
            allowed.append(rung)
    return allowed[-1]


def _entropy_of_targets(held: Held) -> float:
    """Answers the NLL of who knows how frequent the classes are, and nothing else, in nats."""
    targets = torch.cat([part.targets for part in held if part.targets is not None])
    shares = targets.bincount().double() / len(targets)
    return float(-torch.xlogy(shares, shares).sum())


def _common(processes: list[SNGP]) -> float | None:
    factors = {process.gp.mean_field_factor for process in processes}
    return factors.pop() if len(factors) == 1 else None


def _reason(fit: Fit, held: Held) -> str:
    temperature = fit.likelihood.temperature
    if fit.separated:
        several = ", by one member or pass at least" if held.several else ""
        return (
            f"each of the {held.num_inputs} calibration inputs is classified rightly{several}: no temperature is the"
            f" best, for a lower one always fits better. It is set to {temperature:.4g}, no sharper than so many inputs"
            " without an error support; more data, with errors among them, would determine it."
        )
    if any(math.isclose(temperature, bound) for bound in BOUNDS):
        return (
            f"the best temperature lies beyond {temperature:g}, the bound that it is set to: look whether the targets"
            " are those of these inputs, and how large the logits are."
        )
    return "the calibration data are fitted alike at every temperature: it is set to 1."
