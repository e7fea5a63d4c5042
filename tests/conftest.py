"""What all tests share."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest

# Where Keras is imported beside PyTorch, as for the pages of its API; what runs on each backend has its own processes.
os.environ.setdefault("KERAS_BACKEND", "torch")


def pytest_collection_finish() -> None:
    """Keeps what collecting has made (libraries, cases) out of the collector's rounds: ``fit`` asks for a full one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_accelerator_is_left() -> Iterator[None]:
    """Forgets what the Trainers and the loops of a module have told Accelerate, which keeps it for the process."""
    yield
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
