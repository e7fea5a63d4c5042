"""Lets PyTorch be imported beside TensorFlow, for a Prediction, a comparison or an exchange of weights."""

import importlib.util
import sys

import keras


def keep_triton_away() -> None:
    """Lets an import of triton fail where TensorFlow is or may come, where it would end the process.

    Both bring an LLVM of their own, and loading triton's second is a segmentation fault. PyTorch imports triton by
    itself, to look whether it is there, and does without it. Keras loads TensorFlow, where it is installed, on JAX as
    well; its PyTorch backend has loaded triton before, which is the order that works.
    """
    if keras.backend.backend() == "torch" or "triton" in sys.modules:
        return
    if importlib.util.find_spec("tensorflow") is not None:
        sys.modules["triton"] = None  # type: ignore[assignment]
