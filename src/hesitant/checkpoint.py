"""One file from which training goes on to the same result: weights, optimizer, random states; no pickle."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class Progress:
    """How far a training run has come."""

    epoch: int = 0
    train_loss: list[float] = field(default_factory=list)
    validation_nll: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    seconds: float = 0.0

    def has_waited(self, patience: int) -> bool:
        """Answers whether the validation NLL has not improved for ``patience`` epochs."""
        return self.epoch - (self.best_epoch or 0) >= patience


def save_checkpoint(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    best_weights: dict[str, Tensor] | None = None,
    scheduler: Any = None,
    random_states: dict[str, Tensor] | None = None,
) -> None:
    """Writes the state of a training run to ``path`` (safetensors), at once or not at all.

    ``random_states`` are those of all workers, one a row; None takes this process for the only one.
    """
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best_weights or {}).items()}
    optimizer_state = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer_state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    tensors |= {f"random.{name}": states for name, states in (random_states or global_random_states()).items()}
    tensors["random.generator"] = generator.get_state()
    metadata = {
        "progress": json.dumps(asdict(progress)),
        "param_groups": json.dumps(optimizer_state["param_groups"]),
        "optimizer_numbers": json.dumps(numbers),
        "scheduler": json.dumps(None if scheduler is None else _plain(scheduler.state_dict())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    # Tied weights share storage, which the format refuses: each is written out.
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, unfinished, metadata)
    os.replace(unfinished, path)


def global_random_states() -> dict[str, Tensor]:
    """Answers the states ``(1, n)`` of this process' global generators."""
    states = {"cpu": torch.get_rng_state().unsqueeze(0)}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state().unsqueeze(0)
    return states


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    scheduler: Any = None,
    worker: int = 0,
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Puts a training run back to where ``path`` was written, and answers how far it had come, and its best weights.

    Raises:
        ValueError: The file is no checkpoint of this library.
        RuntimeError: The weights are not those of this model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"checkpoint={str(path)!r} cannot be read ({error}): delete it to begin anew.") from error
    if "progress" not in metadata:
        raise ValueError(f"checkpoint={str(path)!r} was not written by hesitant.fit: give another path.")

    def named(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(named("model."))
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in json.loads(metadata["optimizer_numbers"]).items()
    }
    for key, tensor in named("optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": json.loads(metadata["param_groups"])})
    if scheduler is not None:
        scheduler.load_state_dict(json.loads(metadata["scheduler"]))
    generator.set_state(tensors["random.generator"])
    # Cloned: a generator reads its state from the start of the storage.
    states = {name: rows[worker % len(rows)].clone() for name, rows in named("random.").items() if rows.ndim == 2}
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    return Progress(**json.loads(metadata["progress"])), named("best.") or None


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    keep: Callable[[Any], bool] = lambda value: isinstance(value, (int, float, str, list, tuple, type(None)))  # noqa: E731
    return {name: value for name, value in state.items() if keep(value)}
