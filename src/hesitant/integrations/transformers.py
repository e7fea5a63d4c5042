"""Hugging Face's Trainer: the covariance fitted in time, and metrics of the distribution that will be deployed."""

from typing import Any

from torch import nn

from hesitant.integrations.covariance_fits import (
    CovarianceFits,
    forget_each_epoch,
    keep_out_of_broadcasts,
    sngps,
)

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "hesitant.integrations.transformers needs transformers and accelerate: pip install"
        " 'hesitant[train,transformers]'."
    ) from error

__all__ = ["FitCovariance"]


class FitCovariance(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Keeps an SNGP's covariance that of its weights wherever the Trainer evaluates, saves or ends.

    So evaluations, and with them the best checkpoint, are of the distribution that will be deployed, checkpoints hold
    the covariance, and the trained model is ready to predict. As ``hesitant.fit`` does, training begins with what the
    replaced classifier knew, and forgets a calibration, which belongs to other weights. Training itself, and what
    random numbers it draws, are as they were.

    With several processes all fit together, each its share of the data.

    Example:
        >>> from hesitant.integrations.transformers import FitCovariance
        >>> callback = FitCovariance(num_inputs=10_000)  # Trainer(model=SNGP(net), ..., callbacks=[callback])

    Args:
        data: What to fit to, as for ``fit_covariance``; None is the Trainer's own ``train_dataset``, through its
            collator, each input once whatever the sampler.
        batch_size: Inputs in one forward pass, where ``data`` has no batches of its own.
        num_inputs: How many, a uniform sample, stand for all of them in evaluations and checkpoints before the end; at
            the end all count. None is all, every time. See :meth:`hesitant.SNGP.fit_covariance`.
        seed: Of the sample.

    Raises:
        ValueError: The model holds no SNGP, or an argument is out of its range.
        TypeError: The training data is a stream, and no ``data`` is given.
    """

    def __init__(
        self, data: Any = None, *, batch_size: int | None = None, num_inputs: int | None = None, seed: int = 0
    ) -> None:
        self._fits = CovarianceFits(data, batch_size, num_inputs, seed)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at the model before anything is around it."""
        keep_out_of_broadcasts(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins with what the replaced classifier knew; fits, if an evaluation comes first."""
        model: nn.Module = kwargs["model"]
        penalized = any(method.gp.l2_penalty > 0 for method in sngps(model))
        if penalized and args.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor={args.label_smoothing_factor}: the Trainer then makes the loss itself, without"
                " the l2_penalty of the SNGP. Set one of them to 0, or give a compute_loss_func that adds"
                " model.regularization_loss()."
            )
        self._fits.begin(model, kwargs["train_dataloader"])
        if args.eval_on_start:
            self._fits.fit(model, kwargs["train_dataloader"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets a running covariance of momentum 1 begin anew."""
        forget_each_epoch(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets training go on as if nothing had been fitted."""
        self._fits.go_on(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fits, if an evaluation or a checkpoint comes next."""
        if control.should_evaluate or control.should_save:
            self._fits.fit(kwargs["model"], kwargs["train_dataloader"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fits, if an evaluation or a checkpoint comes next."""
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fits to all data, of the best weights if these were loaded."""
        self._fits.fit(kwargs["model"], kwargs["train_dataloader"], exact=True)
