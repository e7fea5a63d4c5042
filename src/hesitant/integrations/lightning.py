"""Lightning: the covariance fitted in time for validation, checkpoints and the end, and the penalty in the gradient."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hesitant.integrations.covariance_fits import (
    CovarianceFits,
    forget_each_epoch,
    keep_out_of_broadcasts,
    sngps,
)
from hesitant.methods import SNGP
from hesitant.nn import holds_penalty

try:
    from lightning.pytorch import callbacks
    from lightning.pytorch.callbacks import Callback, Checkpoint
except ImportError as error:
    raise ImportError("hesitant.integrations.lightning needs lightning: pip install 'hesitant[lightning]'.") from error

__all__ = ["FitCovariance"]


class FitCovariance(Callback):  # type: ignore[misc, unused-ignore]
    """Keeps the covariance of every SNGP in a LightningModule that of its weights for validation, checkpoints, the end.

    So validation, and with it the best checkpoint and early stopping, are of the distribution that will be deployed,
    every checkpoint of the fit holds the covariance, and the trained module is ready to predict: under
    StochasticWeightAveraging and WeightAveraging of the averaged weights. As ``hesitant.fit`` does, training begins
    with what the replaced classifier knew, forgets a calibration, and has the gradient of the ``l2_penalty``, where
    ``training_step`` has not added ``regularization_loss()`` itself. Otherwise training is what it is without this.

    With several processes all fit together, each its share of the data. The sanity check is answered by plain logits.

    Example:
        >>> from hesitant.integrations.lightning import FitCovariance
        >>> callback = FitCovariance(num_inputs=10_000)  # lightning.Trainer(..., callbacks=[callback])

    Args:
        data: What to fit to, as for ``fit_covariance``; None is the run's own training DataLoader, each input once
            whatever the sampler. Its batches are then what the SNGP takes: ``(inputs, targets)``, or a dict of its
            arguments and ``labels``.
        batch_size: Inputs in one forward pass, where ``data`` has no batches of its own.
        num_inputs: How many, a uniform sample, stand for all of them in validation and checkpoints before the end; at
            the end all count. None is all, every time. See :meth:`hesitant.SNGP.fit_covariance`.
        seed: Of the sample.

    Raises:
        ValueError: The module holds no SNGP, or an argument is out of its range.
        TypeError: The training data is a stream or several loaders, and no ``data`` is given.
    """

    def __init__(
        self, data: Any = None, *, batch_size: int | None = None, num_inputs: int | None = None, seed: int = 0
    ) -> None:
        self._fits = CovarianceFits(data, batch_size, num_inputs, seed)
        self._penalized: list[SNGP] | None = None  # whose penalty the loss leaves out; None as long as none was seen
        self._until_the_end = ExitStack()
        self._unwarned = ExitStack()

    # ---------------------------------------------------------------- before training

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Goes behind callbacks that move weights and ahead of those that save them."""
        if stage != "fit":
            return
        sngps(pl_module)
        others = [callback for callback in trainer.callbacks if callback is not self]
        saving = [callback for callback in others if isinstance(callback, Checkpoint)]
        # Another list, for Lightning is walking the old one.
        trainer.callbacks = [*(callback for callback in others if callback not in saving), self, *saving]
        keep_out_of_broadcasts(pl_module)
        # A checkpoint of weights alone calls no hook of a callback.
        plainly = trainer.save_checkpoint
        trainer.save_checkpoint = partial(self._save, trainer, plainly)
        self._until_the_end.callback(trainer.__dict__.pop, "save_checkpoint")

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Keeps the warning of plain logits back: nothing has been trained yet."""
        self._unwarned.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="the covariance is ")

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Lets warnings through again."""
        self._unwarned.close()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins with what the replaced classifier knew."""
        self._penalized = None
        self._fits.begin(pl_module, trainer.train_dataloader)

    # ---------------------------------------------------------------- in training

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Lets a running covariance of momentum 1 begin anew."""
        forget_each_epoch(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lets training go on as if nothing had been fitted."""
        self._fits.go_on(pl_module)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Looks, once, whose penalty ``training_step`` has left out of its loss."""
        if self._penalized is None:
            methods = [method for method in sngps(pl_module) if method.gp.l2_penalty > 0]
            self._penalized = [method for method in methods if not holds_penalty(loss, method.gp)]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Adds the gradient of the penalties that the loss leaves out: here it is neither scaled nor accumulated."""
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for method in self._penalized or ():
            with torch.enable_grad():
                penalty = method.regularization_loss()
            weights = [weight for weight in method.gp.parameters() if weight.requires_grad and weight in stepped]
            for weight, gradient in zip(weights, torch.autograd.grad(penalty, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    # ---------------------------------------------------------------- where the covariance is wanted

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Fits, in the middle of training."""
        if trainer.validating and trainer.state.fn == "fit":
            self._fits.fit(pl_module, trainer.train_dataloader)
            _even_out(pl_module, trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Fits to all data."""
        self._fits.fit(pl_module, trainer.train_dataloader, exact=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Fits nothing any more: other workers may be gone."""
        self._close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves the trainer as it was."""
        self._close()

    def _close(self) -> None:
        self._unwarned.close()
        self._until_the_end.close()

    def _save(self, trainer: Any, plainly: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint, fitted: on all workers, as Lightning asks for."""
        for root in (trainer.lightning_module, *_averages(trainer)):
            self._fits.fit(root, trainer.train_dataloader)
        _even_out(trainer.lightning_module, trainer)
        plainly(*args, **kwargs)


def _even_out(pl_module: Any, trainer: Any) -> None:
    """Lets averages keep as many neighbours as the module: Lightning exchanges their numbers in place."""
    for average in _averages(trainer):
        for method, its in zip(sngps(pl_module), sngps(average), strict=True):
            if method.neighbors is not None and its.neighbors is not None:
                known = method.neighbors.inputs
                if its.neighbors.inputs.shape != known.shape:
                    its.neighbors.inputs = known.clone()


def _averages(trainer: Any) -> list[Any]:
    """Answers the averaged modules that Lightning saves in the place of the trained one."""
    kind = getattr(callbacks, "WeightAveraging", ())  # since Lightning 2.6
    found = [callback._average_model for callback in trainer.callbacks if isinstance(callback, kind)]
    return [average.module for average in found if average is not None]
