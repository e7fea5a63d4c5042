"""The strongest detectors of the literature, on the features or logits of any method, from the same forward pass."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from hesitant.detection.gaussian_distances import MahalanobisDistance, RelativeMahalanobisDistance
from hesitant.detection.kept_neighbors import NeighborDistance
from hesitant.detection.of_pytorch_ood import (
    ClassDensities,
    LinearHead,
    ScaledEnergy,
    VirtualLogit,
    energy,
    gen,
    max_logit,
    max_softmax,
)
from hesitant.inputs import batches
from hesitant.methods import (
    DeepEnsemble,
    Deterministic,
    FeatureSource,
    Gathered,
    Loaded,
    ModelWrapper,
    SavedDetector,
    SavedModelError,
    calibration_digest,
    load_with_detector,
    naming,
)
from hesitant.nn import UniformSample
from hesitant.prediction import Prediction, UnavailableError, in_parts

__all__ = ["DETECTORS", "DetectorError", "DetectorName", "FeatureDetector"]

DetectorName = Literal[
    "knn",
    "mahalanobis",
    "relative_mahalanobis",
    "ddu",
    "vim",
    "scale",
    "energy",
    "gen",
    "max_logit",
    "max_softmax",
]
DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)


class _Scorer(Protocol):
    """What scores features."""

    max_inputs: int | None  # of which it keeps features; None needs all of them at once

    def fit(self, features: Tensor, targets: Any) -> None: ...

    def fitted(self) -> dict[str, Tensor]: ...

    def take_fitted(self, tensors: Mapping[str, Tensor], width: int) -> None: ...

    def score(self, features: Tensor) -> Tensor: ...


_OF_FEATURES: dict[str, Callable[..., _Scorer]] = {
    "knn": NeighborDistance,
    "mahalanobis": MahalanobisDistance,
    "relative_mahalanobis": RelativeMahalanobisDistance,
    "ddu": ClassDensities,
    "vim": VirtualLogit,
    "scale": ScaledEnergy,
}
_OF_LOGITS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "energy": energy,
    "gen": gen,
    "max_logit": max_logit,
    "max_softmax": max_softmax,
}
_BY_CLASS = ("mahalanobis", "relative_mahalanobis", "ddu")
_BY_HEAD = ("vim", "scale")
_UNFITTED = (*_OF_LOGITS, "scale")  # there is nothing to fit


class DetectorError(RuntimeError):
    """A detector is not fitted, or the weights have moved since it was."""


@dataclass(frozen=True)
class _Fit:
    scorer: _Scorer
    mark: int  # of the weights
    num_inputs: int


class FeatureDetector:
    r"""A method, and a detector of the literature on what its network sees: ``prediction.ood_score`` is the detector's.

    Everything else of the Prediction is the method's own, of the same forward pass. It stands wherever a method does:
    in ``compare`` and ``report``, before a ``DeferralPolicy`` whose guard ranks by ``"ood_score"``, in ``calibrate``,
    which changes the method's probabilities and never the score.

    ======================== ============================================================== =========== ==============
    detector                 score; higher is further                                       fitted to   options
    ======================== ============================================================== =========== ==============
    ``knn``                  distance to the k-th nearest training input, of length 1 both  features    k, max_inputs
    ``mahalanobis``          distance to the nearest class mean, one covariance             and classes
    ``relative_mahalanobis`` that, less the distance to all data                            and classes
    ``ddu``                  negative log density, a Gaussian for each class                and classes
    ``vim``                  what lies outside the principal subspace, and the energy       features    d
    ``scale``                energy of the logits of features made larger                   nothing     percentile
    ``energy``               ``-log sum_c exp f_c``                                         nothing
    ``gen``                  ``mean_c (p_c (1 - p_c))^gamma`` of the M largest              nothing     gamma, M
    ``max_logit``            ``-max_c f_c``                                                 nothing
    ``max_softmax``          ``-max_c p_c``                                                 nothing
    ======================== ============================================================== =========== ==============

    **Features** are what the classifier is given, ``(B, D)``: for SNGP the inputs of its Gaussian process, for MC
    dropout those of its model in eval mode. An ensemble has none of its own, and ``vim`` and ``scale`` need a Linear
    classifier, which SNGP has not. **Logits** are ``prediction.logits``, before any temperature: for SNGP the posterior
    mean, for MC dropout and an ensemble the mean over passes or members. Of a model that ends in a log-softmax the
    energy is 0 everywhere.

    A fit belongs to the weights that it was made with: once they move, :meth:`predict` raises. It is in no state dict;
    :meth:`save_pretrained` saves it with the method. While fitting, features of all training inputs are held,
    ``4 N D`` bytes; ``knn`` keeps a uniform sample of ``max_inputs``. Any number of threads may predict.

    ``vim``, ``scale``, ``ddu`` and those of logits are the package pytorch-ood's (``pip install
    'hesitant[detection]'``). The other three are our own, and agree with the package: its kNN takes all cores and keeps
    all inputs on the CPU, and its Mahalanobis distances are rounding errors where features do not span their space.

    Example:
        >>> import torch
        >>> from hesitant.detection import FeatureDetector
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x = torch.randn(100, 2)
        >>> detector = FeatureDetector(model, "knn").fit(x)
        >>> bool((detector.predict(x).ood_score < 1e-6).all())  # these were seen
        True

    Args:
        model: A method, or a plain model, which becomes a :class:`~hesitant.Deterministic`. Nothing of it is changed.
        detector: One of :data:`DETECTORS`.
        classifier: Name of the Linear that makes the logits, where it cannot be told otherwise.
        example_input: What the model is called with, to find that Linear by running it.
        options: Of the detector: ``k`` (1) and ``max_inputs`` (50,000) of knn; ``d`` of vim, the dimension of the
            subspace (by the width of the features: 1,000 from 2,048 on, 512 from 768 on, else half of it);
            ``percentile`` (.65) of scale; ``gamma`` (.1) and ``M`` (all) of gen.

    Attributes:
        method: That answers.
        detector: The name.
        options: All of the detector's, the defaults too.

    Raises:
        ImportError: The detector is pytorch-ood's, which is not installed.
        TypeError: There is no such option, or the features asked for are an ensemble's.
        ValueError: The name or an option is not known, or the classifier cannot be told or is not Linear.
    """

    def __init__(
        self,
        model: nn.Module,
        detector: DetectorName = "knn",
        *,
        classifier: str | None = None,
        example_input: Any = None,
        **options: Any,
    ) -> None:
        if detector not in DETECTORS:
            raise ValueError(f"detector={detector!r} is not known: expected one of {', '.join(map(repr, DETECTORS))}.")
        self.method: Any = model if isinstance(model, (ModelWrapper, DeepEnsemble)) else Deterministic(model)
        self.detector: DetectorName = detector
        self.options = _with_defaults(detector, options)
        self._source: FeatureSource | None = None
        self._fit: _Fit | None = None
        if detector in _OF_LOGITS:
            _OF_LOGITS[detector](**self.options)  # here, to refuse what it refuses
            return
        self._source = FeatureSource(self.method, classifier, example_input)
        if detector in _BY_HEAD and self._source.head is None:
            others = ", ".join(repr(name) for name in DETECTORS if name not in _BY_HEAD)
            raise ValueError(
                f"{detector!r} takes the weights of a Linear classifier, and an SNGP's logits are no linear function of"
                f" its features: take one of {others}."
            )
        self._made()

    def fit(self, data: Any, *, batch_size: int | None = None, seed: int = 0) -> "FeatureDetector":
        """Fits the detector to training data, in one pass in eval mode, and answers itself.

        What looks at nothing but an input's own logits has nothing to be fitted, and is ready without.

        Args:
            data: As for :func:`hesitant.fit`; with targets for ``mahalanobis``, ``relative_mahalanobis`` and ``ddu``.
            batch_size: Inputs in one forward pass; None chooses by their size.
            seed: Of the sample that ``knn`` keeps of more than ``max_inputs`` inputs.

        Raises:
            ValueError: There are no targets and the detector needs them, the features are not ``(B, D)`` or hold NaN or
                Inf, or the data are empty or too few.
        """
        if self._source is None or self.detector in _UNFITTED:
            return self
        mark = self._source.mark()  # before the pass: whoever moves the weights meanwhile is found out
        scorer = self._made()
        features, targets, num_inputs = self._gathered(self._source, scorer, data, batch_size, seed)
        scorer.fit(features, targets)
        self._fit = _Fit(scorer, mark, num_inputs)
        return self

    def predict(
        self, inputs: Any, *, seed: int = 0, batch_size: int | None = None, **method_options: Any
    ) -> Prediction:
        """Answers the method's Prediction, its ``ood_score`` the detector's.

        Args:
            inputs: A tensor, a list or a dict of several, ``(inputs, targets)``, a Dataset, a DataLoader, a list of
                examples (see :func:`hesitant.inputs.understood`).
            seed: Of what the method draws, not negative.
            batch_size: Inputs in one forward pass; None chooses by their size.
            method_options: Further options of the method's own ``predict``, such as ``posterior``.

        Raises:
            DetectorError: The detector is not fitted, or the weights have moved since.
            UnavailableError: The detector looks at logits, and the method has none.
            TypeError: The method's ``predict`` has no such option.
            ValueError: A score is not finite, the detector cannot score such features, or as the method's ``predict``.
        """
        method = self.method
        _require_options(method, method_options)
        given, temperature = batches(inputs, batch_size), method.temperature
        if self._source is None:
            prediction = method.answer(given, temperature=temperature, seed=seed, **method_options)
            scores = self._of_logits(prediction)
        else:
            scorer, gathered = self._ready(self._source), Gathered()
            prediction = self._source.answer(
                given,
                lambda features: gathered.append(scorer.score(_wide(features))),
                temperature=temperature,
                seed=seed,
                **method_options,
            )
            found = gathered.tensor()
            assert found is not None
            scores = found.to(prediction.probs.device)
        digest = calibration_digest(
            method, **method_options, detector=self.detector, detector_options=sorted(self.options.items())
        )
        answer: Prediction = prediction.with_ood_score(scores).with_calibration(digest)
        return answer

    def save_pretrained(self, folder: str | Path, **saving: Any) -> None:
        """Saves the method and what the detector was fitted to be in a folder, from which a Scorer answers, too.

        Args:
            folder: It is made if need be; a model that it holds is replaced.
            saving: Arguments of the method's ``save_pretrained``, such as ``policy``.

        Raises:
            DetectorError: The detector is not fitted, or the weights have moved since.
            TypeError: The detector is ``ddu``, of which pytorch-ood does not tell what it was fitted to be; or as the
                method's ``save_pretrained``.
            ValueError: As the method's ``save_pretrained``, like OSError and ImportError.
        """
        source = self._source
        tensors = {} if source is None else self._ready(source).fitted()
        says = {
            "name": self.detector,
            "options": self.options,
            "classifier": None if source is None else source.classifier,
            "num_inputs": None if self._fit is None else self._fit.num_inputs,
        }
        self.method.save_with_detector(folder, SavedDetector(says, tensors), **saving)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        model: nn.Module | Sequence[nn.Module] | None = None,
        trust: str | Collection[str] = (),
        device: torch.device | str | None = None,
    ) -> "FeatureDetector":
        """Answers the detector, around its method, that :meth:`save_pretrained` saved in a folder; no code is executed.

        Args:
            folder: That ``save_pretrained`` wrote.
            model: As for :func:`hesitant.load`, like ``trust`` and ``device``.
            trust: Likewise.
            device: Likewise.

        Raises:
            SavedModelError: The folder holds no detector, or as :func:`hesitant.load`.
            ImportError: A package is not installed.
        """
        method, saved = load_with_detector(folder, None, model=model, trust=trust, device=device)
        if saved is None:
            raise SavedModelError(
                f"{folder} holds a {type(method).__name__} and no detector: load it by hesitant.load."
            )
        with naming(f"{Path(folder) / 'config.json'}: its detector is none", "save it again."):
            return cls._saved_around(method, saved)

    def __repr__(self) -> str:
        """The method, the detector, its options, and what it was fitted to."""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        state = "" if self.detector in _UNFITTED else "; not fitted"
        if self._fit is not None:
            state = f"; fitted to {self._fit.num_inputs:,} inputs"
        return f"FeatureDetector({type(self.method).__name__}, {self.detector!r}{options}{state})"

    # ---------------------------------------------------------------- inside

    @classmethod
    def _saved_around(cls, method: Loaded, saved: SavedDetector) -> "FeatureDetector":
        name, options, classifier, num_inputs = (
            saved.says[key] for key in ("name", "options", "classifier", "num_inputs")
        )
        if options.keys() != _with_defaults(name, {}).keys():
            raise ValueError(f"{name!r} has no options {sorted(options)}")
        detector = cls(method, name, classifier=classifier, **options)
        if detector._source is None or name in _UNFITTED:
            return detector
        if type(num_inputs) is not int or num_inputs < 1:
            raise ValueError(f"it was fitted to {num_inputs!r} inputs")
        scorer = detector._made()
        scorer.take_fitted(saved.tensors, detector._source.width)
        detector._fit = _Fit(scorer, detector._source.mark(), num_inputs)
        return detector

    def _made(self) -> _Scorer:
        make = _OF_FEATURES[self.detector]
        if self.detector not in _BY_HEAD:
            return make(**self.options)
        assert self._source is not None
        head = self._source.head
        assert head is not None
        return make(LinearHead(head.weight, head.bias), **self.options)

    def _gathered(
        self, source: FeatureSource, scorer: _Scorer, data: Any, batch_size: int | None, seed: int
    ) -> tuple[Tensor, Tensor | None, int]:
        """Answers the features ``(n, D)`` that the scorer needs, with targets where it needs them, and N."""
        by_class = self.detector in _BY_CLASS
        sample = None if scorer.max_inputs is None else UniformSample(scorer.max_inputs, seed)
        features, targets, num_inputs = Gathered(), Gathered(), 0
        for rows, classes in source.features(data, batch_size):
            if not bool(torch.isfinite(rows).all()):
                raise ValueError(
                    f"features of inputs {num_inputs} to {num_inputs + len(rows) - 1} hold NaN or Inf: look for the"
                    " input or weight that made them."
                )
            num_inputs += len(rows)
            if sample is not None:
                sample.add(_wide(rows))
                continue
            features.append(_wide(rows))
            if by_class:
                targets.append(self._required(classes))
        found = features.tensor() if sample is None else sample.kept()[0]
        assert found is not None
        return found, targets.tensor(), num_inputs

    def _required(self, classes: Tensor | None) -> Tensor:
        if classes is None:
            raise ValueError(
                f"data has no targets, and {self.detector!r} fits the classes: give (inputs, targets), or detect by"
                " 'knn'."
            )
        if bool((classes < 0).any()):
            raise ValueError(f"targets hold {int(classes.min())}: expected class indices 0, 1, ...")
        return classes

    def _ready(self, source: FeatureSource) -> _Scorer:
        if self.detector in _UNFITTED:
            return self._made()
        fit = self._fit
        if fit is None:
            raise DetectorError(
                f"predict: the detector {self.detector!r} is not fitted. Call fit(training_data) first."
            )
        if source.has_moved(fit.mark):
            raise DetectorError(
                f"predict: the weights have moved since the detector {self.detector!r} was fitted. Call"
                " fit(training_data) again."
            )
        return fit.scorer

    def _of_logits(self, prediction: Prediction) -> Tensor:
        score = _OF_LOGITS[self.detector](**self.options)
        try:
            return in_parts(prediction, lambda part: score(_evidence(part.logits)))
        except UnavailableError as error:
            raise UnavailableError(
                f"{self.detector!r} looks at logits: {error} Detect by features, such as 'knn' or"
                " 'relative_mahalanobis'."
            ) from error


def _with_defaults(detector: str, options: dict[str, Any]) -> dict[str, Any]:
    make = _OF_LOGITS[detector] if detector in _OF_LOGITS else _OF_FEATURES[detector]
    parameters = inspect.signature(make).parameters.values()
    known = {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"the detector {detector!r} has no option {unknown}: it takes {sorted(known) or 'none'}.")
    return {**known, **options}


def _require_options(method: Any, options: dict[str, Any]) -> None:
    parameters = inspect.signature(method.predict).parameters
    several = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())  # it checks them itself
    unknown = sorted(set(options) - set(parameters))
    if unknown and not several:
        own = sorted(set(parameters) - {"inputs", "seed", "batch_size"})
        raise TypeError(f"predict of {type(method).__name__} has no option {unknown}: it takes {own or 'none'}.")


def _wide(features: Tensor) -> Tensor:
    return features.float() if features.dtype.itemsize < 4 else features


def _evidence(logits: Tensor) -> Tensor:
    """Answers logits ``(b, C)`` float64; of a single one, ``[0, z]``, ``[-z/2, z/2]``: which is 0 is a convention."""
    wide = logits.double()
    if wide.shape[1] != 2:
        return wide
    return torch.where(wide[:, :1] == 0, wide - wide.mean(1, keepdim=True), wide)
