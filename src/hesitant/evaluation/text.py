"""Numbers as papers print them; names from elsewhere as plain text.

Such names keep to their line, and turn round nothing that stands beside them.
"""

import re
import unicodedata
from typing import Final

__all__ = ["decimals", "isolated", "one_line", "without_controls", "without_overrides"]

# What turns the direction of the text behind it: embeddings, overrides, isolates and marks (Unicode UAX 9).
_DIRECTION: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Those of them that turn all that is behind them, to the end of the paragraph.
_OVERRIDE: Final = re.compile("[\u202a-\u202e\u2066\u2067]")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_FIRST_STRONG_ISOLATE, _POP_ISOLATE = "\u2068", "\u2069"


def without_controls(text: str) -> str:
    """The text without controls of its direction, and with a sign in place of those of a terminal."""
    return _CONTROL.sub("\ufffd", _DIRECTION.sub("", text).replace("\t", " "))


def without_overrides(text: str) -> str:
    """The text without the controls of the direction that act beyond the letters beside them."""
    return _OVERRIDE.sub("", text)


def one_line(text: str) -> str:
    """The text in one line, without controls: what is said of it stands behind it."""
    return without_controls(" ".join(text.split()))


def isolated(text: str) -> str:
    """The name as it can stand within a sentence: one from right to left turns round none of the words beside it."""
    line = one_line(text)
    turns = any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in line)
    return f"{_FIRST_STRONG_ISOLATE}{line}{_POP_ISOLATE}" if turns else line


def decimals(number: float, places: int) -> str:
    """The number with so many decimals, thousands set apart, without a zero before the point: 0.958 is `.958`."""
    text = f"{number:,.{places}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
