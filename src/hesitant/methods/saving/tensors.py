"""The tensors of a saved model: written in files of a bounded size, and read back as they were, to the bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hesitant.methods.saving.failure import SavedModelError, naming
from hesitant.methods.saving.folder import AGAIN, SavedFolder, entry_of
from hesitant.methods.tied_tensors import with_all_names

__all__ = [
    "DERIVED",
    "DETECTOR",
    "EXTRA",
    "SavedTensors",
    "read_tensors",
    "require_safetensors",
    "tensors_of",
    "write_tensors",
]

DERIVED: Final = "derived."  # before the names of buffers that no state dict holds
EXTRA: Final = "extra."  # before those of what methods keep beside it
DETECTOR: Final = "detector."  # before those of a detector around the method
_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass
class SavedTensors:
    """What is saved of a model's tensors.

    Attributes:
        tensors: By name, each memory once.
        shared: The names that stand for another one's memory, and which.
        strides: Of tensors that are dense, but not in the order of their axes.
    """

    tensors: dict[str, Tensor]
    shared: dict[str, str] = field(default_factory=dict)
    strides: dict[str, list[int]] = field(default_factory=dict)


def tensors_of(method: nn.Module) -> SavedTensors:
    """Answers all tensors that a method's answers depend on: its state dict, and the buffers that are in none.

    Raises:
        TypeError: The state dict holds something else than tensors.
        ValueError: A tensor has no values yet, or is spread over workers, or holds NaN.
    """
    state: dict[str, Any] = method.state_dict()
    with_all_names(method, state, "")
    for name, buffer in method.named_buffers(remove_duplicate=False):
        if name not in state:
            state[DERIVED + name] = buffer
    for path, module in method.named_modules():
        for name, tensor in module.saved_extras().items() if hasattr(type(module), "saved_extras") else ():
            state[f"{EXTRA}{path}/{name}"] = tensor
    saved = SavedTensors({})
    first: dict[Any, str] = {}
    for name, tensor in state.items():
        _require_plain(name, tensor)
        tensor = tensor.detach()
        memory = (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
        if tensor.numel() > 0 and memory in first:
            saved.shared[name] = first[memory]
            continue
        first[memory] = name
        saved.tensors[name] = tensor
        if _is_dense(tensor) and tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
            saved.strides[name] = list(tensor.stride())
    return saved


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor], max_shard_size: int | str) -> dict[str, Any]:
    """Writes the tensors to ``<stem>.safetensors``, or to several files of at most so many bytes each.

    Args:
        folder: Where.
        stem: Of the names, which nothing in the folder has.
        tensors: By name.
        max_shard_size: Bytes of tensors in one file: a number, or a text such as ``"5GB"``. A tensor is never split.

    Returns:
        Of each file, by name, its ``sha256`` and its ``bytes``.
    """
    save_file = _safetensors().torch.save_file
    shards = _shards(tensors, _bytes(max_shard_size))
    files: dict[str, Any] = {}
    for index, names in enumerate(shards, 1):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{index:05}-of-{len(shards):05}.safetensors"
        save_file({n: tensors[n].to("cpu").contiguous().clone() for n in names}, folder / name, {"format": "pt"})
        files[name] = entry_of(folder / name)
    return files


def read_tensors(folder: SavedFolder, weights: Mapping[str, Any]) -> SavedTensors:
    """Answers the tensors of a folder, in memory of their own, when every byte is as it was written.

    Raises:
        SavedModelError: A file is missing, or not what was written, or holds NaN.
    """
    safetensors = _safetensors()
    tensors: dict[str, Tensor] = {}
    for name, entry in weights["files"].items():
        path = folder.require_entry(name, entry=entry)
        shown = folder.path / name
        damaged = naming(f"{shown} is damaged, or holds no tensors", AGAIN, safetensors.SafetensorError)
        with damaged, safetensors.safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if key in tensors:
                    raise SavedModelError(f"{shown} holds {key!r}, as another file does: save the model again.")
                tensors[key] = _own(file.get_tensor(key), weights["strides"].get(key))
                if _has_nan(tensors[key]):
                    raise SavedModelError(f"{shown}: {key} holds NaN: these are no weights. Save another model.")
    return SavedTensors(tensors, dict(weights["shared"]), dict(weights["strides"]))


def require_safetensors() -> None:
    """Raises ImportError where the library that writes and reads tensors is not installed."""
    _safetensors()


# ---------------------------------------------------------------- inside


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("to save and to load needs safetensors: pip install 'hesitant[hub]'") from error
    return safetensors


def _require_plain(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"the state dict holds {name}, a {type(tensor).__name__}: only tensors can be saved, for anything else"
            " needs pickle. Keep it as a buffer, or outside the model."
        )
    if is_lazy(tensor) or tensor.is_meta:
        raise ValueError(f"{name} has no values yet: run the model on an input first, or load its weights.")
    if hasattr(tensor, "placements") or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} is spread over workers, or sparse, which one file cannot hold: gather the whole model in one"
            " process first."
        )
    if _has_nan(tensor):
        raise ValueError(f"{name} holds NaN: a model with it answers nothing. Save one that has been trained soundly.")


def _has_nan(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and bool(torch.isnan(tensor).any())


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _own(tensor: Tensor, stride: list[int] | None) -> Tensor:
    """Answers a copy: what was read may lie in the file itself, which anyone may write to later."""
    if stride is None:
        return tensor.clone()
    if not _is_dense(
        torch.empty_strided(tensor.shape, stride, device="meta")
    ):  # it would take more memory than it fills
        raise ValueError(f"its strides {stride[:8]} are none")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _shards(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _bytes(size: int | str) -> int:
    number: Any = size
    if isinstance(size, str):
        digits, unit = size[:-2], size[-2:].upper()
        number = int(digits) * _UNITS[unit] if unit in _UNITS and digits.strip().isdigit() else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"max_shard_size={size!r} is no number of bytes: expected one, or a text such as '5GB'.")
    return number
