"""Hook modules, and tell which calls a hook should look at; compiled code calls no hooks."""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tensorstate_callbacks.errors import TensorStateWarning

# What torch.jit.is_tracing asks: a hook's every function has to come from memory.
_graph_task = torch._C._current_graph_task_id
_is_tracing = torch._C._is_tracing

_lock = threading.Lock()
_forced = ExitStack()
_open = 0


class Hook:
    """A hook that stays behind when its module is copied or pickled.

    Without that a copy of the model, made during an evaluation, would count into the original's
    counters.
    """

    def __init__(self, see: Callable[..., object]) -> None:
        self._see = see

    def __call__(self, *args: Any) -> None:
        """Look at a module's call; the return value None leaves the call as it is."""
        # While a graph is compiled there are no numbers, and ours are no part of the user's graph.
        if not torch.compiler.is_compiling():
            self._see(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _idle_hook, ()


def takes_hooks(module: nn.Module) -> bool:
    """Tell whether a module takes hooks; TorchScript takes none."""
    return not isinstance(module, torch.jit.RecursiveScriptModule)  # type: ignore[attr-defined]


def fast_modules(model: nn.Module) -> set[nn.Module]:
    """Return encoder layers that nobody has hooked, and what is in them.

    A hook changes how torch runs them, and with it the last bits of what they give.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    parts = [list(layer.modules()) for layer in layers]
    return {m for each in parts if not any(map(_is_hooked, each)) for m in each}


def is_first_run() -> bool:
    """Tell a call of the model's from one that repeats it or only writes it down.

    Checkpointing runs the forward pass again inside the backward pass; `torch.jit.trace` runs it
    to see what it does.
    """
    return _graph_task() == -1 and not _is_tracing()


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


def warn_if_compiled(model: nn.Module) -> None:
    """Warn if hooks that the model gets now may not be called, since it is compiled."""
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


def _warn_if_just_compiled() -> None:
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["frames"]:
        warnings.warn(
            "torch.compile was used for the first time while states were recorded: what ran "
            "compiled has called no hooks, and its states are missing. Compile the model before",
            TensorStateWarning,
            stacklevel=2,
        )


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _idle_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_: Any) -> None:
    return None
