"""What is raised of a folder that cannot be loaded, and what is said of a model that cannot be told."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["ArchitectureWarning", "SavedModelError", "naming"]

# What torch, and the constructors, raise of numbers and tensors that are not their own.
_UNFIT: Final = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError)


class SavedModelError(ValueError):
    """A folder holds no model that can be loaded: it is foreign, damaged, changed, of another version, or incomplete.

    The message names the file, what is wrong with it, and what to do. Nothing of the folder has been executed.
    """


class ArchitectureWarning(UserWarning):
    """A network was saved that its folder does not tell how to build, or is loaded into code that looks changed."""


@contextmanager
def naming(what: str, then: str, *further: type[Exception]) -> Iterator[None]:
    """Turns whatever a folder that does not fit leads to into one error that says what to do.

    Args:
        what: With the file's name.
        then: To be done.
        further: Errors beside those of torch.
    """
    try:
        yield
    except SavedModelError:
        raise
    except _UNFIT + further as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise SavedModelError(f"{what} ({reason[:400]}): {then}") from error
