"""A Gaussian-process output layer: random Fourier features with a Laplace posterior over their weights."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from hesitant.nn.class_factor import ClassFactor
from hesitant.nn.compilation import exporting, run_eagerly
from hesitant.nn.fit_validity import FitValidity
from hesitant.nn.gaussian_logits import GaussianLogits
from hesitant.nn.laplace import CovarianceFit, CovarianceState, LaplaceCovariance, described, unfitted_error
from hesitant.nn.likelihood import MEAN_FIELD, Likelihood
from hesitant.nn.posterior_factor import CovarianceError, PosteriorFactor
from hesitant.nn.random_feature_layer import Parametrization, RandomFeatureLayer
from hesitant.nn.random_features import RandomFeatureKind
from hesitant.nn.recording import current_recording


class RandomFeatureGaussianProcess(RandomFeatureLayer):
    r"""Answers logits that fade to indifference away from the training data: ``logits(x) = phi(x) beta``.

    ``phi(x) = sqrt(2/M) cos(W x / sqrt(kernel_scale) + b)`` with W and b frozen approximates a Gaussian process with
    the kernel ``exp(-|x - x'|^2 / (2 kernel_scale))``. Its Laplace approximation has the precision
    ``P = ridge I + sum_i w_i phi_i phi_i^T`` and the variance ``ridge phi(x)^T P^-1 phi(x)``, shared by the classes
    unless the likelihood is ``"softmax"``.
    For a Gaussian likelihood the ridge is the noise variance; for a classifier this is a tempered Laplace
    approximation.

    In training ``forward`` answers plain logits ``(..., C)``; in evaluation mean-field logits, once :meth:`update` has
    seen the data. As long as it has not, or the weights have moved since, evaluation answers plain logits and warns
    once, while :meth:`posterior` raises. The layer sees its own weights move, and takes it that those before it have
    where an optimizer has stepped after a training forward.

    Inputs are ``(..., D)``; the precision and its factor stay in float64 or float32 whatever the module's own dtype,
    and under any autocast. Threads may evaluate one layer while another thread fits its covariance: they get the old
    or the new one.

    Source: Liu et al., "Simple and Principled Uncertainty Estimation with Deterministic Deep Learning via Distance
    Awareness", NeurIPS 2020, section 3.1 and equation 9; Rahimi and Recht, "Random Features for Large-Scale Kernel
    Machines", NeurIPS 2007.

    Example:
        >>> import torch
        >>> from hesitant.nn import RandomFeatureGaussianProcess
        >>> layer = RandomFeatureGaussianProcess(4, 3, num_inducing=64).eval()
        >>> x = torch.randn(50, 4)
        >>> layer.update(x)  # one pass over the training data
        >>> layer.posterior(x).variance.shape
        torch.Size([50, 3])
        >>> far = layer.posterior(x + 100).variance
        >>> bool(far.mean() > layer.posterior(x).variance.mean())
        True

    Args:
        in_features: D, the width of the inputs.
        out_features: C, the number of logits; 1 for the likelihoods binary_logistic and poisson.
        num_inducing: M, the number of random features.
        kernel: ``"gaussian"``, or ``"linear"``, where phi(x) = x, scaled as random features are.
        kernel_scale: Squared length scale of the kernel, or ``"median"``: the median squared distance within the first
            training data, a training forward with gradients or an :meth:`update`. Until two different inputs have come
            it is ``in_features``. ``"running_median"`` follows the inputs while the network before it trains.
        train_kernel_scale: Whether the optimizer learns the kernel scale (as its logarithm).
        normalize_input: Whether inputs go through a (trainable) LayerNorm first.
        random_features: ``"gaussian"``, or ``"orthogonal"`` block by block.
        random_features_std: Standard deviation of W.
        activation: What makes features of the projection; ``torch.relu`` gives an arc-cosine kernel.
        scale_random_features: Whether features carry sqrt(2/M), so that the prior variance is about 1.
        parametrization: ``"standard"``: beta are the output weights themselves, and want a learning rate of their own.
            ``"linear"``: beta makes them so that it learns at the rate of the Linear in whose place the layer stands:
            ``w = s (beta - (1 - r) u u^T beta)`` with u the direction of the features' mean, ``s^2 = tr Var(x) / tr
            Var(phi)`` (at least D for tr Var(x)) and ``(s r)^2 = 1 / |E phi|^2``, all of the first training data.
        bias: Constant added to the logits.
        train_bias: Whether the optimizer learns it.
        l2_penalty: Weight of the output weights' squares in :meth:`regularization_loss`.
        ridge_penalty: Prior precision of the output weights.
        momentum: None: :meth:`update` sums the data exactly, in a pass of its own. In (0, 1]: each *training forward*
            adds its batch to a running sum ``S <- m S + sum_i w_i phi_i phi_i^T`` that forgets old batches, for who
            cannot make a second pass. 1 forgets nothing, and then needs :meth:`reset_covariance` before each epoch.
        num_data: With momentum: the number of inputs that the running average stands for, so that the precision is
            ``ridge I + num_data * average``; None is the size of the averaging window itself.
        ridge_decay: With momentum below 1: the reference's ``P <- m P + (1 - m) dP / batch``, whose ridge fades too.
        likelihood: Weights of the data in the precision: 1 for ``"gaussian"``, p(1 - p) for ``"binary_logistic"``, e^f
            for ``"poisson"``; ``"softmax"`` gives each class a precision of its own, with the weights p_c(1 - p_c), the
            diagonal blocks of the softmax's Hessian (the paper's equation 9): ``8 C M^2`` bytes.
        covariance_rank: With ``"softmax"``: r, the rank that the data's part of each class is kept at, in
            ``8 C M r`` bytes. Variances are then never understated, and overstated by
            :attr:`LaplaceCovariance.overstatement` at most. None is exact.
        mean_field_factor: Factor of the mean-field logits that evaluation answers; None leaves them plain.
        generator: Draws W, b and beta.
        device: Where the layer is made.
        dtype: Its floating type.

    Raises:
        ValueError: An argument is out of its range; the message says which and what it may be.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_inducing: int = 1024,
        kernel: Literal["gaussian", "linear"] = "gaussian",
        kernel_scale: float | Literal["median", "running_median"] = 1.0,
        train_kernel_scale: bool = False,
        normalize_input: bool = False,
        random_features: RandomFeatureKind = "gaussian",
        random_features_std: float = 1.0,
        activation: Callable[[Tensor], Tensor] = torch.cos,
        scale_random_features: bool = True,
        parametrization: Parametrization = "standard",
        bias: float = 0.0,
        train_bias: bool = False,
        l2_penalty: float = 0.0,
        ridge_penalty: float = 1.0,
        momentum: float | None = None,
        num_data: int | None = None,
        ridge_decay: bool = False,
        likelihood: Likelihood = "gaussian",
        covariance_rank: int | None = None,
        mean_field_factor: float | None = math.pi / 8,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            num_inducing=num_inducing,
            kernel=kernel,
            kernel_scale=kernel_scale,
            train_kernel_scale=train_kernel_scale,
            normalize_input=normalize_input,
            random_features=random_features,
            random_features_std=random_features_std,
            activation=activation,
            scale_random_features=scale_random_features,
            parametrization=parametrization,
            bias=bias,
            train_bias=train_bias,
            l2_penalty=l2_penalty,
            likelihood=likelihood,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.mean_field_factor = mean_field_factor
        self.laplace = LaplaceCovariance(
            self.num_inducing,
            ridge_penalty,
            momentum=momentum,
            num_data=num_data,
            ridge_decay=ridge_decay,
            num_classes=out_features if likelihood == "softmax" else None,
            covariance_rank=covariance_rank,
            generator=generator,
            device=device,
        )
        self._validity = FitValidity()
        self._warned = False

    # ---------------------------------------------------------------- what is answered

    def forward(self, x: Tensor) -> Tensor:
        """Answers logits ``(..., C)``: plain ones in training, mean-field ones in evaluation (see the class)."""
        recording = current_recording()
        posterior: GaussianLogits | None = None
        output = None if recording is None else recording.answer()
        if recording is not None and recording.decides:
            self._decide_or_follow(x)
        if output is None:
            if recording is not None and recording.plain:
                output = self.mean(x)
            elif self.training:
                if self._is_noted():
                    self._note_training(x)
                output = self.mean(x)
            else:
                if self._needs_python():
                    self._prepare_evaluation()  # here, so that what is compiled goes on after it as one graph
                fit = self._validity.valid_fit(self, self.laplace, read=False)
                if fit is None:
                    if not self._warned:
                        self._warn_unfitted("stale")
                    output = self.mean(x)
                else:
                    posterior = self._posterior(x, self._factor_of(fit))
                    likelihood = MEAN_FIELD[self.likelihood]
                    output = self._like_input(posterior.mean_field_logits(self.mean_field_factor, likelihood), x)
        if recording is not None:
            recording.note(self, x, posterior, output)
        return output

    def posterior(self, x: Tensor) -> GaussianLogits:
        """Answers mean and variance ``(..., C)`` of the logits.

        Raises:
            CovarianceError: The covariance is not fitted, or stale.
        """
        return self._posterior(x, self._factor("posterior"))

    def covariance(self, x: Tensor) -> Tensor:
        """Answers the posterior covariance between inputs, ``(B, B)``; ``(C, B, B)`` where each class has its own.

        Raises:
            CovarianceError: The covariance is not fitted, or stale.
        """
        factor = self._factor("covariance")
        features = self.features(x).flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            return factor.covariance(features)

    def sample(self, x: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws functions from the posterior and answers their logits ``(S, ..., C)``, joint over the inputs.

        Raises:
            CovarianceError: The covariance is not fitted, or stale.
            ValueError: ``num_samples`` is below 1.
        """
        factor = self._factor("sample")
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        features = self.features(x)
        shape = (num_samples, *self.beta.shape)
        noise = torch.randn(shape, generator=generator, dtype=features.dtype, device=features.device)
        with torch.autocast(x.device.type, enabled=False):
            drawn = factor.weight_noise(noise)  # (S, M, C)
            logits = torch.einsum("bm,smc->sbc", features.flatten(0, -2), drawn)
        return logits.view(num_samples, *features.shape[:-1], -1) + self.mean(x).to(features.dtype)

    # ---------------------------------------------------------------- the covariance

    @property
    def covariance_state(self) -> CovarianceState:
        """``"none"``, ``"fitted"``, or ``"stale"``: the weights have moved since it was fitted."""
        self._validity.settle(self, self.laplace)
        return self.laplace.state

    @property
    def precision(self) -> Tensor:
        """The precision matrix ``P``, ``(M, M)`` float64, the ridge included; that of each class, ``(C, M, M)``."""
        return self.laplace.precision

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Adds inputs ``(..., D)`` to the covariance.

        Raises:
            CovarianceError: The covariance is stale: reset it first.
            ValueError: The batch is empty, holds NaN or Inf, has the wrong width, or is to decide the kernel scale and
                holds no two different inputs.
        """
        self._prepare(x)
        self._validity.settle(self, self.laplace)
        if self.laplace.state == "none":
            self._validity.begin(self)
        product, count = self.contribution(x)
        if self.laplace.momentum is not None and dist.is_available() and dist.is_initialized():
            total = torch.tensor(float(count), dtype=torch.float64, device=product.device)
            dist.all_reduce(product)
            dist.all_reduce(total)
            count = int(total)
        self.laplace.add(product, count)
        self._warned = False

    @torch.no_grad()
    def downdate(self, x: Tensor) -> None:
        """Takes inputs ``(..., D)`` that were added before out of the covariance again.

        Raises:
            CovarianceError: The covariance is not fitted or stale, or keeps a running average, or holds fewer inputs.
            ValueError: The batch is empty, holds NaN or Inf, or has the wrong width.
        """
        self._validity.settle(self, self.laplace)
        self.laplace.remove(*self.contribution(x))

    @torch.no_grad()
    def replace_covariance(self, product: Tensor, count: int) -> None:
        """Puts the sum over all the data, float64, and its ``count`` in place of the covariance, factored.

        The sum is in the shape of ``laplace.data_precision``; nothing below a diagonal is read.
        Who evaluates meanwhile gets the old covariance until all of it is done. The weights that it belongs to are
        those of now.

        Raises:
            CovarianceError: The precision is not positive. The covariance is what it was.
        """
        self._validity.settle(self, self.laplace)
        self._validity.begin(self)
        self.laplace.replace(product, count, self._exact_dtype())
        self._warned = False

    def decide(self, x: Tensor) -> bool:
        """Decides kernel scale and parametrization by training inputs ``(..., D)``, if they are not; are they now?

        No answer changes by the parametrization. Inputs that are all alike, or one alone, decide nothing. In a run of
        several workers all call this, and agree.
        """
        before, decided = self.is_decided(), super().decide(x)
        if decided and not before and self.laplace.state == "none":
            self._validity.begin(self)  # a running scale follows what an optimizer has stepped on since
        return decided

    @torch.no_grad()
    def reset_covariance(self) -> None:
        """Forgets all data: the covariance is that of the prior, and its state ``"none"``."""
        self.laplace.reset()
        self._validity.begin(self)

    def expect_no_step(self) -> None:
        """Takes it that no optimizer has stepped since the last training forward: a running kernel scale stays."""
        self._validity.settle(self, self.laplace)
        if self.laplace.state != "fitted":
            self._validity.begin(self)

    def expect_step(self) -> None:
        """Takes it that an optimizer has stepped since the last training forward: a running kernel scale follows."""
        self._validity.watch.raise_suspicion()

    @run_eagerly
    def factorize(self) -> None:
        """Factors the precision now, rather than at the next evaluation.

        Raises:
            CovarianceError: The covariance is not fitted, or stale, or not positive.
        """
        self._factor("factorize")

    # ---------------------------------------------------------------- inside

    def _posterior(self, x: Tensor, factor: PosteriorFactor | ClassFactor) -> GaussianLogits:
        with torch.autocast(x.device.type, enabled=False):
            features = self._unscaled_features(x)
            mean = self._mean(features)
            variance = factor.variance(features.flatten(0, -2)) * self.feature_scale**2
            each = 1 if variance.ndim == 1 else self.out_features
            return GaussianLogits(mean, variance.view(*mean.shape[:-1], each).expand_as(mean))

    # ---------------------------------------------------------------- whether the covariance belongs to the weights

    def _is_noted(self) -> bool:
        """Answers whether a training forward is to be taken note of."""
        unknown = self.is_open or self.scale.follows or (self.laplace.state == "fitted" and not self._validity.trained)
        return self.laplace.momentum is not None or (unknown and torch.is_grad_enabled())

    @run_eagerly
    def _note_training(self, x: Tensor) -> None:
        recording = current_recording()
        told = recording is not None and recording.decides  # that this is training data, and it has been looked at
        # Without gradients it may be a look at shapes, which decides nothing.
        looks = torch.is_grad_enabled() and not told
        decided = self._decide_or_follow(x) if looks else not self.is_open
        if self.laplace.momentum is None:
            self._validity.settle(self, self.laplace)
            self._validity.trained = True
        # Activation checkpointing runs forward again inside backward: the batch has been counted then, in a first
        # forward that had no gradients if the checkpoint is a reentrant one.
        elif decided and torch._C._current_graph_task_id() == -1:
            self.update(x)

    def _decide_or_follow(self, x: Tensor) -> bool:
        """Lets training inputs decide what is open, or move a running kernel scale; answers whether all is decided."""
        if not self.is_decided():
            return self.decide(x)
        # Before an optimizer has stepped the inputs are those of before, and the covariance stays theirs. A forward
        # within backward, of activation checkpointing, has the scale of the first.
        if self.scale.follows and self._validity.watch.raised and torch._C._current_graph_task_id() == -1:
            self.follow(x)
        return True

    def _needs_python(self) -> bool:
        """Answers whether an evaluation must do first what no graph can hold.

        Raises:
            CovarianceError: It must, and is exported, or has no covariance to export.
        """
        fit = self.laplace.present
        doubtful = self._validity.is_doubtful(self.laplace)
        if exporting():
            if fit.state != "fitted":
                raise unfitted_error("export", fit.state)
            if fit.factor is None or doubtful:
                what = "an optimizer has stepped" if doubtful else "the covariance is not factored yet"
                raise CovarianceError(f"export: {what}. Call factorize() on this layer first.")
        return fit.factor is None or doubtful if fit.state == "fitted" else not self._warned

    @run_eagerly
    def _prepare_evaluation(self) -> None:
        self._validity.settle(self, self.laplace)
        fit = self.laplace.present
        if fit.state == "fitted":
            self._factor_of(fit)
        elif not self._warned:
            self._warn_unfitted(fit.state)

    def _warn_unfitted(self, state: CovarianceState) -> None:
        self._warned = True
        warnings.warn(
            f"the covariance is {described(state)}: evaluation answers plain logits. Call fit_covariance(data) (or"
            " update(x) on this layer) after training, before the probabilities are used.",
            stacklevel=4,
        )

    def _factor(self, what: str) -> PosteriorFactor | ClassFactor:
        if self._needs_python():
            self._validity.settle(self, self.laplace)
        fit = self._validity.valid_fit(self, self.laplace, read=True)
        if fit is None:
            state = self.laplace.state
            raise unfitted_error(what, "stale" if state == "fitted" else state)
        return self._factor_of(fit)

    def _factor_of(self, fit: CovarianceFit) -> PosteriorFactor | ClassFactor:
        return self.laplace.factorize(self._exact_dtype(), fit)

    # ---------------------------------------------------------------- as a citizen of torch

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RandomFeatureGaussianProcess":
        self._validity.settle(self, self.laplace)
        super()._apply(fn, recurse)
        if self.laplace.state == "fitted":
            self._validity.watch.trusts(self, "laplace")  # a cast rounds the weights and is no training
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._validity.settle(self, self.laplace)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._validity.forget()  # whether the covariance comes with the weights, that part of the layer is told itself

    def __getstate__(self) -> dict[str, Any]:
        self._validity.settle(self, self.laplace)  # a copy has seen nothing of what moved before it
        return self.__dict__.copy()

    def extra_repr(self) -> str:
        """Answers the layer's line in ``print(model)``."""
        return (
            f"{self.in_features}, {self.out_features}, num_inducing={self.num_inducing}, kernel={self.kernel!r},"
            f" covariance={self.covariance_state}"
        )
