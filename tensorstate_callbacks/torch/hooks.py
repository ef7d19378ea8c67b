"""Hook modules, and tell which calls a hook should look at; compiled code calls no hooks."""

import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tensorstate_callbacks.errors import TensorStateWarning

# What torch.jit.is_tracing asks: a hook's every function has to come from memory.
_graph_task = torch._C._current_graph_task_id
_is_tracing = torch._C._is_tracing


class Hooks:
    """The hooks of one recording, which look at calls only while it is open.

    A hook that an interrupt has left on a module looks at nothing, and with the module's next call
    all is taken off.

    Args:
        close: Ends the recording, weakly held.

    Attributes:
        is_open: Whether the recording was opened, and not closed.
        block: The exit of the `with` block that opened it, weakly held; None where it isn't known.
    """

    def __init__(self, close: "weakref.WeakMethod[Callable[[], None]]") -> None:
        self._close = close
        self.is_open = False
        self.block: weakref.ref[Any] | None = None

    @property
    def active(self) -> bool:
        """Whether the recording is open."""
        return self.is_open and (self.block is None or self.block() is not None)

    def take_off(self) -> None:
        """End the recording, whose block is over."""
        close = self._close()
        if close is not None:
            close()

    def make(self, see: Callable[..., object]) -> "Hook":
        """Return a hook that has a function look at a module's calls."""
        return Hook(see, self)

    def remove_left(self, model: nn.Module) -> None:
        """Remove the hooks that are left on a model's modules, these and those of closed ones."""
        for module in model.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for hook in list(hooks.values()):
                    if isinstance(hook, Hook) and (hook.hooks is self or not hook.hooks.active):
                        unhook(module, hook)


class Hook:
    """A hook that stays behind when its module is copied or pickled.

    Without that a copy of the model, made during an evaluation, would count into the original's
    counters.

    Attributes:
        hooks: Those that it is one of.
    """

    def __init__(self, see: Callable[..., object], hooks: Hooks) -> None:
        self._see, self.hooks = see, hooks

    def __call__(self, module: nn.Module, *args: Any) -> None:
        """Look at a module's call; the return value None leaves the call as it is."""
        if not self.hooks.active:
            unhook(module, self)
            self.hooks.take_off()
        # While a graph is compiled there are no numbers, and ours are no part of the user's graph.
        elif not torch.compiler.is_compiling():
            self._see(module, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _idle_hook, ()


def unhook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Remove a hook from a module, whose handle may have been lost in an interrupt."""
    after, before = module._forward_hooks, module._forward_pre_hooks
    options = (
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
        module._forward_pre_hooks_with_kwargs,
    )
    for key in [key for key, each in (*after.items(), *before.items()) if each is hook]:
        for entries in (after, before, *options):
            entries.pop(key, None)


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


class forced_eager:  # noqa: N801 (as torch names its own)
    """Lets what `torch.compile` made run uncompiled inside the block.

    Blocks may overlap in any order: the first that opens forces it, the last that closes ends it.
    Graphs that were compiled stay, and run again afterwards. Where torch can't force it (before
    2.6) nothing happens.

    Args:
        warn: Whether it matters that what ran compiled has called no hooks.

    Warns:
        TensorStateWarning: The compiler was used for the first time inside the block.
    """

    def __init__(self, *, warn: bool = True) -> None:
        self._warn = warn
        # Importing the compiler takes seconds, and nothing is compiled as long as it isn't there.
        self._is_needed = False

    def __enter__(self) -> None:
        """Force it."""
        self._is_needed = "torch._dynamo" in sys.modules
        try:
            if self._is_needed:
                _stance.force(self)
        except BaseException as error:
            self.__exit__(error)
            raise

    def __exit__(self, error: object = None, *_: object) -> None:
        """End it; may be called again."""
        if self._is_needed:
            _stance.let_go(self)
        elif self._warn and error is None and hasattr(torch.compiler, "set_stance"):
            self._warn = False
            _warn_if_just_compiled()


class _Stance:
    """Holds the compiler off while anybody asks for it."""

    def __init__(self) -> None:
        # An interrupt must not lock the thread out that it leaves it to.
        self._lock = threading.RLock()
        # Weak: a block that an interrupt has left open ends with its owner.
        self._asking: weakref.WeakSet[forced_eager] = weakref.WeakSet()
        self._changed = False
        self._forced: Any = None

    def force(self, block: forced_eager) -> None:
        if hasattr(torch.compiler, "set_stance"):
            with self._lock:
                self._asking.add(block)
                if self._forced is None:
                    self._changed = True
                    self._forced = torch.compiler.set_stance("force_eager")

    def let_go(self, block: forced_eager) -> None:
        with self._lock:
            self._asking.discard(block)
            if self._changed and not self._asking:
                if self._forced is not None:
                    self._forced.__exit__(None, None, None)
                else:
                    # An interrupt came between the change and what takes it back.
                    torch.compiler.set_stance("default")
                self._forced, self._changed = None, False


_stance = _Stance()


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
