"""Run compiled modules as plain Python for a while, or warn: compiled code calls no hooks."""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from tensorstate_callbacks.errors import TensorStateWarning

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


def warn_if_compiled(model: nn.Module) -> None:
    """Warn if hooks that are hung on the model now may not be called, since it is compiled."""
    if "torch._dynamo" not in sys.modules:
        return
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            what = f"the layer {name!r}" if name else "the model"
            warnings.warn(
                f"{what} is compiled, and compiled code that has run before calls no hooks that "
                "come later: build_efficiency_model first and compile afterwards, or use "
                "tensorstate_callbacks.torch.record, which runs it uncompiled",
                TensorStateWarning,
                stacklevel=4,
            )
            return
