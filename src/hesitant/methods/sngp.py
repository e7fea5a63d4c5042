"""SNGP: a distance-aware classifier from a single model and a single forward pass."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch, batches
from hesitant.methods.calibration_digest import calibration_digest
from hesitant.methods.gaussian_head import (
    FittedWeights,
    OodScore,
    ReplacedClassifier,
    complete_options,
    find_classifier,
    fit_by_a_pass,
    gathered_answers,
    gaussian_process_in,
    laplace_prefix,
    monte_carlo,
    neighbors_for,
    prepare_for_sums,
    stated_options,
    training_output,
)
from hesitant.methods.outputs import Outputs, require_kind
from hesitant.methods.random_state import require_seed
from hesitant.methods.saving import Head
from hesitant.methods.temperature import taken
from hesitant.methods.wrapper import ModelWrapper, prediction_of
from hesitant.nn import (
    BoundTable,
    ConvNorm,
    CovarianceError,
    CovarianceState,
    LayerSelection,
    NormBound,
    RandomFeatureGaussianProcess,
    SpectralNormalizer,
    exporting,
    recorded,
    run_eagerly,
)
from hesitant.prediction import Prediction, evidence_of

_GP_OPTIONS = {"kernel_scale": "running_median", "random_features": "orthogonal", "parametrization": "linear"}
_WIDE = 1024  # inputs beyond which so many random features span too little of what a Linear could answer
_FACTOR_KEY = "mean_field_factor"
_SUSPICIOUS = (
    "export: the covariance may be stale, for something may have moved the weights since it was fitted. Ask for"
    " model.covariance_state, or call fit_covariance(data), and export then."
)
_NO_SPLIT = (
    "the mean-field approximation answers with one distribution, which cannot be split: predict with"
    ' posterior="monte_carlo".'
)


class SNGP(ModelWrapper):
    r"""Takes a classifier over and makes it aware of the distance to its training data.

    The classifier (the Linear that makes the logits) becomes a Gaussian process, :attr:`gp`; the weights of the layers
    before it are bounded in spectral norm while training, so that features keep distances. Train it as any model. Then
    :meth:`fit_covariance` makes one exact pass over the training data, after which ``softmax(model(x))`` in eval mode
    fades to the uniform distribution away from that data, and :meth:`predict` answers with everything else.

    The covariance belongs to the weights that it was fitted with. Once they move (a training step, weights loaded)
    :attr:`covariance_state` is ``"stale"``: eval mode gives plain logits and warns once, :meth:`predict` raises.

    Source: Liu et al., "Simple and Principled Uncertainty Estimation with Deterministic Deep Learning via Distance
    Awareness", NeurIPS 2020.

    Example:
        >>> import torch
        >>> from hesitant import SNGP
        >>> from torch import nn
        >>> x = torch.randn(100, 2)
        >>> model = SNGP(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)))
        >>> model.fit_covariance(x)  # after training
        >>> near, far = model.predict(x), model.predict(x + 100)
        >>> bool(far.logit_variance.mean() > near.logit_variance.mean())
        True

    Args:
        model: Any classifier whose logits come from a Linear. It is changed in place.
        classifier: Name of that Linear, where it cannot be told otherwise.
        example_input: What the model is called with, to find the Linear that makes the logits by running it.
        norm_bound: Bound on the norm of each layer before the classifier. By default, ``"initial"``, it is the larger
            of 6, that of the published image models, and the norm that the layer came with: pretrained weights stay as
            they are until they are trained. A number is kept strictly, and shrinks what exceeds it before the first
            training step; residual blocks trained from scratch want 0.95 or less, as in the paper. None bounds nothing.
        only: The layers to bound, by name, pattern or predicate; ``"pooler"`` is what the paper bounds of BERT, by
            0.95. See :class:`~hesitant.nn.SpectralNormalizer`.
        exclude: The layers to leave as they are, told likewise.
        conv_norm: See :class:`~hesitant.nn.SpectralNormalizer`.
        generator: Draws the random features and the output weights.
        temperature: What divides the mean-field logits, and each draw, in eval mode (see :attr:`temperature`). The
            ``logits`` and the ``logit_variance`` of a prediction are those of the posterior, before it.
        outputs: ``"probabilities"`` for a model that ends in a softmax or a sigmoid, else ``"logits"``.
        ood_score: What ``prediction.ood_score`` is: ``"logits"``, how near the mean-field ones are to preferring no
            class, or ``"knn"``, the distance to the nearest training input (:class:`~hesitant.nn.NearestNeighbors`):
            :meth:`fit_covariance` keeps the features of at most 50,000 inputs, a uniform sample, and a state dict holds
            them.
        gp_options: Options of :class:`~hesitant.nn.RandomFeatureGaussianProcess`, such as ``ridge_penalty``,
            ``momentum``, ``mean_field_factor``. Unless given, ``num_inducing`` is 1,024, or 2,048 for over 1,024
            features, ``kernel_scale`` ``"running_median"``, ``random_features`` ``"orthogonal"``, and
            ``parametrization`` ``"linear"``.

    Raises:
        ValueError: The classifier cannot be told, or an option is out of its range.
    """

    _factor_before: tuple[float | None] | None = None  # the mean-field factor before a calibration

    def __init__(
        self,
        model: nn.Module,
        *,
        classifier: str | None = None,
        example_input: Any = None,
        norm_bound: NormBound | None = "initial",
        only: LayerSelection | None = None,
        exclude: LayerSelection = (),
        conv_norm: ConvNorm = "operator",
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        outputs: Outputs = "logits",
        ood_score: OodScore = "logits",
        **gp_options: Any,
    ) -> None:
        if norm_bound is None and (only is not None or exclude):
            raise ValueError("only and exclude choose the layers to bound, and norm_bound=None bounds none.")
        name = find_classifier(model, classifier, example_input)
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        num_inducing = 2048 if linear.in_features > _WIDE else 1024
        options = {"num_inducing": num_inducing, **_GP_OPTIONS, **gp_options}
        self._gp_options = complete_options(options)
        gp = RandomFeatureGaussianProcess(linear.in_features, linear.out_features, generator=generator, **options).to(
            device=linear.weight.device, dtype=linear.weight.dtype
        )
        for alias in [
            path for path, module in model.named_modules(remove_duplicate=False) if module is linear and path
        ]:
            model.set_submodule(alias, gp)
        super().__init__(model if name else gp, temperature=temperature, outputs=outputs)
        self.classifier_name = name
        self._replaced = ReplacedClassifier(linear)
        self.ood_score, self.neighbors = ood_score, neighbors_for(ood_score, gp)
        self.fitted_weights = FittedWeights()
        # Last: its state grows with the layers that it has met, and timm's averages pair state dicts by their order.
        self.spectral_normalizer = (
            None
            if norm_bound is None
            else SpectralNormalizer(model, norm_bound, conv_norm=conv_norm, only=only, exclude=exclude)
        )
        self.fitted_weights.look_at_what_is_loaded(self)
        self.register_load_state_dict_post_hook(_factor_what_was_loaded)
        # Sums over workers are made explicitly; a broadcast of rank 0's at every forward would be wrong and slow.
        self._ddp_params_and_buffers_to_ignore = [
            *(f"model.{self._laplace_prefix()}{n}" for n, _ in gp.laplace.named_buffers() if n != "directions"),
            "neighbors.inputs",
        ]

    @property
    def gp(self) -> RandomFeatureGaussianProcess:
        """The Gaussian process that stands where the classifier was, wherever adapters have put it since."""
        return self._place[1]

    @property
    def _place(self) -> tuple[str, RandomFeatureGaussianProcess]:
        """The path of the Gaussian process within the model, and itself."""
        return gaussian_process_in(self.model, self.classifier_name)

    @property
    def covariance_state(self) -> CovarianceState:
        """``"none"``, ``"fitted"``, or ``"stale"``: the weights have moved since, whatever moved them."""
        self._verify()
        return self.gp.covariance_state

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float) -> Any:
        """Answers the model's output: plain logits in training, mean-field logits in eval mode once fitted."""
        if not self.training:
            if not torch.compiler.is_compiling():
                self._verify()
            elif self.fitted_weights.watch.raised and self.gp.laplace.state == "fitted":
                if exporting():
                    raise CovarianceError(_SUSPICIOUS)
                self._verify()
            return self.tempered_output(self._apart(args, kwargs), kwargs, temperature)
        if self.spectral_normalizer is None or not torch.is_grad_enabled():
            return training_output(self.model, self.gp, args, kwargs)
        self.spectral_normalizer.project()
        output = training_output(self.model, self.gp, args, kwargs)
        self.spectral_normalizer.measure()  # before a step moves the weights of convolutions that were met just now
        return output

    def _apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answers what the model answers; who records the calls of another model, around this one, is given none."""
        if torch.compiler.is_compiling():
            return self.model(*args, **kwargs)
        with recorded():
            return self.model(*args, **kwargs)

    def calibration_state(self) -> tuple[Any, ...]:
        """Answers what tells this method's scores from those of another."""
        return *super().calibration_state(), self.outputs, self.gp.mean_field_factor, self.ood_score

    @property
    def uncalibrated_factor(self) -> float | None:
        """The mean-field factor that the model has, or had before it was calibrated."""
        return self.gp.mean_field_factor if self._factor_before is None else self._factor_before[0]

    def calibrate_factor(self, mean_field_factor: float | None) -> None:
        """Sets the mean-field factor until the calibration is forgotten; a state dict holds it till then.

        :func:`hesitant.calibrate` does it; a factor set by hand, ``gp.mean_field_factor``, is an option of
        the model and in no state dict.
        """
        self._factor_before = (self.uncalibrated_factor,)
        self.gp.mean_field_factor = mean_field_factor

    def forget_calibration(self) -> None:
        """Sets the temperature to 1 and the mean-field factor to what it was before a calibration."""
        super().forget_calibration()
        self.gp.mean_field_factor, self._factor_before = self.uncalibrated_factor, None

    def saved_options(self) -> dict[str, Any]:
        """Answers the options of the constructor, as JSON, with which the method is made again."""
        options = stated_options(self._gp_options, self.gp, self.spectral_normalizer)
        own = {"classifier": self.classifier_name, "ood_score": self.ood_score}
        return {**own, **super().saved_options(), **options, "mean_field_factor": self.uncalibrated_factor}

    def saved_head(self) -> Head:
        """Answers the classifier in whose place the Gaussian process stands."""
        gp = self.gp
        paths = [path for path, module in self.model.named_modules(remove_duplicate=False) if module is gp]
        return Head(self.classifier_name, gp.in_features, gp.out_features, tuple(paths))

    def saved_extras(self) -> dict[str, Tensor]:
        """Answers the weights of the classifier that the Gaussian process may still start from."""
        return self._replaced.tensors(self.gp)

    def take_saved_extras(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`saved_extras` answered."""
        self._replaced.take(tensors)

    def bounds(self) -> BoundTable:
        """Answers a table of the layers before the classifier: name, operator norm (sigma), and bound or why none.

        The norm of a convolution depends on the size of its input, and is known after a first forward.
        """
        return BoundTable() if self.spectral_normalizer is None else self.spectral_normalizer.bounds()

    def regularization_loss(self) -> Tensor:
        """Answers the L2 penalty on the output weights, to be added to a loss of one's own; the model's own has it."""
        return self.gp.regularization_loss()

    def start_from_classifier(self, data: Any, *, batch_size: int | None = None, seed: int = 0) -> bool:
        """Lets a Gaussian process that is still as it was drawn answer what the classifier that it replaced would.

        Its output weights are set by least squares on up to ``4 M`` training inputs: a trained model that was wrapped
        answers nearly as it did, without a step. Where there are targets to tell that the classifier is no better than
        the uniform distribution, it was not trained, and is forgotten. :func:`hesitant.fit` and :meth:`fit_covariance`
        do this by themselves.

        Args:
            data: As for :func:`hesitant.fit`.
            batch_size: Inputs in one forward pass, where the data has no batches of its own.
            seed: Of their order.

        Returns:
            Whether the Gaussian process was as it was drawn, and now answers so.
        """
        return self._replaced.start(self.model, self.gp, data, self.outputs, batch_size, seed)

    def fit_covariance(
        self, data: Any, *, batch_size: int | None = None, num_inputs: int | None = None, seed: int = 0
    ) -> None:
        """Fits the covariance to the training data: one exact pass, without gradients or dropout, from scratch.

        The pass runs apart: until it is done, and if it fails, the covariance is what it was. In a run of several
        workers all call this; each takes its share of the data with the weights of the first worker, and their sums are
        added up: the result is that of one worker.

        Args:
            data: As for :func:`hesitant.fit`, with or without targets.
            batch_size: Inputs in one forward pass, where the data has no batches of its own; None chooses by their
                size.
            num_inputs: How many stand for all of them, a uniform sample whose sum is scaled to the full number: for
                evaluations in the middle of training. A few times ``num_inducing``: fewer leave directions that the
                data does inform as wide as the prior. None is all, the exact pass.
            seed: Of that choice.

        Raises:
            CovarianceError: The layer keeps a running covariance (``momentum``).
            ValueError: The data is empty or holds NaN or Inf, or has no length to choose from.
        """
        fit_by_a_pass(self, data, batch_size, num_inputs, seed)

    def prepare_covariance(self, data: Any, *, batch_size: int | None = None) -> None:
        """Makes the weights ready for :class:`~hesitant.CovarianceSums`, which leave them as they are.

        What :meth:`fit_covariance` does first: layers are brought within their bounds, a classifier that was wrapped
        and not trained is taken over, and a kernel scale that is not decided yet is decided, by a sample of the
        training data. In a run of several workers all call this, and have the weights of the first afterwards.

        Args:
            data: As for :meth:`fit_covariance`; some of it suffices.
            batch_size: As for :meth:`fit_covariance`.

        Raises:
            ValueError: The data is empty or holds NaN or Inf.
        """
        prepare_for_sums(self, data, batch_size)

    def predict(
        self,
        inputs: Any,
        *,
        posterior: Literal["mean_field", "monte_carlo"] = "mean_field",
        num_samples: int = 100,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Prediction:
        """Answers the Prediction for inputs of any length, in eval mode, in batches.

        Args:
            inputs: A tensor, a list or a dict of several, ``(inputs, targets)``, a Dataset, a DataLoader, a list of
                examples (see :func:`hesitant.inputs.understood`).
            posterior: ``"mean_field"`` answers with the softmax of the mean-field logits; ``"monte_carlo"`` with the
                mean softmax of ``num_samples`` draws of the logits, which alone tells aleatoric from epistemic
                uncertainty.
            num_samples: Draws for an input, with ``"monte_carlo"``.
            seed: Of the draws, not negative.
            batch_size: Inputs in one forward pass; None chooses by their size.

        Raises:
            CovarianceError: The covariance is not fitted, or stale.
            ValueError: An argument is out of its range, the inputs are empty, or the model makes something else of its
                classifier's logits than what a variance can be carried through.
        """
        answer = self.answer(
            batches(inputs, batch_size),
            temperature=self.temperature,
            seed=seed,
            posterior=posterior,
            num_samples=num_samples,
        )
        options: dict[str, Any] = {} if posterior == "mean_field" else {"num_samples": num_samples}
        return answer.with_calibration(calibration_digest(self, posterior=posterior, **options))

    def answer(
        self,
        given: Iterable[Batch],
        *,
        temperature: float,
        seed: int,
        posterior: Literal["mean_field", "monte_carlo"] = "mean_field",
        num_samples: int = 100,
        listener: Callable[[Tensor], None] | None = None,
    ) -> Prediction:
        """Answers the Prediction for batches, at a temperature in place of the method's own.

        A listener is told the features ``(B, D)`` of each batch.
        """
        if posterior not in ("mean_field", "monte_carlo"):
            raise ValueError(f"posterior={posterior!r} is not known: expected 'mean_field' or 'monte_carlo'.")
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        require_seed(seed)
        self._verify()
        self.gp.laplace.require_fitted("predict")
        self.gp.factorize()  # here, for a replica would keep the factor to itself
        answers, gaussian, targets, distances = gathered_answers(self, given, self.neighbors, listener)
        require_kind(answers, self.outputs, self.model)
        factor = self.gp.mean_field_factor
        mean_field = answers if self.outputs == "logits" else gaussian.mean_field_logits(factor)
        # At the temperature, which is fitted with the factor: it undoes on the data what the factor shrinks.
        evidence = evidence_of(mean_field.to(gaussian.mean.dtype) / temperature)
        if posterior == "monte_carlo":
            generator = torch.Generator(answers.device).manual_seed(seed)
            drawn = monte_carlo(gaussian, targets, num_samples, generator, temperature, evidence)
            return drawn.with_ood_score(distances)
        answer = prediction_of(
            answers,
            self.outputs,
            targets,
            temperature=temperature,
            mean_logits=gaussian.mean,
            evidence=evidence,
            logit_variance=gaussian.variance,
            split_unavailable=_NO_SPLIT,
        )
        return answer.with_ood_score(distances)

    # ---------------------------------------------------------------- inside

    @run_eagerly
    def _verify(self) -> None:
        """Marks the covariance stale if the weights are not, to the bit, those that it was fitted with."""
        self.fitted_weights.settle(self.model, self.gp.laplace, self._laplace_prefix())

    def _laplace_prefix(self) -> str:
        return laplace_prefix(self.model, self.classifier_name)

    def _apply(self, fn: Any, recurse: bool = True) -> "SNGP":
        # A cast rounds the weights and is no training: what was fitted before it is fitted after it.
        held = self.covariance_state == "fitted"
        super()._apply(fn, recurse)
        if held and not self.fitted_weights.fingerprint.is_meta:
            self.fitted_weights.note(self.model, self._laplace_prefix())
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._factor_before is not None:
            factor = self.gp.mean_field_factor
            destination[prefix + _FACTOR_KEY] = torch.tensor(-1.0 if factor is None else factor, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        factor = taken(state_dict, prefix + _FACTOR_KEY, args)
        if factor is not None:
            self.calibrate_factor(factor if factor >= 0 else None)


def _factor_what_was_loaded(module: nn.Module, incompatible_keys: Any) -> None:
    if isinstance(module, SNGP) and module.covariance_state == "fitted":  # asked now: an export could not
        module.gp.factorize()
