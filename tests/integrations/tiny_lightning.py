"""A LightningModule of an MLP with dropout and BatchNorm, and quiet runs of Lightning's Trainer."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hesitant import SNGP
from hesitant.integrations.lightning import FitCovariance

X = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
TRAIN, TEST = TensorDataset(X[:50], Y[:50]), TensorDataset(X[50:], Y[50:])
FAR = X[50:] + 20
# What Lightning has to say of this machine, of small data and of other libraries.
QUIET = (
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:GPU available",
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:`isinstance",
    "ignore:You defined a `validation_step`",
    "ignore:Checkpoint directory",
)


def network(*, drop: float = 0.1, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(drop)
        return nn.Sequential(*layers, nn.Linear(8, 3))


class Classifier(lightning.LightningModule):
    """What a user writes."""

    method: Any

    def __init__(self, net: nn.Module | None = None, *, adds_penalty: bool = False, **options: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.method = SNGP(net or network(), **{"num_inducing": 32, "generator": generator, **options})
        self.adds_penalty = adds_penalty
        self.validated: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = F.cross_entropy(self.method(batch[0]), batch[1])
        return loss + self.method.regularization_loss() if self.adds_penalty else loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("nll", F.cross_entropy(self.method(batch[0]).float(), batch[1]), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(float(self.trainer.callback_metrics["nll"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader(data: Any = TRAIN, **options: Any) -> "DataLoader[Any]":
    generator = torch.Generator().manual_seed(0)
    return DataLoader(data, **{"batch_size": 10, "shuffle": True, "generator": generator, **options})


def runs(folder: Path, *callbacks: Any, **options: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 2, "default_root_dir": folder, **quiet, **options}
    return lightning.Trainer(callbacks=list(callbacks), **options)


def trained(folder: Path, module: Classifier, *callbacks: Any, **options: Any) -> lightning.Trainer:
    """Trains with a callback that fits, ahead of the others, and answers the trainer."""
    fit = [] if any(isinstance(callback, FitCovariance) for callback in callbacks) else [FitCovariance()]
    given = {"train_dataloaders": loader(), "val_dataloaders": loader(TEST, batch_size=20, shuffle=False)}
    given |= {name: options.pop(name) for name in [*given, "ckpt_path"] if name in options}
    torch.manual_seed(0)
    trainer = runs(folder, *fit, *callbacks, **options)
    trainer.fit(module, **given)
    return trainer
