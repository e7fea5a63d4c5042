"""fit(): one training loop for every method, on Accelerate."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from hesitant.methods import DeepEnsemble, require_module
from hesitant.training.ensemble import train_ensemble
from hesitant.training.history import History
from hesitant.training.loop import adamw, train
from hesitant.training.schedule import CosineSchedule, Every, MakeScheduler
from hesitant.training.settings import Loss, MixedPrecision, Settings


def fit(
    model: nn.Module,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    scheduler: MakeScheduler | Literal["cosine"] | None = "cosine",
    schedule_every: Every = "epoch",
    loss: Loss | None = None,
    validation_data: Any = None,
    patience: int | None = None,
    mixed_precision: MixedPrecision = "no",
    gradient_accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> History:
    """Trains a model or method, or all members of an ensemble, and fits the covariance of an SNGP at the end.

    Runs on one device, or on several GPUs and machines under ``accelerate launch`` or ``torchrun``. Nothing else in the
    library needs it: an own loop does as well.

    A calibration (:func:`hesitant.calibrate`) belongs to the weights that it was fitted with: training sets
    the temperature to 1 and an SNGP's factor back. The model is left in eval mode, ready to predict.

    Members of a :class:`DeepEnsemble` train each as in a fit of its own, in its own order of the data and with its own
    dropout, which follow from ``seed``. Members of one architecture train together in one vectorised pass, with one
    step of the optimizer for all, where that can be and pays: not with BatchNorm, not with an optimizer that treats
    numbers of one weight together, on a CPU not with convolutions or over a million parameters, on a GPU not if their
    weights would take half its memory. The others train one after another, to the same result but for rounding and
    for the masks of dropout, which are others of the same distribution. The history is an
    :class:`~hesitant.training.EnsembleHistory`, which says which way was taken.

    Example:
        >>> import torch
        >>> from hesitant import fit
        >>> x = torch.randn(64, 2)
        >>> y = (x[:, 0] > 0).long()
        >>> history = fit(torch.nn.Linear(2, 2), (x, y), epochs=3, progress=False)
        >>> len(history.train_loss)
        3

    Args:
        model: A classifier, or a method around one, or a DeepEnsemble.
        data: Training data: ``(inputs, targets)``, a dict of tensors with ``labels``, a Dataset or a list of such
            examples, or a DataLoader of such batches (see :func:`hesitant.inputs.understood`). Inputs are a tensor, or
            a list or a dict of several.
        epochs: Passes over the data.
        batch_size: Inputs in one step of each worker; a DataLoader keeps its own.
        learning_rate: Of AdamW, the default optimizer.
        weight_decay: Of AdamW.
        optimizer: Makes another optimizer from the trainable parameters.
        scheduler: ``"cosine"``: the learning rate rises over the first tenth of all steps and falls by half a cosine
            over the others, to almost none (where the data do not say how long they are, the first epoch has the full
            rate); None: it stays as it is; or what makes a schedule of the optimizer. ReduceLROnPlateau goes by the
            validation NLL, or without validation data by the training loss.
        schedule_every: ``"epoch"``, or ``"step"``: whether a schedule of your own advances after each epoch, or after
            each step of the optimizer, as warm-up and OneCycle need.
        loss: ``loss(logits, targets)``, a scalar; the default is the cross-entropy, binary for a single logit, or of a
            method with ``outputs="probabilities"`` the negative log-likelihood of these. A loss of your own is given
            the targets as they are; the default's name classes, or are distributions over them.
        validation_data: Data to measure the negative log-likelihood on after each epoch, of the distribution that will
            be deployed: the covariance is fitted first.
        patience: Stops when the validation NLL has not improved for that many epochs, and goes back to the best
            weights; members of an ensemble stop each by its own. The learning rate goes by ``epochs`` all the same.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        gradient_accumulation_steps: Batches in one optimizer step.
        max_grad_norm: Clips the norm of the gradient.
        seed: Of the data's order and of dropout; the global random state is as before afterwards.
        checkpoint: A file to which the run is saved after each epoch; if it is there already, training goes on from
            it, to the result that an unbroken run has; that of another run is refused. The members of an ensemble have
            one each, with ``.member0``, ``.member1`` ... behind the name.
        device: ``"cpu"`` keeps training off the GPU; None lets Accelerate choose.
        progress: Whether to show a bar.

    Raises:
        ValueError: An argument is out of its range, a target is no class, or the loss is NaN.
        TypeError: ``model`` is no ``torch.nn.Module``.
        ImportError: Accelerate is not installed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module; of a detector, its method.")
    require_module("model", model)
    if epochs < 1 or batch_size < 1 or gradient_accumulation_steps < 1:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size} and gradient_accumulation_steps={gradient_accumulation_steps}"
            " must each be at least 1."
        )
    if patience is not None and (validation_data is None or patience < 1):
        raise ValueError(f"patience={patience} must be at least 1 and needs validation_data to stop early by.")
    if mixed_precision not in ("no", "fp16", "bf16"):
        raise ValueError(f"mixed_precision={mixed_precision!r} is not known: expected 'no', 'fp16' or 'bf16'.")
    if schedule_every not in ("epoch", "step"):
        raise ValueError(f"schedule_every={schedule_every!r} is not known: expected 'epoch' or 'step'.")
    if isinstance(scheduler, str) and scheduler != "cosine":
        raise ValueError(f"scheduler={scheduler!r} is not known: expected 'cosine', None or a function.")
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        make_optimizer=optimizer or (lambda parameters: adamw(parameters, learning_rate, weight_decay)),
        make_scheduler=CosineSchedule(epochs) if scheduler == "cosine" else scheduler,
        schedule_every=schedule_every,
        loss=loss,
        validation_data=validation_data,
        patience=patience,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_grad_norm=max_grad_norm,
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        device=device,
        progress=progress,
    )
    if isinstance(model, DeepEnsemble):
        return train_ensemble(model, data, settings)
    return train(model, data, settings)
