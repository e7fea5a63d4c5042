"""The data sets of the demos: two moons, drawn; scanned digits, real and without a download."""

from hesitant.data.digits import Digits, digits
from hesitant.data.two_moons import TwoMoons, two_moons, two_moons_grid, two_moons_ood

__all__ = ["Digits", "TwoMoons", "digits", "two_moons", "two_moons_grid", "two_moons_ood"]
