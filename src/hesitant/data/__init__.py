"""Data in parts that share no input, and the data sets of the demos and benchmarks.

Two moons are drawn; scanned digits, MNIST and Fashion-MNIST are real.
"""

from hesitant.data.digits import Digits, digits
from hesitant.data.mnist import LabelledImages, fashion_mnist, mnist
from hesitant.data.split import split
from hesitant.data.two_moons import TwoMoons, two_moons, two_moons_grid, two_moons_ood

__all__ = [
    "Digits",
    "LabelledImages",
    "TwoMoons",
    "digits",
    "fashion_mnist",
    "mnist",
    "split",
    "two_moons",
    "two_moons_grid",
    "two_moons_ood",
]
