"""Changes a saved folder as somebody could who means harm: to each change the digests are made to fit."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Payload:
    """What writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _pwned, (str(self.path),)


def _pwned(path: str) -> None:
    Path(path).write_text("pwned")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change(folder: Path, changing: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the config."""
    config = config_of(folder)
    changing(config)
    (folder / "config.json").write_text(json.dumps(config))


def put(folder: Path, *path: str | int, value: Any) -> None:
    """Sets one entry of the config."""

    def changing(config: Any) -> None:
        for step in path[:-1]:
            config = config[step]
        config[path[-1]] = value

    change(folder, changing)


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("model-*.safetensors")
    return path


def sign(folder: Path) -> None:
    """Makes the digests those of the files as they are."""
    for name in config_of(folder)["weights"]["files"]:
        content = (folder / name).read_bytes()
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        put(folder, "weights", "files", name, value=entry)


def rewrite(folder: Path, content: bytes) -> None:
    """Replaces the file of tensors, and signs it."""
    weights_of(folder).write_bytes(content)
    sign(folder)


def retensor(folder: Path, changing: Callable[[dict[str, Tensor]], Any]) -> None:
    """Changes the tensors, and signs the file."""
    from safetensors.torch import load, save

    tensors = load(weights_of(folder).read_bytes())
    changing(tensors)
    rewrite(folder, save(tensors))


def pickled(payload: Path) -> bytes:
    return pickle.dumps(Payload(payload))


def torch_saved(payload: Path, to: Path) -> bytes:
    torch.save({"weight": Payload(payload)}, to)
    return to.read_bytes()
