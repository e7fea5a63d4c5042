"""Runs of Hugging Face's Trainer, small and quiet, and what comes of them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.integrations.tiny_bert import TEST, TRAIN, sngp
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hesitant import SNGP
from hesitant.integrations.transformers import FitCovariance


def trainer(model: nn.Module, folder: Path, callback: TrainerCallback | None = None, **options: Any) -> Trainer:
    given = {"train_dataset": TRAIN, "eval_dataset": TEST, "compute_loss_func": None}
    given |= {name: options.pop(name) for name in [*given, "compute_metrics", "data_collator"] if name in options}
    arguments: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder), **{**arguments, **options})  # type: ignore[assignment]
    callbacks = [] if callback is None else [callback]
    return Trainer(model, arguments, callbacks=callbacks, **given)  # type: ignore[arg-type]


def trained(folder: Path, model: SNGP | None = None, callback: TrainerCallback | None = None, **options: Any) -> SNGP:
    model = sngp() if model is None else model
    trainer(model, folder, callback or FitCovariance(), **options).train()
    return model


def loaded(folder: Path, model: SNGP | None = None) -> SNGP:
    model = sngp() if model is None else model
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal_states(first: dict[str, Tensor], second: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) or any(part in name for part in but), name
