"""The names that Keras and TensorFlow give activations."""

import re

from .case import CaseError


def bare_name(name: str | None) -> str:
    """Answers "cos" of e.g. "tf.math.cos (default)"; None is "linear"."""
    if name is None:
        return "linear"
    if not isinstance(name, str):
        raise CaseError(f"activation {name!r} is not known: expected a name.")
    bare = re.sub(r"\s*\(default\)\s*$", "", name.strip())
    return re.sub(r"^(tf\.math\.|tf\.nn\.|tf\.keras\.activations\.|tf\.)", "", bare)
