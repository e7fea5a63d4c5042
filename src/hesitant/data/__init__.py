"""Data sets of the demos and benchmarks, and ``split``, which parts data so that no two parts share an input.

Two moons are drawn (``two_moons``); scanned digits (``digits``), MNIST and Fashion-MNIST (``mnist``, whose files
``idx`` reads) are real. Demos, benchmarks, examples and users call it.
Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.data.digits import Digits, digits
from hesitant.data.mnist import LabelledImages, fashion_mnist, mnist
from hesitant.data.two_moons import GRID_EXTENT as GRID_EXTENT
from hesitant.data.two_moons import TwoMoons, two_moons, two_moons_grid, two_moons_ood
from hesitant.inputs import split

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
