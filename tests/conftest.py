"""What all tests share."""

import gc
import os

# Where Keras is imported beside PyTorch, as for the pages of its API; what runs on each backend has its own processes.
os.environ.setdefault("KERAS_BACKEND", "torch")


def pytest_collection_finish() -> None:
    """Keeps what collecting has made (libraries, cases) out of the collector's rounds: ``fit`` asks for a full one."""
    gc.collect()
    gc.freeze()
