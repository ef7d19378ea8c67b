"""A lock for objects that are copied and pickled."""

import threading
from typing import Any


class FreshLock:
    """A reentrant lock whose copy, or pickle, is a new lock that nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return FreshLock, ()
