"""Keeps what a compiler cannot follow out of its graphs."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def run_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function run as it stands where a model is compiled.

    ``torch.compiler.disable`` would import the compiler at once, which takes seconds that most never need.
    """
    return _disable_dynamo(function)


def exporting() -> bool:
    """Answers whether a model is being traced for export, after which no code of ours runs any more."""
    # torch.compiler.is_exporting came with torch 2.7; before it, tracing for export reads as compiling.
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    return bool(is_exporting()) if is_exporting is not None else False
