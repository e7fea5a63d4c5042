"""The weights of a model that its covariance was fitted with, and whether they have moved since."""

import torch
from torch import Tensor, nn

from hesitant.methods.gaussian_head.fingerprint import fingerprint
from hesitant.nn import LaplaceCovariance, WeightsLoaded, WeightWatch


class FittedWeights(nn.Module):
    """Knows the weights again, to the bit, that the covariance of a model belongs to.

    All of them are read only where something may have moved them: see :class:`~hesitant.nn.WeightWatch` for what it
    sees. ``without`` is the prefix of the covariance's own buffers.
    """

    fingerprint: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fingerprint", torch.zeros((), dtype=torch.int64))
        self.watch = WeightWatch()

    def look_at_what_is_loaded(self, method: nn.Module) -> None:
        """Suspects the weights whenever a module of the method loads some."""
        for module in method.modules():
            module.register_load_state_dict_post_hook(WeightsLoaded(self.watch))

    def note(self, model: nn.Module, without: str) -> None:
        """Takes the weights as they are for those of the covariance."""
        self.fingerprint.fill_(fingerprint(model, without))
        self.watch.trusts(model, without)

    def settle(self, model: nn.Module, laplace: LaplaceCovariance, without: str) -> None:
        """Marks the covariance stale if the weights are not those that it was fitted with."""
        exact = laplace.state == "fitted" and laplace.momentum is None
        if exact and self.watch.suspects(model, without):
            self._mark_if_moved(model, laplace, without)  # first: another thread must not answer meanwhile
            self.watch.trusts(model, without)
            self._mark_if_moved(model, laplace, without)  # by who wrote between the two

    def _mark_if_moved(self, model: nn.Module, laplace: LaplaceCovariance, without: str) -> None:
        if laplace.state == "fitted" and int(self.fingerprint) != fingerprint(model, without):
            laplace.mark_stale()
