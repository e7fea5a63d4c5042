"""Files to write: the folder they go to, and each whole or not at all."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "require_folder", "write_text"]


def require_folder(out: Path) -> Path:
    """Makes the folder if need be and answers with it, before any time is spent on what cannot be kept.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise ValueError(
            f"out={str(out)!r} cannot be written to ({error.strerror}): name a folder that is yours to write in"
        ) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives an empty file beside `path` to write to, which takes the place of `path` when all has been written.

    After whatever error, KeyboardInterrupt included, the file that was there is as it was, and no other one is left.
    The new file has the old one's permissions. Its name is drawn, so that two processes do not meet in it: the one that
    ends later writes `path`.

    Raises:
        OSError: No file can be made in that folder, or `path` is there and no regular file; the error names `path`.
    """
    target = Path(os.path.realpath(path))  # of a link, the file that it stands for
    # A short name of its own: one made from a long one could be too long.
    unfinished = target.with_name(f".hesitant-{secrets.token_hex(8)}.unfinished")
    try:
        if target.exists() and not target.is_file():
            kind = errno.EISDIR if target.is_dir() else errno.EINVAL
            raise OSError(kind, "is no regular file, which alone can be written whole or not at all")
        # Not through tempfile, whose files nobody else may read.
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield unfinished
        if target.exists():
            shutil.copymode(target, unfinished)
        os.replace(unfinished, target)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if error.errno is None or error.filename not in (None, str(unfinished)):
            raise  # of another file
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file in UTF-8, whole or not at all, and answers with its path.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return Path(path)
