"""The function of a Gaussian-process layer, without its posterior: linear in random features of the input."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant.nn.bit_sum import bit_sum
from hesitant.nn.compilation import run_eagerly
from hesitant.nn.kernel_scale import KernelScale
from hesitant.nn.laplace import LaplaceCovariance
from hesitant.nn.likelihood import Likelihood, check_likelihood, data_weights
from hesitant.nn.linear_parametrization import LinearParametrization
from hesitant.nn.penalty import marked_penalty
from hesitant.nn.random_features import RandomFeatureKind, draw_projection

Parametrization = Literal["standard", "linear"]

_NOT_DRAWN = -1  # of drawn_bits: something has set beta
_DECIDING = 1024  # inputs that decide the parametrization, at most
_FEW_CLASSES = 128  # beyond, making or turning round the output weights takes longer than one product with them


class RandomFeatureLayer(nn.Module):
    """Answers logits ``(..., C)`` that are linear in random features: ``logits(x) = phi(x) beta``.

    :class:`RandomFeatureGaussianProcess` has the formula, the arguments and their sources.
    """

    laplace: LaplaceCovariance  # of who gives the layer its posterior
    random_weight: Tensor | None
    random_phase: Tensor | None
    output_bias: Tensor
    drawn_bits: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_inducing: int,
        kernel: Literal["gaussian", "linear"],
        kernel_scale: float | Literal["median", "running_median"],
        train_kernel_scale: bool,
        normalize_input: bool,
        random_features: RandomFeatureKind,
        random_features_std: float,
        activation: Callable[[Tensor], Tensor],
        scale_random_features: bool,
        parametrization: Parametrization,
        bias: float,
        train_bias: bool,
        l2_penalty: float,
        likelihood: Likelihood,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_likelihood(likelihood, out_features)
        super().__init__()
        for name, size in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("num_inducing", num_inducing),
        ):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1.")
        if kernel not in ("gaussian", "linear"):
            raise ValueError(f"kernel={kernel!r} is not known: expected 'gaussian' or 'linear'.")
        if kernel_scale not in ("median", "running_median") and not (
            isinstance(kernel_scale, (int, float)) and 0 < kernel_scale < math.inf
        ):
            raise ValueError(f"kernel_scale={kernel_scale!r} must be a positive number, 'median' or 'running_median'.")
        if parametrization not in ("standard", "linear"):
            raise ValueError(f"parametrization={parametrization!r} is not known: expected 'standard' or 'linear'.")

        self.in_features, self.out_features = in_features, out_features
        self.num_inducing = in_features if kernel == "linear" else num_inducing
        self.kernel = kernel
        self.activation = activation
        self.feature_scale = math.sqrt(2 / num_inducing) if scale_random_features else 1.0
        self.l2_penalty = l2_penalty
        self.likelihood = likelihood

        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer_norm = nn.LayerNorm(in_features, **options) if normalize_input else None
        if kernel == "gaussian":
            weight = draw_projection(random_features, num_inducing, in_features, random_features_std, generator)
            self.register_buffer("random_weight", weight.to(**options))
            phase = 2 * math.pi * torch.rand(num_inducing, generator=generator)
            self.register_buffer("random_phase", phase.to(**options))
        else:
            self.register_buffer("random_weight", None)
            self.register_buffer("random_phase", None)
        self.scale = KernelScale(kernel_scale, in_features, trainable=train_kernel_scale, **options)

        # The names differ from a Linear's weight and bias: a checkpoint of the plain model must not load into them.
        limit = math.sqrt(6 / (self.num_inducing + out_features))
        beta = torch.rand(self.num_inducing, out_features, generator=generator).mul_(2 * limit).sub_(limit)
        self.parametrization: LinearParametrization | None = None
        if parametrization == "linear":
            self.parametrization = LinearParametrization(in_features, self.num_inducing, device=device)
            beta = self.parametrization.inverse(beta.to(device))
        self.beta = nn.Parameter(beta.to(**options))
        self.register_buffer("drawn_bits", torch.tensor(0, dtype=torch.int64), persistent=False)
        self._note_as_drawn(True)
        output_bias = torch.full((out_features,), float(bias), **options)
        if train_bias:
            self.output_bias = nn.Parameter(output_bias)
        else:
            self.register_buffer("output_bias", output_bias)

    @property
    def kernel_scale(self) -> float:
        """The squared length scale of the kernel; NaN until the median heuristic has seen its first training data."""
        return float(self.scale.log(torch.float64).detach().exp()) if self.scale.is_decided() else math.nan

    @property
    def output_weights(self) -> Tensor:
        """The weights w of the features, ``(M, C)``: beta itself, but for the parametrization ``"linear"``."""
        return self._output_weights(self.beta.dtype)

    def is_as_drawn(self) -> bool:
        """Answers whether beta is what it was made with: nothing has trained it, loaded it or set it."""
        return not self.beta.is_meta and int(self.drawn_bits) == int(bit_sum(self.beta))

    @torch.no_grad()
    def set_output_weights(self, weights: Tensor) -> None:
        """Sets beta so that the output weights are these, ``(M, C)``."""
        self.beta.copy_(weights if self.parametrization is None else self.parametrization.inverse(weights))

    def features(self, x: Tensor) -> Tensor:
        """Answers phi(x), ``(..., M)``, in float32 or better."""
        with torch.autocast(x.device.type, enabled=False):
            return self._unscaled_features(x) * self.feature_scale

    def mean(self, x: Tensor) -> Tensor:
        """Answers the plain logits ``(..., C)``, without the mean-field adjustment."""
        with torch.autocast(x.device.type, enabled=False):
            return self._like_input(self._mean(self._unscaled_features(x)), x)

    def regularization_loss(self) -> Tensor:
        """Answers ``l2_penalty * sum(w^2)`` of the output weights, to be added to the training loss."""
        if self.l2_penalty == 0:  # else the output weights, and a gradient of them, would be made for nothing
            return self.beta.new_zeros(())
        return marked_penalty(self.l2_penalty * self.output_weights.square().sum(), self)

    @property
    def is_open(self) -> bool:
        """Whether training data has still to decide the kernel scale or the parametrization."""
        return self.scale.is_open or (self.parametrization is not None and self.parametrization.is_open)

    def is_decided(self) -> bool:
        """Answers whether training data has decided the kernel scale and the parametrization."""
        return self.scale.is_decided() and (self.parametrization is None or self.parametrization.is_decided())

    @run_eagerly
    @torch.no_grad()
    def decide_kernel_scale(self, x: Tensor) -> bool:
        """Decides the kernel scale by training inputs ``(..., D)``, if it is not yet; answers whether it is now.

        Inputs that are all alike, or one alone, decide nothing. In a run of several workers all call this, and agree.
        """
        if self.scale.is_decided():
            return True
        with torch.autocast(x.device.type, enabled=False):
            return self.scale.decide(self._normalized(x))

    @run_eagerly
    @torch.no_grad()
    def decide(self, x: Tensor) -> bool:
        """Decides kernel scale and parametrization by training inputs ``(..., D)``, if they are not; are they now?

        No answer changes by the parametrization. Inputs that are all alike, or one alone, decide nothing. In a run of
        several workers all call this, and agree.
        """
        if not self.decide_kernel_scale(x):
            return False
        if self.parametrization is None or self.parametrization.is_decided():
            return True
        with torch.autocast(x.device.type, enabled=False):
            x = x.reshape(-1, x.shape[-1])
            x = x[:: max(1, len(x) // _DECIDING)][:_DECIDING]
            weights, drawn = self.output_weights, self.is_as_drawn()
            decided = self.parametrization.decide(x, self._unscaled_features(x) * self.feature_scale)
        if decided:  # beta is now counted in other units
            self.set_output_weights(weights)
            self._note_as_drawn(drawn)
        return decided

    @run_eagerly
    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Moves a running kernel scale towards that of training inputs ``(..., D)`` of now."""
        with torch.autocast(x.device.type, enabled=False):
            self.scale.follow(self._normalized(x))

    def options_of_sums(self) -> dict[str, Any]:
        """Answers the options on which the sums of :meth:`add_contribution` depend, beside the weights."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "num_inducing": self.num_inducing,
            "kernel": self.kernel,
            "feature_scale": self.feature_scale,
            "normalize_input": self.layer_norm is not None,
            "likelihood": self.likelihood,
            **self.laplace.options_of_sums(),
        }

    @torch.no_grad()
    def contribution(self, x: Tensor) -> tuple[Tensor, int]:
        """Answers ``sum_i w_i phi_i phi_i^T`` of training inputs ``(..., D)``, ``(M, M)`` float64, and their number.

        With ``likelihood="softmax"`` they are sums of each class, in the shape of ``laplace.data_precision``.

        Raises:
            ValueError: As ``update``.
        """
        product = torch.zeros_like(self.laplace.data_precision, device=self.beta.device)
        count = self.add_contribution(product, x)
        return self.laplace.mirrored(product), count

    @torch.no_grad()
    def add_contribution(self, total: Tensor, x: Tensor, *, sign: float = 1.0) -> int:
        """Adds the contribution of training inputs ``(..., D)`` to a sum of one's own, and answers their number.

        Whoever goes through all the data hands the sum to ``replace_covariance``. Of ``total``, in the shape of
        ``laplace.data_precision``, what lies below a diagonal is left out. With ``sign=-1`` it is taken out again.

        Raises:
            ValueError: As ``update``. Nothing was added.
        """
        self._prepare(x)
        with torch.autocast(x.device.type, enabled=False):
            features = self._unscaled_features(x).flatten(0, -2)
            if not bool(torch.isfinite(features).all()):
                raise ValueError(_not_finite("the features are not finite", x))
            weights = None
            if self.likelihood != "gaussian":
                weights = data_weights(self.likelihood, self._mean(features).double())
            self.laplace.add_products(total, features.double(), weights, sign * self.feature_scale**2)
            return len(features)

    # ---------------------------------------------------------------- inside

    def _note_as_drawn(self, drawn: bool) -> None:
        self.drawn_bits.fill_(int(bit_sum(self.beta)) if drawn and not self.beta.is_meta else _NOT_DRAWN)

    def _prepare(self, x: Tensor) -> None:
        """Refuses what cannot be counted, before anything is changed, and decides the kernel scale if need be."""
        self._checked(x)
        if x.numel() == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}: an empty batch says nothing about the covariance.")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(_not_finite("x holds NaN or Inf", x))
        if not self.decide_kernel_scale(x):
            raise ValueError(
                f'kernel_scale="median" needs at least two different inputs in the first batch, and got x of shape'
                f" {tuple(x.shape)}, all alike: begin with a larger batch, or give kernel_scale a number."
            )

    def _normalized(self, x: Tensor) -> Tensor:
        x = self._checked(x)
        if self.layer_norm is None:
            return x
        norm = self.layer_norm
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)

    def _unscaled_features(self, x: Tensor) -> Tensor:
        x = self._normalized(x)
        # Scaling the inputs costs B x D, scaling the projection B x M.
        x = x * torch.exp(-0.5 * self.scale.log(x.dtype))
        if self.random_weight is None or self.random_phase is None:
            return x
        projected = F.linear(x, self.random_weight, self.random_phase)
        if self.activation is torch.cos and not torch.is_grad_enabled():
            return projected.cos_()  # spares the allocator a second tensor of (B, M)
        return self.activation(projected)

    def _output_weights(self, dtype: torch.dtype) -> Tensor:
        beta = self.beta.to(dtype)
        return beta if self.parametrization is None else self.parametrization(beta)

    def _mean(self, features: Tensor) -> Tensor:
        bias = self.output_bias.to(features.dtype)
        if self.out_features > _FEW_CLASSES:
            beta, rows = self.beta.to(features.dtype), features.flatten(0, -2)
            answer = rows @ beta if self.parametrization is None else self.parametrization.product(rows, beta)
            return (answer * self.feature_scale + bias).unflatten(0, features.shape[:-1])
        # (C, M): products with a matrix of few columns, and their gradients, take ten times as long otherwise.
        weights = self._output_weights(features.dtype)
        return F.linear(features, (weights * self.feature_scale).T.contiguous(), bias)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: expected (..., {self.in_features}), the in_features of this layer."
            )
        if not x.is_floating_point():
            raise ValueError(f"x has dtype {x.dtype}: expected a floating type.")
        if x.ndim == 1:
            raise ValueError(f"x has shape {tuple(x.shape)}: expected a batch; call x.unsqueeze(0) for one input.")
        dtype = self._exact_dtype()
        if x.dtype == torch.float64 and dtype == torch.float32:
            raise ValueError("x is float64 and this layer float32: call x.float(), or double() on the layer.")
        return x.to(dtype)

    def _exact_dtype(self) -> torch.dtype:
        reference = self.beta if self.random_weight is None else self.random_weight
        return torch.promote_types(reference.dtype, torch.float32)

    def _like_input(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits if torch.is_autocast_enabled(x.device.type) else logits.to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RandomFeatureLayer":
        """Moves the layer as any module, but keeps the random features in float32 or better."""
        before = {name: getattr(self, name) for name in ("random_weight", "random_phase")}
        drawn = self.is_as_drawn()
        super()._apply(fn, recurse)
        self._note_as_drawn(drawn)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved is not None and moved.dtype in (torch.float16, torch.bfloat16):
                exact = moved if tensor.is_meta else tensor
                setattr(self, name, exact.to(moved.device, torch.float32))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}beta" in state_dict:
            self._note_as_drawn(False)


def _not_finite(what: str, x: Tensor) -> str:
    return (
        f"{what} (batch of shape {tuple(x.shape)}): nothing was added to the covariance. Mend or leave out these"
        " inputs."
    )
