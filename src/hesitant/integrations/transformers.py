"""Hugging Face's Trainer: the covariance fitted in time, and metrics of the distribution that will be deployed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hesitant.detection import Score
from hesitant.evaluation import StreamingMetrics
from hesitant.integrations.covariance_fits import (
    CovarianceFits,
    forget_each_epoch,
    keep_out_of_broadcasts,
    sngps,
)
from hesitant.methods import SNGP, Deterministic, Tempered
from hesitant.prediction import Prediction

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "hesitant.integrations.transformers needs transformers and accelerate: pip install"
        " 'hesitant[train,transformers]'."
    ) from error

__all__ = ["DeployedMetrics", "FitCovariance"]

_OF_PROBABILITIES = ("confidence", "predictive_entropy")


class FitCovariance(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Keeps an SNGP's covariance that of its weights wherever the Trainer evaluates, saves or ends.

    So evaluations, and with them the best checkpoint, are of the distribution that will be deployed, checkpoints hold
    the covariance, and the trained model is ready to predict. As ``hesitant.fit`` does, training begins with what the
    replaced classifier knew, and forgets a calibration, which belongs to other weights. Training itself, and what
    random numbers it draws, are as they were.

    With several processes all fit together, each its share of the data. Give it last: what a callback behind it asks
    to be evaluated or saved, it does not see.

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


class DeployedMetrics:
    """A ``compute_metrics`` for the Trainer: accuracy, NLL, Brier score, ECE and AUROC of what will be deployed.

    The numbers are those of :mod:`hesitant.evaluation` for the predictions that the Trainer hands over; inputs of the
    out-of-domain sets are asked of the model. With ``batch_eval_metrics`` no predictions are gathered.

    Example:
        >>> from hesitant.integrations.transformers import DeployedMetrics
        >>> metrics = DeployedMetrics()  # Trainer(..., compute_metrics=metrics): eval_nll, eval_ece, ...

    Args:
        model: The method that is trained, where out-of-domain sets are to be told.
        out_of_domain: By name, data of inputs that are none of the classes, as ``predict`` takes it; each is an
            ``auroc_NAME``.
        num_bins: Of the ECE.
        score: What tells them, as in :func:`hesitant.detection.uncertainty`. Of the logits that the Trainer has,
            ``"confidence"`` and ``"predictive_entropy"`` can be told for every method; ``"ood_score"``, ``"energy"``
            and ``"dempster_shafer"`` for SNGP and Deterministic, without an own ``ood_score`` or a temperature.
        batch_size: Inputs in one forward pass over the out-of-domain sets.

    Raises:
        ValueError: There are out-of-domain sets and no model, or the score cannot be told for it.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        out_of_domain: Mapping[str, Any] | None = None,
        *,
        num_bins: int = 15,
        score: Score = "ood_score",
        batch_size: int | None = None,
    ) -> None:
        self._sets, self._batch_size = dict(out_of_domain or {}), batch_size
        modules = [] if model is None else model.modules()
        self._method: Any = next((module for module in modules if isinstance(module, Tempered)), None)
        if self._sets:
            if self._method is None:
                raise ValueError(
                    f"model={type(model).__name__} is no method of hesitant: expected the one that is trained, to ask"
                    f" what it answers to the out-of-domain sets {list(self._sets)}."
                )
            _require_told(score, self._method)
        self._metrics = StreamingMetrics(num_bins=num_bins, score=score if self._sets else None)

    def __call__(self, evaluation: Any, compute_result: bool = True) -> dict[str, float]:
        """Answers the metrics; with ``compute_result=False`` none yet, for more batches of the evaluation come.

        Args:
            evaluation: The Trainer's EvalPrediction, of logits ``(B, C)`` and targets ``(B,)``.
            compute_result: Whether these are the last.
        """
        logits = evaluation.predictions
        logits = torch.as_tensor(logits[0] if isinstance(logits, tuple) else logits)
        self._metrics.update(Prediction.from_logits(logits, targets=torch.as_tensor(evaluation.label_ids)))
        if not compute_result:
            return {}
        for name, data in self._sets.items():
            self._metrics.update_ood(name, self._method.predict(data, batch_size=self._batch_size))
        answer = self._metrics.compute()
        self._metrics.reset()
        return answer


def _require_told(score: Score, method: Any) -> None:
    """Raises ValueError for a score that the logits of a method's forward do not tell."""
    by_size = isinstance(method, (SNGP, Deterministic)) and method.outputs == "logits" and method.temperature == 1
    own = score == "ood_score" and getattr(method, "ood_score", "logits") != "logits"
    if score not in _OF_PROBABILITIES and (not by_size or own or score in ("mutual_information", "logit_variance")):
        raise ValueError(
            f"score={score!r} cannot be told from the logits that the Trainer has of a {type(method).__name__} as it is"
            f" set: expected one of {', '.join(map(repr, _OF_PROBABILITIES))}."
        )
