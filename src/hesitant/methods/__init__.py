"""The methods: one file each, one interface."""

from hesitant.methods.deterministic import Deterministic
from hesitant.methods.sngp import SNGP

__all__ = ["SNGP", "Deterministic"]
