"""Whether ``config.json`` has the form of one, in all its parts, before anything is done by it."""

import re
import warnings
from collections.abc import Callable
from typing import Any, Final

from hesitant.files import parse_json
from hesitant.methods.saving.failure import SavedModelError
from hesitant.methods.saving.folder import CONFIG, POLICY, SavedFolder

__all__ = ["require_config", "require_policy"]

_PARTS: Final = {
    "format", "format_version", "model_type", "versions", "method", "label_names", "preprocessing", "policy", "weights",
}  # fmt: skip
_WEIGHTS: Final = {"files", "shared", "strides", "frozen"}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MOST_POLICY: Final = 2**16  # bytes


def require_config(folder: SavedFolder) -> dict[str, Any]:
    """Answers what ``config.json`` says.

    Raises:
        SavedModelError: It does not have the form.
    """
    config = folder.config()
    weights = config.get("weights")
    names = config.get("label_names")
    sound = (
        config.keys() == _PARTS
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


def require_policy(folder: SavedFolder, policy: Any) -> None:
    """Warns where ``policy.json``, the copy for who reads it alone, is not the policy of the model."""
    path = folder.path / POLICY
    try:
        copy = parse_json(folder.read(POLICY, most=_MOST_POLICY, of="a policy").decode("utf-8"))
    except ValueError:  # it is missing, or no policy
        copy = None if not path.exists() else "something else"
    if copy is not None and copy != policy:
        warnings.warn(
            f"{path} is not the policy that the model was saved with: a save was ended before its last step, or the"
            " file was replaced. hesitant.DeferralPolicy.load(folder) answers the one that belongs to the model.",
            stacklevel=5,
        )


def _is_dict(part: Any, kind: type) -> bool:
    return isinstance(part, dict) and all(isinstance(value, kind) for value in part.values())


def _is_list(part: Any, kind: type) -> bool:
    return isinstance(part, list) and all(_is(value, kind) for value in part)


def _is_file(entry: dict[str, Any]) -> bool:
    size, digest = entry.get("bytes"), entry.get("sha256")
    return _is(size, int) and isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None


def _is(value: Any, kind: Callable[..., Any]) -> bool:
    return type(value) is kind
