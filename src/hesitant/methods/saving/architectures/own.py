"""A class or function of the user's own, by its import path: it is code, and imported only if it is trusted by name."""

import importlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from hesitant.methods.saving.failure import SavedModelError

__all__ = ["build_own", "path_of", "require_trust", "resolved"]

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def path_of(thing: Any) -> str | None:
    """Answers the path by which a class or a function can be imported, or None if it cannot."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not module or not name or module == "__main__" or not _PATH.fullmatch(f"{module}.{name}"):
        return None
    return f"{module}.{name}"


def require_trust(path: Any, trust: Collection[str], where: str) -> str:
    """Answers the path, if it is one and trusted.

    Raises:
        SavedModelError: It is not.
    """
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise SavedModelError(
            f"{where} asks to import {str(path)[:80]!r}, expected a path such as 'package.module.Class': it was"
            " changed. Save the model again."
        )
    if path not in trust:
        raise SavedModelError(
            f"{where} asks to import {path}, which runs that module's code. If you know it and trust it, load with"
            f" trust={path!r}; else build the network yourself and load with model=net."
        )
    return path


def resolved(path: str) -> Any:
    """Imports what a path that is trusted leads to.

    Raises:
        SavedModelError: There is nothing there.
    """
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is not None and ".".join(parts[:length]).startswith(error.name):
                continue
            raise
        try:
            for name in parts[length:]:
                thing = getattr(thing, name)
        except AttributeError:
            continue
        return thing
    raise SavedModelError(
        f"{path} cannot be imported: install the package that has it, or put its folder on the path, or build the"
        " network yourself and load with model=net."
    )


def build_own(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a network by a class, or by a function that answers one, of a path that is trusted.

    Raises:
        TypeError: It makes no network.
    """
    make = resolved(path)
    network = make(**arguments) if callable(make) else None
    if not isinstance(network, nn.Module):
        raise TypeError(f"{path} makes a {type(network).__name__}, expected a torch.nn.Module")
    return network
