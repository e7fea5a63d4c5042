"""SNGP: a distance-aware classifier from a single model and a single forward pass."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesitant.eager import run_eagerly
from hesitant.methods.batches import batches, logits_of, shared_batches
from hesitant.methods.classifier import find_classifier
from hesitant.methods.fingerprint import fingerprint
from hesitant.methods.picking import at_position, picked_position
from hesitant.methods.served import Served
from hesitant.methods.tempering import taken
from hesitant.methods.workers import raise_together, several_workers, share_weights
from hesitant.methods.wrapper import Gathered, ModelWrapper, evaluating, prediction_of
from hesitant.nn import CovarianceError, GaussianLogits, RandomFeatureGaussianProcess, SpectralNormalizer
from hesitant.nn.laplace import CovarianceState
from hesitant.nn.spectral_norm import ConvNorm
from hesitant.prediction import Prediction
from hesitant.simplex import two_class_logits

_FACTOR_KEY = "mean_field_factor"
_SAMPLES_AT_ONCE = 2**22  # numbers, 16 MiB in float32
_NO_SPLIT = (
    "the mean-field approximation answers with one distribution, which cannot be split: predict with"
    ' posterior="monte_carlo".'
)


class SNGP(ModelWrapper):
    r"""Takes a classifier over and makes it aware of the distance to its training data.

    The classifier (the model's last Linear) becomes a Gaussian process, :attr:`gp`; the weights of the layers before
    it are bounded in spectral norm while training, so that features keep distances. Train it as any model. Then
    :meth:`fit_covariance` makes one exact pass over the training data, after which ``softmax(model(x))`` in eval mode
    fades to the uniform distribution away from that data, and :meth:`predict` answers with everything else.

    The covariance belongs to the weights that it was fitted with. Once they move (a training step, weights loaded)
    :attr:`covariance_state` is ``"stale"``: eval mode gives plain logits and warns once, :meth:`predict` raises.

    Source: Liu et al., "Simple and Principled Uncertainty Estimation with Deterministic Deep Learning via Distance
    Awareness", NeurIPS 2020.

    Args:
        model: Any classifier whose logits come from a Linear. It is changed in place.
        classifier: Name of that Linear, where :func:`find_classifier` cannot tell.
        example_input: What the model is called with, to find the last Linear by running it.
        norm_bound: Bound on the norm of each layer before the classifier; None bounds nothing. The default, 6, is that
            of the published image models and leaves pretrained weights nearly as they are; residual blocks trained from
            scratch want 0.95 or less, as in the paper.
        conv_norm: See :class:`SpectralNormalizer`.
        generator: Draws the random features and the output weights.
        temperature: What divides the mean-field logits, and each draw, in eval mode (see :class:`Tempered`). The
            ``logits`` and the ``logit_variance`` of a prediction are those of the posterior, before it.
        gp_options: Options of :class:`RandomFeatureGaussianProcess`, such as ``num_inducing``, ``kernel_scale`` (here
            ``"median"`` unless given), ``ridge_penalty``, ``momentum``, ``mean_field_factor``.

    Raises:
        ValueError: The classifier cannot be told, or an option is out of its range.
    """

    fitted_fingerprint: Tensor
    _factor_before: tuple[float | None] | None = None  # the mean-field factor before a calibration

    def __init__(
        self,
        model: nn.Module,
        *,
        classifier: str | None = None,
        example_input: Any = None,
        norm_bound: float | None = 6.0,
        conv_norm: ConvNorm = "operator",
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        **gp_options: Any,
    ) -> None:
        self._refuse_wrapped(model)
        name = find_classifier(model, classifier, example_input)
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        gp = RandomFeatureGaussianProcess(
            linear.in_features, linear.out_features, generator=generator, **{"kernel_scale": "median", **gp_options}
        ).to(device=linear.weight.device, dtype=linear.weight.dtype)
        for alias in [
            path for path, module in model.named_modules(remove_duplicate=False) if module is linear and path
        ]:
            model.set_submodule(alias, gp)
        super().__init__(model if name else gp, temperature=temperature)
        self.classifier_name = name
        self.spectral_normalizer = (
            None if norm_bound is None else SpectralNormalizer(model, norm_bound, conv_norm=conv_norm)
        )
        self.register_buffer("fitted_fingerprint", torch.zeros((), dtype=torch.int64))
        self._suspicion = _Suspicion()
        self._had_gradients = False
        for module in self.modules():
            module.register_load_state_dict_post_hook(self._suspicion)
        self.register_load_state_dict_post_hook(_factor_what_was_loaded)
        # Sums over workers are made explicitly; a broadcast of rank 0's at every forward would be wrong and slow.
        self._ddp_params_and_buffers_to_ignore = [
            f"{self._laplace_prefix('model.')}{name}" for name, _ in gp.laplace.named_buffers()
        ]

    @property
    def gp(self) -> RandomFeatureGaussianProcess:
        """The Gaussian process that stands where the classifier was."""
        gp = self.model.get_submodule(self.classifier_name)
        assert isinstance(gp, RandomFeatureGaussianProcess)
        return gp

    @property
    def covariance_state(self) -> CovarianceState:
        """``"none"``, ``"fitted"``, or ``"stale"``: the weights have moved since, whatever moved them."""
        self._verify()
        return self.gp.covariance_state

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Answers the model's output: plain logits in training, mean-field logits in eval mode once fitted."""
        if self.training:
            self._suspicion.raised = True  # without gradients too: statistics move
            if self.spectral_normalizer is not None and torch.is_grad_enabled():
                self.spectral_normalizer.project()
        else:
            compiling = torch.compiler.is_compiling()
            suspect = self._suspicion.raised or (self._had_gradients and not compiling)
            if suspect and self.gp.covariance_state == "fitted":
                self._verify()
            if not compiling:
                # Fine-tuning runs in eval mode too: after a forward with gradients, a step may move the weights.
                self._had_gradients = torch.is_grad_enabled()
        return self._tempered(self.model(*args, **kwargs), kwargs)

    @property
    def uncalibrated_factor(self) -> float | None:
        """The mean-field factor that the model has, or had before it was calibrated."""
        return self.gp.mean_field_factor if self._factor_before is None else self._factor_before[0]

    def calibrate_factor(self, mean_field_factor: float | None) -> None:
        """Sets the mean-field factor until the calibration is forgotten; a state dict holds it till then.

        :func:`hesitant.evaluation.calibrate` does it; a factor set by hand, ``gp.mean_field_factor``, is an option of
        the model and in no state dict.
        """
        self._factor_before = (self.uncalibrated_factor,)
        self.gp.mean_field_factor = mean_field_factor

    def forget_calibration(self) -> None:
        """Sets the temperature to 1 and the mean-field factor to what it was before a calibration."""
        super().forget_calibration()
        self.gp.mean_field_factor, self._factor_before = self.uncalibrated_factor, None
        self._served = {reason: digests for reason, digests in self._served.items() if reason != "factor"}

    def regularization_loss(self) -> Tensor:
        """Answers the L2 penalty on the output weights, to be added to the training loss."""
        return self.gp.regularization_loss()

    def fit_covariance(self, data: Any, *, batch_size: int = 1024) -> None:
        """Fits the covariance to the training data: one exact pass, without gradients or dropout, from scratch.

        In a run of several workers all call this; each takes its share of the data with the weights of the first
        worker, and their sums are added up: the result is that of one worker.

        Args:
            data: A Dataset, a DataLoader, tensors or a dict of them, with or without targets.
            batch_size: Inputs in one forward pass, where the data has no batches of its own.

        Raises:
            CovarianceError: The layer keeps a running covariance (``momentum``).
            ValueError: The data is empty or holds NaN or Inf.
        """
        gp = self.gp
        if gp.laplace.momentum is not None:
            raise CovarianceError(
                f"fit_covariance: with momentum={gp.laplace.momentum} the covariance is kept while training. Make the"
                " model with momentum=None for an exact pass."
            )
        if self.spectral_normalizer is not None:
            self.spectral_normalizer.project(
                num_iterations=max(1, self.spectral_normalizer.warm_up_iterations), force=True
            )
        gp.reset_covariance()
        share_weights(self.model)
        failure: Exception | None = None
        try:
            try:
                self._sum_over(data, batch_size)
            except Exception as error:
                failure = error
            raise_together(failure, gp.laplace.data_precision.device)
        except BaseException:  # an interrupt too: half a sum is none
            gp.reset_covariance()
            raise
        if several_workers():
            gp.laplace.all_reduce()
        if gp.covariance_state == "none":
            raise ValueError("data holds no batch that reached the classifier: expected at least one input.")
        gp.factorize()
        self.fitted_fingerprint.fill_(self._fingerprint())
        self._suspicion.raised = False

    def predict(
        self,
        inputs: Any,
        *,
        posterior: Literal["mean_field", "monte_carlo"] = "mean_field",
        num_samples: int = 100,
        generator: torch.Generator | None = None,
        batch_size: int = 1024,
    ) -> Prediction:
        """Answers the Prediction for inputs of any length, in eval mode, in batches.

        Args:
            inputs: What the model takes (a tensor, several, a dict of them), a Dataset or a DataLoader. Targets come
                as the last entry of a tuple in a Dataset, or as ``labels`` in a dict.
            posterior: ``"mean_field"`` answers with the softmax of the mean-field logits; ``"monte_carlo"`` with the
                mean softmax of ``num_samples`` draws of the logits, which alone tells aleatoric from epistemic
                uncertainty.
            num_samples: Draws for an input, with ``"monte_carlo"``.
            generator: Draws them; None is one seeded with 0, so that two calls agree.
            batch_size: Inputs in one forward pass.

        Raises:
            CovarianceError: The covariance is not fitted, or stale.
            ValueError: An argument is out of its range, or the inputs are empty.
        """
        if posterior not in ("mean_field", "monte_carlo"):
            raise ValueError(f"posterior={posterior!r} is not known: expected 'mean_field' or 'monte_carlo'.")
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        self._verify()
        gp = self.gp
        gp.laplace.require_fitted("predict")
        kept: list[GaussianLogits] = []
        logits: list[Tensor] = []
        outputs, targets, means, variances = Gathered(), Gathered(), Gathered(), Gathered()
        served = Served(self)
        gp.posterior_hook = kept.append
        handle = gp.register_forward_hook(lambda _gp, _args, output: logits.append(output))
        try:
            with evaluating(self) as device:
                for batch in batches(inputs, batch_size):
                    kept.clear()
                    logits.clear()
                    served.append(batch)
                    batch = batch.to(device)
                    output = logits_of(self.model(*batch.args, **batch.kwargs))
                    gaussian = self._posterior_of(output, kept, logits)
                    outputs.append(output)
                    targets.append(batch.targets)
                    means.append(gaussian.mean)
                    variances.append(gaussian.variance)
        finally:
            gp.posterior_hook = None
            handle.remove()
        answers, mean, variance = outputs.tensor(), means.tensor(), variances.tensor()
        assert answers is not None
        assert mean is not None
        assert variance is not None
        if posterior == "monte_carlo":
            generator = generator or torch.Generator(device).manual_seed(0)
            gaussian = GaussianLogits(mean, variance)
            prediction = _sampled(gaussian, targets.tensor(), num_samples, generator, self.temperature)
        else:
            prediction = prediction_of(
                answers,
                targets.tensor(),
                temperature=self.temperature,
                mean_logits=mean,
                logit_variance=variance,
                split_unavailable=_NO_SPLIT,
            )
        return prediction.with_served(served.tensor(len(prediction)))

    # ---------------------------------------------------------------- inside

    def _sum_over(self, data: Any, batch_size: int) -> None:
        gp = self.gp
        with evaluating(self) as device:
            gp.training = True  # without gradients: plain logits, no warning, nothing marked
            if math.isnan(gp.kernel_scale) and several_workers():
                # The median is agreed on by all workers, and one of them may have no share of the data.
                first = next(batches(data, batch_size)).to(device)
                self.model(*first.args, **first.kwargs)
            passed: list[tuple[Tensor, Tensor]] = []
            handle = gp.register_forward_hook(lambda _gp, args, output: passed.append((args[0], output)))
            try:
                for batch in shared_batches(data, batch_size):
                    passed.clear()
                    batch = batch.to(device)
                    answer = self.model(*batch.args, **batch.kwargs)
                    for features, logits in passed:
                        try:
                            position = picked_position(logits, logits_of(answer))
                        except (TypeError, ValueError):  # whatever the model makes of them, all of them count
                            position = None
                        gp.update(at_position(features, position))
            finally:
                handle.remove()

    def _posterior_of(self, answer: Tensor, kept: list[GaussianLogits], logits: list[Tensor]) -> GaussianLogits:
        """Answers the Gaussian of the logits that the model answered with, in their shape."""
        if len(kept) != 1:
            raise ValueError(
                f"predict: the model ran its classifier {len(kept)} times in one forward pass: the variance of what it"
                " makes of that is not known. softmax(model(x)) is the predictive distribution all the same."
            )
        position = picked_position(logits[0], answer)
        mean, variance = (at_position(part, position) for part in (kept[0].mean, kept[0].variance))
        return GaussianLogits(mean.reshape(answer.shape), variance.reshape(answer.shape))

    @run_eagerly
    def _verify(self) -> None:
        """Marks the covariance stale if the weights are not, to the bit, those that it was fitted with."""
        gp = self.gp
        self._suspicion.raised = False
        exact = gp.covariance_state == "fitted" and gp.laplace.momentum is None
        if exact and int(self.fitted_fingerprint) != self._fingerprint():
            gp.laplace.mark_stale()

    def _fingerprint(self) -> int:
        return fingerprint(self.model, without=self._laplace_prefix())

    def _laplace_prefix(self, prefix: str = "") -> str:
        return f"{prefix}{self.classifier_name}.laplace." if self.classifier_name else f"{prefix}laplace."

    def _apply(self, fn: Any, recurse: bool = True) -> "SNGP":
        # A cast rounds the weights and is no training: what was fitted before it is fitted after it.
        held = self.covariance_state == "fitted"
        super()._apply(fn, recurse)
        if held and not self.fitted_fingerprint.is_meta:
            self.fitted_fingerprint.fill_(self._fingerprint())
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

    @staticmethod
    def _refuse_wrapped(model: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module.")
        for name, module in model.named_modules():
            if isinstance(module, RandomFeatureGaussianProcess):
                raise ValueError(f"model has a Gaussian process already, at {name!r}: wrap the plain model.")


class _Suspicion:
    """A load_state_dict hook on every module: whoever loads weights, wherever, the covariance is checked again.

    It knows no module: who copies a layer with its hooks, as dynamo does, would copy the whole model.
    """

    def __init__(self) -> None:
        self.raised = False

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.raised = True


def _factor_what_was_loaded(module: nn.Module, incompatible_keys: Any) -> None:
    if isinstance(module, SNGP) and module.covariance_state == "fitted":  # asked now: an export could not
        module.gp.factorize()


def _sampled(
    gaussian: GaussianLogits,
    targets: Tensor | None,
    num_samples: int,
    generator: torch.Generator,
    temperature: float,
) -> Prediction:
    """Answers the Prediction of ``num_samples`` draws of each input's logits, a few inputs at a time."""
    gaussian = GaussianLogits(two_class_logits(gaussian.mean), two_class_logits(gaussian.variance))
    rows = max(1, _SAMPLES_AT_ONCE // (num_samples * gaussian.mean.shape[1]))
    parts: list[Prediction] = []
    for start in range(0, len(gaussian.mean), rows):
        chosen = slice(start, start + rows)
        part = GaussianLogits(gaussian.mean[chosen], gaussian.variance[chosen])
        parts.append(
            Prediction.from_samples(
                torch.log_softmax(part.sample(num_samples, generator) / temperature, -1),  # (S, B, C)
                targets=None if targets is None else targets[chosen],
                logits=part.mean,
                logit_variance=part.variance,
                log=True,
            )
        )
    return Prediction.cat(parts)
