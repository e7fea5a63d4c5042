"""The methods: one file each, one interface."""

from hesitant.methods.deep_ensemble import DeepEnsemble
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.sngp import SNGP

__all__ = ["SNGP", "DeepEnsemble", "Deterministic", "MCDropout"]
