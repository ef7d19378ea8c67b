"""How much memory and how many processors the machine has for this process."""

import os
from contextlib import suppress
from pathlib import Path

# Where Linux says what a container may have; version 2 of control groups, and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN = 8 << 30


def machine_memory() -> int:
    """Return the bytes of memory of this machine or container, by processes that share it.

    Launchers of several processes on one machine say their number in `LOCAL_WORLD_SIZE`.
    """
    found = []
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    try:
        processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    except ValueError:
        processes = 1
    return min((each for each in found if each > 0), default=_UNKNOWN) // processes


def available_processors() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
