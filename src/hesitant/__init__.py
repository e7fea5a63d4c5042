"""hesitant makes a deep classifier know when it does not know.

A name is imported when it is first asked for, from the room that has it: users of one part pay for no other.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesitant.evaluation import DeferralPolicy, calibrate, compare
    from hesitant.methods import SNGP, DeepEnsemble, Deterministic, MCDropout
    from hesitant.prediction import Prediction
    from hesitant.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "SNGP",
    "DeepEnsemble",
    "DeferralPolicy",
    "Deterministic",
    "History",
    "MCDropout",
    "Prediction",
    "calibrate",
    "compare",
    "fit",
]

_NAMES = {
    "evaluation": ("DeferralPolicy", "calibrate", "compare"),
    "methods": ("SNGP", "DeepEnsemble", "Deterministic", "MCDropout"),
    "prediction": ("Prediction",),
    "training": ("History", "fit"),
}
_ROOMS = (*_NAMES, "data", "detection", "integrations", "keras", "nn", "plots", "report")


def __getattr__(name: str) -> Any:
    """Answers a public name or a room, which is an attribute from then on."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    for room, names in _NAMES.items():
        if name in names:
            globals()[name] = thing = getattr(importlib.import_module(f"{__name__}.{room}"), name)
            return thing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
