"""How to train: what fit was asked for, and what is minimised."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from hesitant.methods import ModelWrapper, Outputs
from hesitant.training.schedule import CosineSchedule, Every, MakeScheduler

NO_TARGETS = (
    "data has no targets: expected (inputs, targets), a tuple, or a dict with 'labels'. A list is several inputs of the"
    " model: a collate_fn of your own has to answer a tuple."
)

Loss = Callable[[Tensor, Tensor], Tensor]
MixedPrecision = Literal["no", "fp16", "bf16"]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Settings:
    """How to train: the arguments of fit, which says what they mean."""

    epochs: int
    batch_size: int
    make_optimizer: MakeOptimizer
    make_scheduler: MakeScheduler | CosineSchedule | None
    schedule_every: Every
    loss: Loss | None
    validation_data: Any
    patience: int | None
    mixed_precision: MixedPrecision
    gradient_accumulation_steps: int
    max_grad_norm: float | None
    seed: int
    checkpoint: Path | None
    device: str | None
    progress: bool
    outputs: Outputs = "logits"  # of a plain model

    def outputs_of(self, model: nn.Module) -> Outputs:
        """Answers what the model's outputs are: a method says so itself."""
        return model.outputs if isinstance(model, ModelWrapper) else self.outputs

    def loss_of(self, model: nn.Module) -> Loss:
        """Answers what the model minimises."""
        if self.loss is not None:
            return self.loss
        return cross_entropy if self.outputs_of(model) == "logits" else negative_log_likelihood


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Answers the mean cross-entropy of logits ``(B, C)``, or of a single logit ``(B, 1)`` or ``(B,)``, in nats."""
    if logits.ndim == 1 or logits.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(logits.reshape(-1), targets.reshape(-1).to(logits.dtype))
    return F.cross_entropy(logits, targets)


def negative_log_likelihood(probs: Tensor, targets: Tensor) -> Tensor:
    """Answers the mean negative log-likelihood of probabilities ``(B, C)``, or ``(B, 1)`` or ``(B,)``, in nats."""
    if probs.ndim == 1 or probs.shape[-1] == 1:
        return F.binary_cross_entropy(probs.reshape(-1).clamp(0, 1), targets.reshape(-1).to(probs.dtype))
    log_probs = (probs / probs.sum(-1, keepdim=True)).clamp(min=torch.finfo(probs.dtype).tiny).log()
    if targets.is_floating_point():
        return -(targets * log_probs).sum(-1).mean()
    return F.nll_loss(log_probs, targets)
