"""A folder that a model is saved in: which files belong to it, and how they are read as if anyone had made them.

``config.json`` names all others, each with its digest. Files are never changed once they are written: a new save writes
new ones under new names, and then puts its ``config.json`` in place of the old, which is the moment that it counts.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hesitant.files import parse_json
from hesitant.methods.saving.failure import SavedModelError

__all__ = ["AGAIN", "CONFIG", "FORMAT", "VERSION", "SavedFolder", "entry_of"]

CONFIG: Final = "config.json"
FORMAT: Final = "hesitant"
VERSION: Final = 1
AGAIN: Final = "save the model again, or get the folder anew from where it came."

_MOST_BYTES: Final = 2**24  # of config.json: a transformers config with the names of 100,000 classes
_AT_ONCE: Final = 2**22
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}")


@dataclass(frozen=True)
class SavedFolder:
    """A folder to load from.

    Attributes:
        path: As it was asked for.
        root: The real folder that every file must lie in, whatever links lead to it.
    """

    path: Path
    root: Path

    @staticmethod
    def at(path: str | Path, root: Path | None = None) -> "SavedFolder":
        """Answers the folder.

        Raises:
            SavedModelError: There is none.
        """
        path = Path(path)
        if not path.is_dir():
            raise SavedModelError(
                f"{path} is no folder: name one that save_pretrained wrote. Of a model on a hub, load it by"
                " hesitant.SNGP.from_pretrained('owner/name'), or by the class that it is of."
            )
        return SavedFolder(path, (path if root is None else root).resolve())

    def file(self, *names: str) -> Path:
        """Answers a regular file of the folder, or of a folder in it.

        Raises:
            SavedModelError: It is missing, or leads out of the folder, or is no regular file.
        """
        for name in names:
            if not isinstance(name, str) or not _PLAIN.fullmatch(name) or ".." in name:
                raise SavedModelError(
                    f"{self.path / CONFIG} names the file {str(name)[:80]!r}, expected a plain name within the folder:"
                    " it was changed. Save the model again, or get the folder anew from where it came."
                )
        path = self.path.joinpath(*names)
        try:
            real = path.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError):
            raise SavedModelError(f"{path} is missing: {AGAIN}") from None
        except (OSError, RuntimeError) as error:  # links in a circle
            raise SavedModelError(f"{path} cannot be followed ({error}): {AGAIN}") from error
        if not real.is_relative_to(self.root):
            raise SavedModelError(
                f"{path} is a link to {real}, out of the folder, which is not followed: copy the file to its place."
            )
        if not real.is_file():
            raise SavedModelError(f"{path} is no regular file: {AGAIN}")
        return real

    def config(self) -> dict[str, Any]:
        """Answers what ``config.json`` says, if it is of this library and this version.

        Raises:
            SavedModelError: It is not.
        """
        text = self.read(CONFIG, most=_MOST_BYTES, of="a config of a model")
        path = self.path / CONFIG
        try:
            config = parse_json(text.decode("utf-8"))
        except ValueError as error:  # of JSON or of UTF-8
            raise SavedModelError(f"{path} is damaged ({error}): {AGAIN}") from error
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise SavedModelError(f"{path} {_whose(config)}")
        version = config.get("format_version")
        if type(version) is not int or version < 1:
            raise SavedModelError(f"{path} has format_version {version!r}, expected {VERSION}: {AGAIN}")
        if version > VERSION:
            saved_by = config.get("versions")
            by = saved_by.get("hesitant") if isinstance(saved_by, dict) else None
            raise SavedModelError(
                f"{path} has format_version {version}, and this hesitant reads up to {VERSION}: upgrade hesitant"
                f"{f' to {by[:40]} or later' if isinstance(by, str) else ''}, or save the model again with this one."
            )
        return config

    def read(self, *names: str, most: int, of: str) -> bytes:
        """Answers the bytes of a file.

        Raises:
            SavedModelError: It is not there, or larger than ``most``.
        """
        with self.file(*names).open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise SavedModelError(
                f"{self.path.joinpath(*names)} has more than {most} bytes, too large for {of}: {AGAIN}"
            )
        return content

    def require_entry(self, *names: str, entry: Mapping[str, Any]) -> Path:
        """Answers a file, if its bytes are those of its :func:`entry_of`.

        Raises:
            SavedModelError: They are not.
        """
        path, size = self.file(*names), entry.get("bytes")
        there = path.stat().st_size
        shown = self.path.joinpath(*names)
        if there != size:
            raise SavedModelError(
                f"{shown} has {there} bytes, and {CONFIG} says {str(size)[:40]}: it is truncated, or of another save."
                f" {AGAIN.capitalize()}"
            )
        if _digest_of(path) != entry.get("sha256"):
            raise SavedModelError(
                f"{shown} does not have the SHA-256 that {CONFIG} says: it was damaged or changed. {AGAIN.capitalize()}"
            )
        return path


def entry_of(path: Path) -> dict[str, Any]:
    """Answers what a config says of a file, by which it is known again."""
    return {"sha256": _digest_of(path), "bytes": path.stat().st_size}


def _digest_of(path: Path) -> str:
    """Answers the SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def _whose(config: Any) -> str:
    """Answers what a config of another library is, and how its model is loaded."""
    if isinstance(config, dict) and isinstance(config.get("pretrained_cfg"), dict):
        return (
            "is of a plain timm model, without a method around it: build it with timm.create_model, load its weights,"
            " and wrap it, hesitant.SNGP(net)."
        )
    if isinstance(config, dict) and ("model_type" in config or "architectures" in config):
        kind = str(config.get("model_type", "unknown"))[:40]
        return (
            f"is of a plain transformers model ({kind}), without a method around it: load it with transformers,"
            " AutoModelForSequenceClassification.from_pretrained(folder) or the class that it is of, and wrap it,"
            " hesitant.SNGP(net)."
        )
    return "was not written by hesitant: name a folder that save_pretrained wrote."
