"""Find the tensor to count in a module's call, as PyTorch shows it to hooks."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.torch.activations import find_tensor

OutputFn: TypeAlias = Callable[[str, Any], torch.Tensor | None]

# What torch.jit.is_tracing asks: a hook's every function has to come from memory.
_graph_task = torch._C._current_graph_task_id
_is_tracing = torch._C._is_tracing


def input_tensor(args: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the first tensor among a call's arguments, or None."""
    return find_tensor((args, dict(kwargs)))


def output_tensor(name: str, output: Any, output_fn: OutputFn | None) -> torch.Tensor | None:
    """Return the tensor that holds the activations in what a module gave, or None.

    Args:
        name: The layer.
        output: What it gave.
        output_fn: `(name, output)` to the tensor, or None to leave it to `find_tensor`.
    """
    tensor = None if output_fn is None else output_fn(name, output)
    return find_tensor(output) if tensor is None else tensor


def no_tensor_error(name: str, output: Any) -> ProbeError:
    """Return the error that a layer gave nothing to count."""
    return ProbeError(
        f"layer {name!r} gave a {type(output).__name__} without a tensor in it: exclude it, or "
        "give output_fn=(name, output) -> tensor"
    )


def is_first_run() -> bool:
    """Tell a call of the model's from one that repeats it or only writes it down.

    Checkpointing runs the forward pass again inside the backward pass; `torch.jit.trace` runs it
    to see what it does.
    """
    return _graph_task() == -1 and not _is_tracing()


def is_symbolic(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor has a shape but no numbers: on `meta`, or while a graph is exported."""
    # By its name: its module is no public one, and not always loaded.
    return tensor.is_meta or type(tensor).__name__ == "FakeTensor"


def takes_hooks(module: nn.Module) -> bool:
    """Tell whether hooks can be hung on a module; TorchScript takes none."""
    return not isinstance(module, torch.jit.RecursiveScriptModule)  # type: ignore[attr-defined]


def fast_modules(model: nn.Module) -> set[nn.Module]:
    """Return encoder layers that nobody has hooked, and what is in them.

    A hook changes how torch runs them, and with it the last bits of what they give.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    parts = [list(layer.modules()) for layer in layers]
    return {m for each in parts if not any(map(_is_hooked, each)) for m in each}


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
