"""Lets PyTorch be imported into a process of TensorFlow, for a Prediction, a comparison or an exchange of weights."""

import sys

import keras


def keep_triton_away() -> None:
    """Lets an import of triton fail in a process of TensorFlow, where it would end the process.

    Both bring an LLVM of their own, and loading the second is a segmentation fault. PyTorch imports triton by itself,
    to look whether it is there, and does without it.
    """
    if keras.backend.backend() == "tensorflow" and "triton" not in sys.modules:
        sys.modules["triton"] = None  # type: ignore[assignment]
