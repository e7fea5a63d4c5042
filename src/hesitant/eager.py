"""Keeps what a compiler cannot follow out of its graphs."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def run_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function run as it stands where a model is compiled.

    ``torch.compiler.disable`` would import the compiler at once, which takes seconds that most never need.
    """
    return _disable_dynamo(function)
