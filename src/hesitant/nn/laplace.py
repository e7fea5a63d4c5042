"""The Laplace approximation of the output weights: the precision matrix, and whether it still holds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesitant.nn.bit_sum import bit_sum
from hesitant.nn.class_factor import ClassFactor
from hesitant.nn.class_sums import add_class_grams, add_class_sketches, class_matrices, mirror_classes
from hesitant.nn.compilation import run_eagerly
from hesitant.nn.gram import add_gram, mirror
from hesitant.nn.own_lock import OwnLock
from hesitant.nn.posterior_factor import CovarianceError, PosteriorFactor

CovarianceState = Literal["none", "fitted", "stale"]

_STATES: tuple[CovarianceState, ...] = ("none", "fitted", "stale")
_ITERATIONS = 8
_SUMS = ("data_precision", "num_seen", "ridge_weight", "directions")  # and what they are sums along


@dataclass(eq=False)
class CovarianceFit:
    """One state of the covariance, from one change to the next.

    A change makes a new one and never touches the old: who holds it goes on with one and the same covariance. Only the
    factor may be filled in later, and it is that of these sums.
    """

    state: CovarianceState = "none"
    sums: tuple[Tensor, Tensor, Tensor] | None = None  # of a fitted one: the buffers, as they were
    factor: PosteriorFactor | ClassFactor | None = None


def described(state: CovarianceState) -> str:
    """Answers a state in words, for messages."""
    return "stale: the weights have moved since it was fitted" if state == "stale" else "not fitted"


def unfitted_error(what: str, state: CovarianceState) -> CovarianceError:
    """Answers the error of who asks for ``what`` in a state that has no answer to it."""
    return CovarianceError(
        f"{what}: the covariance is {described(state)}. Call fit_covariance(data) on the model, or"
        " reset_covariance() and update(x) on this layer, after the last change of the weights."
    )


def _shape(num_features: int, num_classes: int | None, rank: int | None) -> tuple[int, ...]:
    if num_classes is None:
        return num_features, num_features
    return (num_classes, num_features, num_features) if rank is None else (num_features + 1, num_classes, rank + 1)


class LaplaceCovariance(nn.Module):
    """Keeps the precision ``ridge I + sum_i w_i phi_i phi_i^T``, whether it still holds, and its factor.

    The data's part is summed in float64 whatever the dtype of the module around it: that is what makes sums over
    workers, and data added and taken out again, agree. The arguments are those of
    :class:`~hesitant.nn.RandomFeatureGaussianProcess`; with ``num_classes`` each class has sums of its own, ``(C, M,
    M)``, or, with ``covariance_rank``, their sketches ``(M + 1, C, r + 1)`` along r ``directions``.

    Other threads may read meanwhile: each change sums apart and then puts new tensors, the state and the factor in
    place of the old at once, so that they get the covariance of before or the one of after.

    Raises:
        ValueError: An argument is out of its range.
    """

    data_precision: Tensor
    num_seen: Tensor
    ridge_weight: Tensor
    state_code: Tensor
    directions: Tensor | None

    def __init__(
        self,
        num_features: int,
        ridge_penalty: float = 1.0,
        *,
        momentum: float | None = None,
        num_data: int | None = None,
        ridge_decay: bool = False,
        num_classes: int | None = None,
        covariance_rank: int | None = None,
        generator: torch.Generator | None = None,
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
        if covariance_rank is not None and (num_classes is None or not 1 <= covariance_rank <= num_features // 2):
            raise ValueError(
                f"covariance_rank={covariance_rank} needs likelihood='softmax', and must lie in 1 to"
                f" {num_features // 2}, half of the random features: beyond, leave it out for the exact matrices."
            )
        self.ridge_penalty = ridge_penalty
        self.momentum, self.num_data, self.ridge_decay = momentum, num_data, ridge_decay
        double: dict[str, Any] = {"device": device, "dtype": torch.float64}
        self.register_buffer(
            "data_precision", torch.zeros(_shape(num_features, num_classes, covariance_rank), **double)
        )
        self.register_buffer("num_seen", torch.zeros((), **double))
        self.register_buffer("ridge_weight", torch.ones((), **double))
        self.register_buffer("state_code", torch.zeros((), device=device, dtype=torch.uint8))
        directions = None
        if covariance_rank is not None:
            drawn = torch.randn(num_features, covariance_rank, generator=generator, dtype=torch.float64)
            directions = torch.linalg.qr(drawn)[0].contiguous().to(device)
        self.register_buffer("directions", directions)
        # Its factor is no buffer: it comes and goes, and who averages models pairs the buffers of two of them.
        self.present = CovarianceFit()
        self._lock = OwnLock()

    @property
    def state(self) -> CovarianceState:
        """``"none"``, ``"fitted"``, or ``"stale"``: the weights have moved since it was fitted."""
        return self.present.state

    @property
    def factor(self) -> PosteriorFactor | ClassFactor | None:
        """The factor that is kept; None until an evaluation makes it."""
        return self.present.factor

    @property
    def overstatement(self) -> Tensor | None:
        """The factor by which ``covariance_rank`` may overstate a variance of each class at most, ``(C,)``, above 1.

        None of a covariance that the classes share, or before the factor is made.
        """
        return self.factor.overstatement if isinstance(self.factor, ClassFactor) else None

    @property
    def precision(self) -> Tensor:
        """The precision matrix, ``(M, M)`` float64, the ridge included; that of each class, ``(C, M, M)``."""
        data_precision, num_seen, ridge_weight = self.present.sums or self._buffered()
        prior, scale = self._prior_and_scale(num_seen, ridge_weight)
        if self.directions is not None:
            data_precision = class_matrices(data_precision, self.directions)
        size = data_precision.shape[-1]
        return data_precision * scale + prior * torch.eye(size, dtype=torch.float64, device=data_precision.device)

    def options_of_sums(self) -> dict[str, Any]:
        """Answers the options on which sums depend."""
        if self.directions is None:
            return {"covariance_rank": None}
        return {"covariance_rank": self.directions.shape[1], "directions": int(bit_sum(self.directions))}

    def add_products(self, total: Tensor, features: Tensor, weights: Tensor | None, scale: float) -> None:
        """Adds ``scale * sum_i w_i phi_i phi_i^T`` to a sum of one's own in the shape of ``data_precision``.

        Args:
            total: Of a square matrix, what lies below the diagonal is left out (see :meth:`mirrored`).
            features: ``(B, M)`` float64.
            weights: ``(B, 1)``, or ``(B, C)`` of sums of each class; None stands for ones.
            scale: Of the products.
        """
        if self.directions is not None and weights is not None:
            add_class_sketches(total, features, weights, self.directions, scale)
        elif total.ndim == 3 and weights is not None:
            add_class_grams(total, features, weights, scale)
        else:
            add_gram(total, features, features if weights is None else features * weights, scale)

    def mirrored(self, total: Tensor) -> Tensor:
        """Puts what is above a diagonal of a sum below it, too, and answers the sum."""
        if self.directions is not None:
            return total
        return mirror(total) if total.ndim == 2 else mirror_classes(total)

    @torch.no_grad()
    def aim(self, features: Tensor) -> None:
        """Turns the directions of low rank to where features ``(n, M)`` of training data lie, unless it is fitted.

        They approach the first eigenvectors of the sum of all classes, by subspace iteration (Golub and Van Loan,
        "Matrix Computations", section 8.2.4): as good as each class's own, nearly.
        """
        if self.directions is not None and self.state != "fitted":
            features, directions = features.double(), torch.eye(*self.directions.shape).to(self.directions)
            for _ in range(_ITERATIONS):  # from the same beginning: the same data choose the same
                directions = torch.linalg.qr(features.T @ (features @ directions))[0]
            self.directions = directions.contiguous()

    def require_fitted(self, what: str) -> CovarianceFit:
        """Answers the present fit, or raises CovarianceError unless it is one."""
        fit = self.present
        if fit.state != "fitted":
            raise unfitted_error(what, fit.state)
        return fit

    @torch.inference_mode(False)  # what is kept must be written and differentiated later, whoever asks first
    @torch.no_grad()
    def add(self, product: Tensor, count: int) -> None:
        """Adds ``sum_i w_i phi_i phi_i^T``, ``(M, M)`` float64, of ``count`` inputs.

        Raises:
            CovarianceError: The covariance is stale.
        """
        with self._lock:
            if self.state == "stale":
                raise CovarianceError(
                    "update: the weights have moved since the covariance was begun, and sums over different weights do"
                    " not add up. Call reset_covariance() first, then update() with all the data."
                )
            data_precision, num_seen, ridge_weight = self._begun()
            if self.ridge_decay and self.momentum is not None:
                data_precision = (data_precision * self.momentum).add_(product, alpha=(1 - self.momentum) / count)
                ridge_weight = ridge_weight * self.momentum
            else:
                kept = 1.0 if self.momentum is None else self.momentum
                data_precision = torch.add(product, data_precision, alpha=kept)
                num_seen = num_seen * kept + count
            self._swap("fitted", data_precision, num_seen, ridge_weight)

    @torch.inference_mode(False)
    @torch.no_grad()
    def remove(self, product: Tensor, count: int) -> None:
        """Takes ``sum_i w_i phi_i phi_i^T`` of ``count`` inputs out again.

        Raises:
            CovarianceError: The covariance is not fitted or stale, or keeps a running average, or holds fewer inputs.
        """
        with self._lock:
            self.require_fitted("downdate")
            if self.momentum is not None:
                raise CovarianceError(
                    f"downdate: with momentum={self.momentum} the covariance is a running average over weights that"
                    " moved, out of which no data can be taken. Make the layer with momentum=None."
                )
            if count > float(self.num_seen):
                raise CovarianceError(
                    f"downdate: {count} inputs cannot be taken out of the {int(self.num_seen)} that were added."
                )
            data_precision, num_seen = self.data_precision - product, self.num_seen - count
            if float(num_seen) == 0 and bool(data_precision.abs().max() < 1e-6 * product.abs().max()):
                data_precision.zero_()  # what rounding left behind may be more than a small ridge
            self._swap("fitted", data_precision, num_seen, self.ridge_weight)

    @torch.inference_mode(False)
    @torch.no_grad()
    def replace(self, product: Tensor, count: int, dtype: torch.dtype | None = None) -> None:
        """Puts the sum ``(M, M)`` float64 over ``count`` inputs in place of all data so far, whatever the state.

        Args:
            product: ``sum_i w_i phi_i phi_i^T`` of all the data; below a diagonal nothing is read.
            count: Its inputs; of none, the state is ``"none"``.
            dtype: That of the features for which the factor is made before anyone meets the new sum; None leaves it
                to the next evaluation.

        Raises:
            CovarianceError: The precision is not positive. The covariance is what it was.
        """
        product = self.mirrored(product.clone())  # the caller may go on summing into its own
        sums = product, torch.full_like(self.num_seen, count), torch.ones_like(self.ridge_weight)
        factor = None if dtype is None or count == 0 else self._factored(sums, dtype)
        with self._lock:
            self._swap("fitted" if count else "none", *sums, factor)

    @torch.inference_mode(False)
    @torch.no_grad()
    def reset(self) -> None:
        """Forgets all data: the covariance is that of the prior, and its state ``"none"``."""
        with self._lock:
            self._swap("none", *self._nothing())

    @torch.inference_mode(False)
    @torch.no_grad()
    def mark_stale(self, fit: CovarianceFit | None = None) -> None:
        """Says that the weights have moved: a fitted covariance no longer belongs to them.

        Args:
            fit: The one of which this was found; if another has come meanwhile, nothing is said. None is the present.
        """
        with self._lock:
            if self.state == "fitted" and (fit is None or fit is self.present):
                self._swap("stale", *self._buffered())

    def factorize(self, dtype: torch.dtype, fit: CovarianceFit | None = None) -> PosteriorFactor | ClassFactor:
        """Answers the factor for features of ``dtype``, and keeps it until the precision changes.

        Args:
            dtype: Of the features.
            fit: Whose factor; None is the present one's.

        Raises:
            CovarianceError: The precision is not positive.
        """
        fit = self.present if fit is None else fit
        return self._make_factor(fit, dtype) if fit.factor is None else fit.factor

    # ---------------------------------------------------------------- inside

    @run_eagerly
    @torch.inference_mode(False)
    @torch.no_grad()
    def _make_factor(self, fit: CovarianceFit, dtype: torch.dtype) -> PosteriorFactor | ClassFactor:
        # Two threads may make it at once, and make the same.
        factor = self._factored(fit.sums or self._buffered(), dtype)
        fit.factor = factor
        return factor

    def _factored(self, sums: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> PosteriorFactor | ClassFactor:
        prior, scale = self._prior_and_scale(*sums[1:])
        if self.directions is not None:
            return ClassFactor.of_sketches(sums[0], self.directions, scale, self.ridge_penalty, prior, dtype)
        if sums[0].ndim == 3:
            return ClassFactor.of(sums[0] * scale, self.ridge_penalty, prior, dtype)
        return PosteriorFactor.of(sums[0] * scale, self.ridge_penalty, prior, dtype)

    def _prior_and_scale(self, num_seen: Tensor, ridge_weight: Tensor) -> tuple[float, float]:
        """Answers the ridge as it stands now, and what the data's part is multiplied by."""
        seen = float(num_seen)
        scale = self.num_data / seen if self.num_data is not None and seen > 0 else 1.0
        return self.ridge_penalty * float(ridge_weight), scale

    def _begun(self) -> tuple[Tensor, Tensor, Tensor]:
        """Answers the sums to which data is added: before any they are zero, whatever was averaged into the buffers."""
        if self.state == "none":
            return self._nothing()
        return self._buffered()

    def _buffered(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.data_precision, self.num_seen, self.ridge_weight

    def _nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.zeros_like(self.data_precision),
            torch.zeros_like(self.num_seen),
            torch.ones_like(self.ridge_weight),
        )

    def _swap(
        self,
        state: CovarianceState,
        data_precision: Tensor,
        num_seen: Tensor,
        ridge_weight: Tensor,
        factor: PosteriorFactor | ClassFactor | None = None,
    ) -> None:
        """Puts new sums in place, never into the old ones: a factor may be in the making there. Holds the lock."""
        self.data_precision, self.num_seen, self.ridge_weight = data_precision, num_seen, ridge_weight
        self._set_fit(state, factor)

    def _set_fit(self, state: CovarianceState, factor: PosteriorFactor | ClassFactor | None = None) -> None:
        self.present = CovarianceFit(state, self._buffered() if state == "fitted" else None, factor)
        self.state_code = torch.full_like(self.state_code, _STATES.index(state))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LaplaceCovariance":
        """Moves to a device as any module, but stays in float64, and its factor in float32 or better."""
        exact = {name: tensor for name in _SUMS if (tensor := getattr(self, name)) is not None}
        before = self.present.factor
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            moved = getattr(self, name)
            setattr(self, name, moved.double() if tensor.is_meta else tensor.to(moved.device))
        factor = None
        if before is not None and not before.columns.is_meta:
            cast = fn(before.columns).dtype
            if torch.promote_types(cast, torch.float32) == before.columns.dtype:
                factor = before.to(self.data_precision.device)
            else:
                # A factor is made for one dtype: a low-rank one of float64 may lose every digit in float32.
                with torch.inference_mode(False), torch.no_grad():
                    factor = self._factored(self._buffered(), torch.promote_types(cast, torch.float32))
        self._set_fit(self.state, factor)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # An average of models may have written another's code into the buffer, and other numbers into the sums.
        self.state_code = torch.full_like(self.state_code, _STATES.index(self.state))
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if all(prefix + name in state_dict for name in ("data_precision", "num_seen", "state_code")):
            self._set_fit(_STATES[int(self.state_code)])
        else:
            self.mark_stale()
