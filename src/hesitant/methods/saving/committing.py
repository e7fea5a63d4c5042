"""Puts a saved model in place of another at one moment, whatever ends the process before or after it."""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from hesitant.files import parse_json, replacing
from hesitant.methods.saving.folder import CONFIG, FORMAT

__all__ = ["NewSave", "saving_into"]

# What a save writes beside config.json: under names of its own, that no other save has.
_OWN = re.compile(r"(model|preprocessing)-[0-9a-f]{16}(-\d{5}-of-\d{5})?(\.safetensors|\.json)?")
_UNFINISHED: Final = re.compile(r"\.hesitant-[0-9a-f]{16}\.unfinished")


class NewSave:
    """A save that does not count yet.

    Attributes:
        folder: Where.
        token: 16 hexadecimal digits that are in the name of every file of this save, and of no other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, secrets.token_hex(8)

    def commit(self, config: dict[str, Any]) -> None:
        """Puts ``config.json`` in place: from then on the folder is this save."""
        text = json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        for path in sorted(self.folder.glob(f"*-{self.token}*")):
            for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
                _flush(file)
        with replacing(self.folder / CONFIG) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
            _flush(self.folder)  # what it names is there before it is
            _flush(unfinished)
        _flush(self.folder)


@contextlib.contextmanager
def saving_into(folder: Path) -> Iterator[NewSave]:
    """Gives a save to write and to commit, and removes what it takes the place of; what is not committed is removed.

    Processes that save into one folder do so one after another where the file system has locks; where it has none the
    last one counts all the same, and files may be left over.

    Raises:
        ValueError: The folder holds the model of another library.
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as alone:
        before = _names(folder)
        new = NewSave(folder)
        try:
            yield new
        except BaseException:
            _remove(folder, [name for name in _listed(folder) if new.token in name])
            raise
        kept = _names(folder)
        old = [name for name in _listed(folder) if alone or name in before]
        _remove(folder, [name for name in old if name not in kept and new.token not in name])


def _names(folder: Path) -> set[str]:
    """Answers the files and folders that ``config.json`` names."""
    path = folder / CONFIG
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return set()
    except ValueError:
        config = None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path} is of another library, or damaged: save into another folder, or delete the file.")
    return {match.group() for match in _OWN.finditer(json.dumps(config))}


def _listed(folder: Path) -> list[str]:
    names = os.listdir(folder)
    return [name for name in names if _OWN.fullmatch(name) or _UNFINISHED.fullmatch(name)]


def _remove(folder: Path, names: Collection[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # somebody reads it, where that is a lock: it is only left over
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Answers whether this process alone saves here, as far as can be told; a process that is killed has no lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    """Has the file, or the folder's names, on the disk before what comes next."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
