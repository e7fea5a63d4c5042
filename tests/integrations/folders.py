"""A saved model to score by, and rows to score, for the tests of all engines."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hesitant

WIDTH, NUM_CLASSES = 6, 3


def network(seed: int = 0) -> nn.Sequential:
    """Answers a small network with dropout, its weights from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, NUM_CLASSES))


def inputs(num_rows: int, seed: int = 1) -> torch.Tensor:
    """Answers rows for :func:`network`."""
    return torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def sngp(seed: int = 0) -> Any:
    """Answers a small SNGP whose covariance is fitted."""
    model = hesitant.SNGP(network(seed), num_inducing=64, generator=torch.Generator().manual_seed(seed))
    model.fit_covariance(inputs(200))
    return model


def saved(folder: Path, model: Any, *, policy: bool = True, **options: Any) -> Path:
    """Saves a model, with a policy that hands over a fifth, and answers the folder."""
    if policy:
        options["policy"] = hesitant.DeferralPolicy.calibrate(model.predict(inputs(200, seed=2)), budget=0.2)
    model.save_pretrained(folder, **options)
    return folder


def rows(num_rows: int, seed: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """Answers a batch of columns: an identifier, and what the network takes."""
    return {"id": np.arange(num_rows), "x": inputs(num_rows, seed).numpy()}
