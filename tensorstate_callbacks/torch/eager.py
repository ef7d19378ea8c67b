"""Run compiled modules as plain Python for a while, or warn: compiled code calls no hooks."""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tensorstate_callbacks.errors import TensorStateWarning

_lock = threading.Lock()
_forced = ExitStack()
_open = 0


@contextmanager
def forced_eager(*, warn: bool = True) -> Iterator[None]:
    """Let what `torch.compile` made run uncompiled inside the block.

    Blocks may overlap in any order: the first that opens forces it, the last that closes ends it.
    Graphs that were compiled stay, and run again afterwards. Where torch can't force it (before
    2.6) nothing happens.

    Args:
        warn: Whether it matters that what ran compiled has called no hooks.

    Warns:
        TensorStateWarning: The compiler was used for the first time inside the block.
    """
    global _open
    if not hasattr(torch.compiler, "set_stance"):
        yield
        return
    # Importing the compiler takes seconds, and nothing is compiled as long as it isn't there.
    if "torch._dynamo" not in sys.modules:
        yield
        if warn:
            _warn_if_just_compiled()
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


def _warn_if_just_compiled() -> None:
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["frames"]:
        warnings.warn(
            "torch.compile was used for the first time while states were recorded: what ran "
            "compiled has called no hooks, and its states are missing. Compile the model before",
            TensorStateWarning,
            stacklevel=2,
        )


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
