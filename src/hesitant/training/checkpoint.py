"""One file from which training goes on to the same result: weights, optimizer, random states; no pickle."""

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesitant.files import parse_json, replacing
from hesitant.training.progress import Progress
from hesitant.training.state_as_json import from_json, to_json

__all__ = ["Progress", "Run", "global_random_states", "load_checkpoint", "save_checkpoint"]

Run: TypeAlias = Mapping[str, str | int | float | None]

_FORMAT: Final = "hesitant.training.checkpoint"
_VERSION: Final = "2"
_JSON: Final = ("run", "progress", "optimizer", "scheduler")
_FUNCTIONS: Final = (FunctionType, BuiltinFunctionType, MethodType, partial)


def save_checkpoint(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    best_weights: dict[str, Tensor] | None = None,
    scheduler: Any = None,
    random_states: dict[str, Tensor] | None = None,
    *,
    run: Run | None = None,
) -> None:
    """Writes the state of a training run to ``path`` (safetensors), whole or not at all.

    Args:
        path: Of the file; its folder is made if need be.
        progress: How far the run has come.
        model: What is trained.
        optimizer: Its state is kept whole, whatever its nesting.
        generator: Of the data's order.
        best_weights: Those of the best epoch.
        scheduler: Its state is kept whole, but for functions, which its construction makes again.
        random_states: Those of all workers, one a row; None takes this process for the only one.
        run: What identifies the run: whatever, if it were different, would make it another one (the size of the data,
            the seed, the optimizer ...), by the names that an error is to call it. A checkpoint is loaded into a run
            with the same entries alone; None has none.

    Raises:
        TypeError: The optimizer or the schedule has a state that cannot be kept without pickle.
    """
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best_weights or {}).items()}
    schedule = None if scheduler is None else _without_functions(scheduler.state_dict())
    content = {
        "run": to_json(dict(run or {}), "run", tensors),
        "progress": to_json(asdict(progress), "progress", tensors),
        "optimizer": to_json(optimizer.state_dict(), "optimizer", tensors),
        "scheduler": to_json(schedule, "scheduler", tensors),
    }
    tensors |= {f"random.{name}": states for name, states in (random_states or global_random_states()).items()}
    tensors["random.generator"] = generator.get_state()
    metadata = {name: json.dumps(part, allow_nan=False) for name, part in content.items()}
    metadata |= {"format": _FORMAT, "version": _VERSION}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        # Tied weights share storage, which the format refuses: each is written out.
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, unfinished, metadata)


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
    *,
    run: Run | None = None,
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Puts a training run back to where ``path`` was written, and answers how far it had come, and its best weights.

    A file that is damaged, or of another run, is refused before anything is changed.

    Args:
        path: Of the file.
        model: Gets the weights.
        optimizer: Gets its state.
        generator: Gets its state.
        scheduler: Gets its state.
        worker: Which of the saved random states becomes that of this process.
        run: What identifies the run that is to go on, as in :func:`save_checkpoint`.

    Raises:
        OSError: The file is not there, or cannot be opened.
        ValueError: It is no checkpoint of this library, or damaged, or of another run or model; the error names the
            path and what is wrong.
    """
    metadata, tensors = _read(path)

    def named(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    with _naming(path, "is damaged"):
        lacking = [name for name in _JSON if name not in metadata]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        content = {name: from_json(parse_json(metadata[name]), tensors) for name in _JSON}
    _require_same_run(path, content["run"], dict(run or {}))
    weights, best = named("model."), named("best.")
    with _naming(path, "is damaged"):
        progress = Progress.read(content["progress"])
        if best and {name: t.shape for name, t in best.items()} != {name: t.shape for name, t in weights.items()}:
            raise ValueError("its best weights are not those of its model")
        # Cloned: a generator reads its state from the start of the storage.
        states = {name: rows[worker % len(rows)].clone() for name, rows in named("random.").items() if rows.ndim == 2}
        order = tensors.get("random.generator")
        if "cpu" not in states or order is None:
            raise ValueError("it lacks a random state")
        for device, state in ((torch.device("cpu"), states["cpu"]), (generator.device, order)):
            torch.Generator(device).set_state(state)
    with _put_back_after_an_error(model, optimizer, scheduler):
        with _naming(path, "does not fit this model"):
            _require_shapes(model, weights)
            model.load_state_dict(weights)
        with _naming(path, "does not fit this optimizer"):
            optimizer.load_state_dict(content["optimizer"])
        if scheduler is not None or content["scheduler"] is not None:
            with _naming(path, "does not fit this learning-rate schedule"):
                scheduler.load_state_dict(content["scheduler"])
    generator.set_state(order)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        with _naming(path, "is damaged"):
            torch.cuda.set_rng_state(states["cuda"])
    return progress, best or None


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    path.open("rb").close()  # whose errors name the path
    with _naming(path, "cannot be read", SafetensorError), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        known = metadata.get("format") == _FORMAT
        tensors = {name: file.get_tensor(name) for name in file.keys()} if known else {}  # noqa: SIM118
    if not known:
        raise ValueError(f"checkpoint={str(path)!r} was not written by hesitant.fit: give another path.")
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"checkpoint={str(path)!r} has version {metadata.get('version')}, expected {_VERSION}: go on with the "
            "hesitant that wrote it, or delete it to begin anew."
        )
    return metadata, tensors


@contextmanager
def _naming(path: Path, what: str, *further: type[Exception]) -> Iterator[None]:
    """Turns whatever error a state that does not fit leads to into one that names the path."""
    errors: tuple[type[Exception], ...] = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, *further)
    try:
        yield
    except errors as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(
            f"checkpoint={str(path)!r} {what} ({reason}): delete it to begin anew, or give another path."
        ) from error


@contextmanager
def _put_back_after_an_error(*parts: Any) -> Iterator[None]:
    """Leaves what has a state as it was, where the state that it was given does not fit one of them."""
    before = [(part, copy.deepcopy(part.state_dict())) for part in parts if part is not None]
    try:
        yield
    except BaseException:
        for part, state in before:
            part.load_state_dict(state)
        raise


def _require_same_run(path: Path, there: Any, here: dict[str, Any]) -> None:
    there = there if isinstance(there, dict) else {"run": there}
    entries = [
        (name, there.get(name, "nothing"), here.get(name, "nothing"))
        for name in [*here, *(name for name in there if name not in here)]
    ]
    differing = [
        f"{name} {was} there, {now} here"
        for name, was, now in entries
        if was != now and str(was) != str(now)  # NaN differs from itself
    ]
    if differing:
        raise ValueError(
            f"checkpoint={str(path)!r} is of another run: {'; '.join(differing)}. Delete the file to begin anew, or "
            "give another path."
        )


def _require_shapes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """That of the parameters: load_state_dict would have changed some before it finds the first that does not fit."""
    for name, parameter in model.named_parameters():
        if name in weights and weights[name].shape != parameter.shape:
            raise ValueError(
                f"size mismatch: {name} has the shape {tuple(weights[name].shape)} there, {tuple(parameter.shape)} here"
            )


def _without_functions(state: Any) -> Any:
    if isinstance(state, dict):
        kept = {key: _without_functions(part) for key, part in state.items() if not isinstance(part, _FUNCTIONS)}
        return Counter(kept) if isinstance(state, Counter) else kept
    return [_without_functions(part) for part in state] if isinstance(state, list) else state
