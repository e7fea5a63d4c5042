"""Whether a fitted covariance still belongs to the weights of its layer."""

import torch
from torch import nn

from hesitant.nn.compilation import run_eagerly
from hesitant.nn.laplace import CovarianceFit, LaplaceCovariance
from hesitant.nn.weight_watch import WeightWatch

_COVARIANCE = "laplace"  # what of the layer is not among the weights that its covariance belongs to


class FitValidity:
    """What a layer knows of its weights since its covariance was fitted.

    It sees its own weights (:class:`WeightWatch` says how), and takes it that those before it have moved where an
    optimizer has stepped after a training forward. A running covariance is that of weights that move: it is always
    valid. A copy knows nothing, and takes what it finds for what was fitted: who is copied settles before.
    """

    def __init__(self) -> None:
        self.watch = WeightWatch()
        self.trained = False  # a training forward has been

    def is_doubtful(self, laplace: LaplaceCovariance) -> bool:
        """Answers whether :meth:`settle` must be called before the fit is used; compiled code guards on it."""
        return self.watch.raised and laplace.momentum is None

    @run_eagerly
    def settle(self, layer: nn.Module, laplace: LaplaceCovariance) -> None:
        """Marks the covariance stale if the weights have moved since it was fitted, as far as can be told."""
        fit = laplace.present
        if fit.state == "fitted" and laplace.momentum is None:
            stepped = self.watch.raised and self.trained
            if self.watch.trusts(layer, _COVARIANCE) or stepped:
                laplace.mark_stale(fit)

    def begin(self, layer: nn.Module) -> None:
        """Takes the weights as they are for those to which the covariance belongs that is fitted now."""
        self.trained = False
        self.watch.trusts(layer, _COVARIANCE)

    def forget(self) -> None:
        """Knows nothing, as at the beginning."""
        self.trained = False
        self.watch.forget()

    def valid_fit(self, layer: nn.Module, laplace: LaplaceCovariance, *, read: bool) -> CovarianceFit | None:
        """Answers the fit if there is one and the weights, as they stand, do not show that they moved.

        Nothing is marked for good: ``torch.func`` lends a module other weights for one call.
        """
        fit = laplace.present
        if fit.state != "fitted":
            return None
        looks = laplace.momentum is None and not torch.compiler.is_compiling()
        return None if looks and self.watch.has_moved(layer, _COVARIANCE, read=read) else fit

    def __reduce__(self) -> tuple[type["FitValidity"], tuple[()]]:
        return FitValidity, ()
