"""A saved folder: what it holds, by what it is known again, and that a process loads it once."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hesitant.detection import FeatureDetector
from hesitant.evaluation import DeferralPolicy
from hesitant.integrations.scoring.columns import BadInputs, InputColumns, Inputs, arguments_of, texts
from hesitant.methods import load, saved_policy, saves_detector

_MOST_KEPT: Final = 4  # folders; a service that loads a new model each day forgets the old ones


@dataclass(frozen=True)
class Loaded:
    """What a folder holds.

    Attributes:
        method: the model in its method, in eval mode, or in a detector around that.
        policy: which of its answers to give; None where none was saved.
        tokenizer: of its texts; None where none was saved.
        label_names: of the classes, where they have any.
        arguments: what the model's are called.
        dtype: what its floating inputs are to be.
        looks_up: whether it has embeddings, which are asked by whole numbers.
    """

    method: Any
    policy: DeferralPolicy | None
    tokenizer: Any | None
    label_names: tuple[str, ...] | None
    arguments: tuple[str, ...]
    dtype: torch.dtype
    looks_up: bool
    _one_at_a_time: Any = field(default_factory=threading.Lock)

    @classmethod
    def at(cls, folder: Path, *, model: Any, trust: Sequence[str], device: Any) -> "Loaded":
        """What the folder holds; see :func:`hesitant.load` for the arguments and the errors."""
        answering: Any = FeatureDetector.from_pretrained if saves_detector(folder) else load
        answering = answering(folder, model=model, trust=trust, device=device)
        method = answering.method if isinstance(answering, FeatureDetector) else answering
        names = method.label_names
        floating = (tensor.dtype for tensor in method.parameters() if tensor.is_floating_point())
        return cls(
            method=answering,
            policy=None if saved_policy(folder) is None else DeferralPolicy.load(folder),
            tokenizer=_tokenizer_of(method.preprocessing),
            label_names=None if names is None else tuple(names),
            arguments=arguments_of(method.forward),
            dtype=next(floating, torch.get_default_dtype()),
            looks_up=any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in method.modules()),
        )

    def read(self, inputs: InputColumns, columns: Mapping[str, NDArray[Any]]) -> tuple[Inputs, dict[int, str]]:
        """The model's inputs that these columns are, and what is wrong with the rows that are none.

        Columns that are no arguments of a model with a tokenizer are texts.

        Raises:
            BadInputs: they are no inputs of this model.
        """
        strange = [name for name in columns if name not in self.arguments]
        if self.tokenizer is not None and strange:
            return self._tokens(columns)
        if len(columns) > 1 and strange and self.arguments:
            raise BadInputs(
                f"the columns {list(columns)} are to be inputs, and {strange[0]!r} is no argument of the model,"
                f" {list(self.arguments)}: call the columns as the arguments."
            )
        tensors: dict[str, Tensor] = {}
        reasons: dict[int, str] = {}
        for name, column in columns.items():
            tensors[name], wrong = inputs.tensor(name, column, self.dtype, whole_stay=self.looks_up)
            reasons = {**wrong, **reasons}
        return next(iter(tensors.values())) if strange and len(tensors) == 1 else tensors, reasons

    def _tokens(self, columns: Mapping[str, NDArray[Any]]) -> tuple[Inputs, dict[int, str]]:
        if len(columns) > 2:
            raise BadInputs(f"the columns {list(columns)} are to be texts: expected one, or two for pairs of texts.")
        read = [texts(name, column) for name, column in columns.items()]
        reasons = {row: reason for _, wrong in reversed(read) for row, reason in wrong.items()}
        if not read[0][0]:
            return {"input_ids": torch.zeros(0, 1, dtype=torch.int64)}, reasons
        assert self.tokenizer is not None
        # A tokenizer that is told to pad and to truncate writes it down on itself, and panics where two threads do.
        with self._one_at_a_time:
            encoded = self.tokenizer(*(rows for rows, _ in read), padding=True, truncation=True, return_tensors="pt")
        return {name: encoded[name] for name in encoded if name in self.arguments}, reasons


def folder_digest(folder: Path) -> str:
    """64 hexadecimal digits of what a saved folder holds: of its config, which has those of all other files.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    try:
        return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"folder={str(folder)!r} holds no config.json: expected what model.save_pretrained(folder) wrote, at the"
            " same path wherever it is scored."
        ) from None


def loaded_once(key: tuple[Any, ...], load: Callable[[], Loaded]) -> Loaded:
    """What `load` answers, which is asked once for a key in a process, whichever threads want it.

    The last few are kept: a task that comes after another one in the same worker finds the model there.
    """
    with _kept.lock:
        if key not in _kept.folders:
            _kept.folders[key] = load()
        _kept.folders.move_to_end(key)
        while len(_kept.folders) > _MOST_KEPT:
            _kept.folders.popitem(last=False)
        return _kept.folders[key]


def _tokenizer_of(preprocessing: Any) -> Any | None:
    """The tokenizer among what is done to raw inputs, if it is one."""
    if not isinstance(preprocessing, Mapping) or "Tokenizer" not in str(preprocessing.get("class")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(preprocessing["folder"], local_files_only=True, trust_remote_code=False)


class _Kept:
    """The folders that this process has loaded; never sent to another."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.folders: OrderedDict[tuple[Any, ...], Loaded] = OrderedDict()

    def unlocked(self) -> None:
        """Makes the lock anew: a fork may have copied it while a thread that is not copied held it."""
        self.lock = threading.Lock()


_kept = _Kept()
os.register_at_fork(after_in_child=lambda: _kept.unlocked())
