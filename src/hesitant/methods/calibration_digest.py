"""By what a prediction's calibration is known again: what a policy was calibrated on is what it may decide about."""

import hashlib
from typing import Any

from hesitant.methods.temperature import Tempered


def calibration_digest(method: Tempered, **options: Any) -> str:
    """Answers 16 hexadecimal digits of a method and its calibration, and of the options that it predicts with.

    The weights have no part in it: a calibration is forgotten where they are trained by ``fit``.
    """
    return hashlib.sha256(repr((method.calibration_state(), sorted(options.items()))).encode()).hexdigest()[:16]
