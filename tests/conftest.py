"""What all tests share."""

import gc


def pytest_collection_finish() -> None:
    """Keeps what collecting has made (libraries, cases) out of the collector's rounds: ``fit`` asks for a full one."""
    gc.collect()
    gc.freeze()
