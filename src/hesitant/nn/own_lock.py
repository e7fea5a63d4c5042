"""A lock for modules, which are copied, pickled and sent to other processes."""

import threading


class OwnLock:
    """A lock whose copies, and pickles, are locks of their own: what they guard is a copy too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["OwnLock"], tuple[()]]:
        return OwnLock, ()
