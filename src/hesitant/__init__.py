"""hesitant makes a deep classifier know when it does not know.

A name is imported when it is first asked for, from the room that has it: users of one part pay for no other.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesitant.evaluation import DeferralPolicy, calibrate, compare
    from hesitant.integrations.export import export
    from hesitant.integrations.scorer import Scorer
    from hesitant.methods import SNGP, CovarianceSums, DeepEnsemble, Deterministic, MCDropout, load
    from hesitant.prediction import Prediction
    from hesitant.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "SNGP",
    "CovarianceSums",
    "DeepEnsemble",
    "DeferralPolicy",
    "Deterministic",
    "History",
    "MCDropout",
    "Prediction",
    "Scorer",
    "calibrate",
    "compare",
    "export",
    "fit",
    "load",
]

_NAMES = {
    "evaluation": ("DeferralPolicy", "calibrate", "compare"),
    "integrations.export": ("export",),
    "integrations.scorer": ("Scorer",),
    "methods": ("SNGP", "CovarianceSums", "DeepEnsemble", "Deterministic", "MCDropout", "load"),
    "prediction": ("Prediction",),
    "training": ("History", "fit"),
}
_ROOMS = (
    *(room for room in _NAMES if "." not in room),
    "data",
    "detection",
    "integrations",
    "keras",
    "nn",
    "plots",
    "report",
)


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
