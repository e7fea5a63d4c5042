"""Folders to write to."""

from pathlib import Path

__all__ = ["require_folder"]


def require_folder(out: Path) -> Path:
    """Makes the folder if need be and answers with it, before any time is spent on what cannot be kept.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    probe = out / ".hesitant-writes-here"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"out={str(out)!r} cannot be written to ({error.strerror}): name a folder that is yours to write in"
        ) from error
    return out
