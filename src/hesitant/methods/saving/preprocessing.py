"""What is done to raw inputs before a model gets them, as JSON, with the files of a tokenizer or an image processor."""

import json
import shutil
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from hesitant.methods.saving.failure import SavedModelError
from hesitant.methods.saving.folder import CONFIG, SavedFolder, entry_of

__all__ = ["read_preprocessing", "write_preprocessing"]

_FILES = "files"  # of what is kept in a folder, the digests by name


def write_preprocessing(preprocessing: Any, folder: Path, name: str) -> Any:
    """Answers the preprocessing as JSON; what has files of its own saves them in a folder beside.

    Args:
        preprocessing: A tokenizer, an image processor, or any other that has ``save_pretrained``; a preset of
            torchvision's transforms, or the weights that it belongs to; or what JSON can hold; or what was read.
        folder: Of the model.
        name: Of the folder beside, which is made where it is needed.

    Raises:
        TypeError: It is nothing of that.
        ValueError: It was read from a folder that is there no longer.
    """
    if callable(getattr(preprocessing, "save_pretrained", None)):
        preprocessing.save_pretrained(str(folder / name))
        said = {"class": type(preprocessing).__name__, "name": str(getattr(preprocessing, "name_or_path", ""))}
        return {**said, "folder": name, _FILES: _files(folder / name)}
    if isinstance(preprocessing, Mapping) and _FILES in preprocessing:
        before = Path(preprocessing["folder"])
        if not before.is_dir():
            raise ValueError(f"preprocessing is in {before}, which is there no longer: pass the tokenizer itself.")
        for file in preprocessing[_FILES]:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(before / file, folder / name / file)
        return {**preprocessing, "folder": name, _FILES: _files(folder / name)}
    if type(preprocessing).__module__.startswith("torchvision.transforms"):
        preprocessing = {"class": type(preprocessing).__name__, **_numbers_of(preprocessing)}
    try:
        return json.loads(json.dumps(preprocessing, allow_nan=False, default=_named))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"preprocessing is a {type(preprocessing).__name__} that cannot be saved ({error}): expected a tokenizer or"
            " an image processor, a preset of torchvision's transforms, or numbers and texts in lists and dicts."
        ) from error


def read_preprocessing(said: Any, folder: SavedFolder) -> Any:
    """Answers what ``config.json`` says of the preprocessing; a folder with its path.

    Raises:
        SavedModelError: A file of it is missing or changed.
    """
    if not isinstance(said, Mapping) or _FILES not in said:
        return said
    name, files = said.get("folder"), said[_FILES]
    if not isinstance(name, str) or not isinstance(files, Mapping):
        raise SavedModelError(f"{folder.path / CONFIG}: its preprocessing is damaged. Save the model again.")
    for file, entry in files.items():
        entry = entry if isinstance(entry, Mapping) else {}
        folder.require_entry(name, *file.split("/"), entry=entry)
    return {**said, "folder": str(folder.path / name)}


def _files(folder: Path) -> dict[str, Any]:
    return {file.relative_to(folder).as_posix(): entry_of(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _numbers_of(preset: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(preset).items() if not name.startswith("_") and name != "training"}


def _named(value: Any) -> Any:
    """Answers a member of an enumeration, such as a way of interpolation, by its name."""
    if isinstance(value, Enum):
        return str(value)
    raise TypeError(f"it holds a {type(value).__name__}")
