"""The Laplace approximation of the output weights: the precision matrix, and whether it still holds."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.eager import run_eagerly
from hesitant.nn.posterior_factor import CovarianceError, PosteriorFactor

CovarianceState = Literal["none", "fitted", "stale"]

_STATES: tuple[CovarianceState, ...] = ("none", "fitted", "stale")
_FACTOR = ("columns", "gains", "null_variance", "least_variance")


class LaplaceCovariance(nn.Module):
    """Keeps the precision ``ridge I + sum_i w_i phi_i phi_i^T``, whether it still holds, and its factor.

    The data's part is summed in float64 whatever the dtype of the module around it: that is what makes sums over
    workers, and data added and taken out again, agree. See :class:`RandomFeatureGaussianProcess` for the arguments.

    Raises:
        ValueError: An argument is out of its range.
    """

    data_precision: Tensor
    num_seen: Tensor
    ridge_weight: Tensor
    state_code: Tensor
    columns: Tensor | None
    gains: Tensor | None
    null_variance: Tensor | None
    least_variance: Tensor | None

    def __init__(
        self,
        num_features: int,
        ridge_penalty: float = 1.0,
        *,
        momentum: float | None = None,
        num_data: int | None = None,
        ridge_decay: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < ridge_penalty < math.inf:
            raise ValueError(f"ridge_penalty={ridge_penalty} must be a positive number.")
        if momentum is not None and not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum} must be None (an exact second pass) or lie in (0, 1].")
        if ridge_decay and (momentum is None or momentum == 1):
            raise ValueError(f"ridge_decay=True needs a momentum below 1, and got momentum={momentum}.")
        if num_data is not None and (momentum is None or ridge_decay or num_data < 1):
            raise ValueError(
                f"num_data={num_data} scales the running average: it must be at least 1, with a momentum set and"
                " without ridge_decay."
            )
        self.ridge_penalty = ridge_penalty
        self.momentum, self.num_data, self.ridge_decay = momentum, num_data, ridge_decay
        double: dict[str, Any] = {"device": device, "dtype": torch.float64}
        self.register_buffer("data_precision", torch.zeros(num_features, num_features, **double))
        self.register_buffer("num_seen", torch.zeros((), **double))
        self.register_buffer("ridge_weight", torch.ones((), **double))
        self.register_buffer("state_code", torch.zeros((), device=device, dtype=torch.uint8))
        # No buffers: they come and go, and who averages models pairs the buffers of two of them.
        self._drop_factor()
        self._state: CovarianceState = "none"

    @property
    def state(self) -> CovarianceState:
        """``"none"``, ``"fitted"``, or ``"stale"``: the weights have moved since it was fitted."""
        return self._state

    @property
    def precision(self) -> Tensor:
        """The precision matrix, ``(M, M)`` float64, the ridge included."""
        prior, scale = self._prior_and_scale()
        return self.data_precision * scale + prior * torch.eye(
            len(self.data_precision), dtype=torch.float64, device=self.data_precision.device
        )

    def describe(self) -> str:
        """Answers the state in words, for messages."""
        return "stale: the weights have moved since it was fitted" if self._state == "stale" else "not fitted"

    def require_fitted(self, what: str) -> None:
        """Raises CovarianceError unless the covariance is fitted."""
        if self._state != "fitted":
            raise CovarianceError(
                f"{what}: the covariance is {self.describe()}. Call fit_covariance(data) on the model, or"
                " reset_covariance() and update(x) on this layer, after the last change of the weights."
            )

    def add(self, product: Tensor, count: int) -> None:
        """Adds ``sum_i w_i phi_i phi_i^T``, ``(M, M)`` float64, of ``count`` inputs.

        Raises:
            CovarianceError: The covariance is stale.
        """
        if self._state == "stale":
            raise CovarianceError(
                "update: the weights have moved since the covariance was begun, and sums over different weights do not"
                " add up. Call reset_covariance() first, then update() with all the data."
            )
        if self.ridge_decay and self.momentum is not None:
            self.data_precision.mul_(self.momentum).add_(product, alpha=(1 - self.momentum) / count)
            self.ridge_weight.mul_(self.momentum)
        else:
            if self.momentum is not None and self.momentum < 1:
                self.data_precision.mul_(self.momentum)
                self.num_seen.mul_(self.momentum)
            self.data_precision.add_(product)
            self.num_seen.add_(count)
        self._set_state("fitted")

    def remove(self, product: Tensor, count: int) -> None:
        """Takes ``sum_i w_i phi_i phi_i^T`` of ``count`` inputs out again.

        Raises:
            CovarianceError: The covariance is not fitted or stale, or keeps a running average, or holds fewer inputs.
        """
        self.require_fitted("downdate")
        if self.momentum is not None:
            raise CovarianceError(
                f"downdate: with momentum={self.momentum} the covariance is a running average over weights that moved,"
                " out of which no data can be taken. Make the layer with momentum=None."
            )
        if count > float(self.num_seen):
            raise CovarianceError(
                f"downdate: {count} inputs cannot be taken out of the {int(self.num_seen)} that were added."
            )
        self.data_precision.sub_(product)
        self.num_seen.sub_(count)
        if float(self.num_seen) == 0 and bool(self.data_precision.abs().max() < 1e-6 * product.abs().max()):
            self.data_precision.zero_()  # what rounding left behind may be more than a small ridge
        self._set_state("fitted")

    def reset(self) -> None:
        """Forgets all data: the covariance is that of the prior, and its state ``"none"``."""
        self.data_precision.zero_()
        self.num_seen.zero_()
        self.ridge_weight.fill_(1)
        self._set_state("none")

    def all_reduce(self) -> None:
        """Sums over the workers of ``torch.distributed``, each of which added its own share of the data."""
        dist.all_reduce(self.data_precision)
        dist.all_reduce(self.num_seen)
        self._set_state("fitted" if float(self.num_seen) > 0 else "none")

    def mark_stale(self) -> None:
        """Says that the weights have moved: a fitted covariance no longer belongs to them."""
        if self._state == "fitted":
            self._set_state("stale")

    def factorize(self, dtype: torch.dtype) -> PosteriorFactor:
        """Answers the factor for features of ``dtype``, and keeps it until the precision changes.

        Raises:
            CovarianceError: The precision is not positive.
        """
        if self.columns is None:
            self._make_factor(dtype)
        assert self.columns is not None
        assert self.null_variance is not None
        assert self.least_variance is not None
        return PosteriorFactor(self.columns, self.gains, self.null_variance, self.least_variance)

    @run_eagerly
    @torch.inference_mode(False)  # what is kept must serve autograd too, whoever asks first
    @torch.no_grad()
    def _make_factor(self, dtype: torch.dtype) -> None:
        prior, scale = self._prior_and_scale()
        factor = PosteriorFactor.of(self.data_precision * scale, self.ridge_penalty, prior, dtype)
        self.columns, self.gains = factor.columns, factor.gains
        self.null_variance, self.least_variance = factor.null_variance, factor.least_variance

    def _prior_and_scale(self) -> tuple[float, float]:
        """Answers the ridge as it stands now, and what the data's part is multiplied by."""
        seen = float(self.num_seen)
        scale = self.num_data / seen if self.num_data is not None and seen > 0 else 1.0
        return self.ridge_penalty * float(self.ridge_weight), scale

    def _drop_factor(self) -> None:
        self.columns = self.gains = self.null_variance = self.least_variance = None

    def _set_state(self, state: CovarianceState) -> None:
        self._state = state
        self.state_code.fill_(_STATES.index(state))
        self._drop_factor()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LaplaceCovariance":
        """Moves to a device as any module, but stays in float64, and its factor in float32 or better."""
        exact = {name: getattr(self, name) for name in ("data_precision", "num_seen", "ridge_weight")}
        factor = {name: getattr(self, name) for name in _FACTOR}
        super()._apply(fn, recurse)
        for name, tensor in factor.items():
            setattr(self, name, None if tensor is None else fn(tensor))
        for name, tensor in exact.items():
            moved = getattr(self, name)
            setattr(self, name, moved.double() if tensor.is_meta else tensor.to(moved.device))
        if self.columns is not None and self.columns.dtype != factor["columns"].dtype:
            dtype = torch.promote_types(self.columns.dtype, torch.float32)
            if dtype == factor["columns"].dtype:
                for name, tensor in factor.items():
                    if tensor is not None:
                        setattr(self, name, tensor.to(self.data_precision.device))
            else:
                # A factor is made for one dtype: a low-rank one of float64 may lose every digit in float32.
                self._drop_factor()
                self._make_factor(dtype)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if all(prefix + name in state_dict for name in ("data_precision", "num_seen", "state_code")):
            self._set_state(_STATES[int(self.state_code)])
        else:
            self.mark_stale()
