"""Run compiled modules as plain Python for a while: compiled code doesn't call hooks."""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock = threading.Lock()
_forced = ExitStack()
_open = 0


@contextmanager
def forced_eager() -> Iterator[None]:
    """Let what `torch.compile` made run uncompiled inside the block.

    Blocks may overlap in any order: the first that opens forces it, the last that closes ends it.
    Graphs that were compiled stay, and run again afterwards. Where torch can't force it (before
    2.6) nothing happens.
    """
    global _open
    # Importing the compiler takes seconds, and nothing is compiled as long as it isn't there.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with _lock:
        if not _open:
            _forced.enter_context(torch.compiler.set_stance("force_eager"))
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                _forced.close()
