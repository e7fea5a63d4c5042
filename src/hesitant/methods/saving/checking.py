"""Whether ``config.json`` has the form of one, in all its parts, before anything is done by it."""

import re
from collections.abc import Callable
from typing import Any, Final

from hesitant.methods.saving.failure import SavedModelError
from hesitant.methods.saving.folder import CONFIG, SavedFolder

__all__ = ["require_config"]

_PARTS: Final = {
    "format", "format_version", "model_type", "versions", "method", "label_names", "preprocessing", "policy", "weights",
}  # fmt: skip
_WEIGHTS: Final = {"files", "shared", "strides", "frozen"}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def require_config(folder: SavedFolder) -> dict[str, Any]:
    """Answers what ``config.json`` says.

    Raises:
        SavedModelError: It does not have the form.
    """
    config = folder.config()
    weights = config.get("weights")
    names = config.get("label_names")
    sound = (
        config.keys() - {"detector"} == _PARTS
        and isinstance(config.get("detector", {}), dict)
        and isinstance(weights, dict)
        and weights.keys() == _WEIGHTS
        and isinstance(config["method"], dict)
        and _is_dict(config["versions"], str)
        and (names is None or _is_list(names, str))
        and (config["policy"] is None or isinstance(config["policy"], dict))
        and _is_dict(weights["files"], dict)
        and bool(weights["files"])
        and all(_is_file(entry) for entry in weights["files"].values())
        and _is_dict(weights["shared"], str)
        and _is_list(weights["frozen"], str)
        and _is_dict(weights["strides"], list)
        and all(_is_list(strides, int) for strides in weights["strides"].values())
    )
    if not sound:
        raise SavedModelError(
            f"{folder.path / CONFIG} was changed: it lacks a part, or one of them is of another kind. Save the model"
            " again, or get the folder anew from where it came."
        )
    return config


def _is_dict(part: Any, kind: type) -> bool:
    return isinstance(part, dict) and all(isinstance(value, kind) for value in part.values())


def _is_list(part: Any, kind: type) -> bool:
    return isinstance(part, list) and all(_is(value, kind) for value in part)


def _is_file(entry: dict[str, Any]) -> bool:
    size, digest = entry.get("bytes"), entry.get("sha256")
    return _is(size, int) and isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None


def _is(value: Any, kind: Callable[..., Any]) -> bool:
    return type(value) is kind
