"""Call a function in a process whose memory can be watched."""

import gc
import json
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_child(work: Callable[[], Any]) -> Any:
    """Call `work` in a copy of this process, so that no memory of earlier work is used again.

    Args:
        work: Returns something that JSON can hold. It runs before any other thread is started.

    Raises:
        RuntimeError: It failed.
    """
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(source)
            with os.fdopen(sink, "w") as stream:
                json.dump(work(), stream)
            status = 0
        except BaseException:  # noqa: BLE001 (the parent raises)
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(sink)
    with os.fdopen(source) as stream:
        text = stream.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError("a measurement of memory failed")
    return json.loads(text)


class Growth:
    """How much more memory this process has held since it was created, at the most."""

    def __init__(self) -> None:
        gc.collect()
        # Writing 5 sets the highest number back to the present one.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak()

    @staticmethod
    def measurable() -> bool:
        """Tell whether the system says how much memory a process held."""
        return Path("/proc/self/clear_refs").exists()

    def peak(self) -> int:
        """Return it in bytes."""
        return self._peak() - self._before

    @staticmethod
    def _peak() -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) << 10 if found else 0
