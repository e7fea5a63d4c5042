"""The data sets of the demos and benchmarks: two moons, drawn; scanned digits, MNIST and Fashion-MNIST, real."""

from hesitant.data.digits import Digits, digits
from hesitant.data.mnist import LabelledImages, fashion_mnist, mnist
from hesitant.data.two_moons import TwoMoons, two_moons, two_moons_grid, two_moons_ood

__all__ = [
    "Digits",
    "LabelledImages",
    "TwoMoons",
    "digits",
    "fashion_mnist",
    "mnist",
    "two_moons",
    "two_moons_grid",
    "two_moons_ood",
]
