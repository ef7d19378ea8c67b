"""Capture the states of one PyTorch module, by a hook that the user registers."""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from tensorstate_callbacks.errors import ProbeError, TensorStateWarning
from tensorstate_callbacks.recording.channel_axis import Axis
from tensorstate_callbacks.tensorstate.captured_states import CapturedStates
from tensorstate_callbacks.torch.activations import (
    OutputFn,
    input_tensor,
    is_symbolic,
    no_tensor_error,
    on_one_axis,
    output_tensor,
    plain,
    to_host,
    under_transform,
)
from tensorstate_callbacks.torch.channel_axis import ChannelAxes, describe_guesses
from tensorstate_callbacks.torch.hooks import is_first_run

HookAxis: TypeAlias = Axis | Callable[[str, nn.Module, torch.Tensor], Axis | None] | None


class StateCaptureHook(CapturedStates):
    """Captures the states of a module's outputs or inputs, as long as it is registered there.

    Register it as any hook of PyTorch's: `module.register_forward_hook(hook)` captures the module's
    output, `module.register_forward_pre_hook(hook)` its input, both with or without `with_kwargs`.
    It captures in training and in evaluation alike, whenever `capture_on` is True, and is read by
    the methods of `StateReadings`. A copy of the model has a copy of the hook, with counts of its
    own.

    A model that is compiled afterwards breaks its graph at the hook. Code that was compiled and has
    run before calls no new hooks.

    Args:
        name: Name of the layer in messages and in the names of files.
        threshold: A neuron fires where its activation is above it; finite.
        keep_raw: Whether to keep every state in memory, in the order observed, for `raw_states`.
        storage_path: Folder to keep them in on disk instead.
        resume: Whether to go on with the capture that the folder holds.
        channel_axis: Axis of the neurons, several that are one unit together, or a callable
            `(name, module, tensor)` that returns it. None goes by the module's type and
            parameters; where these don't say, the last of up to 3 axes or the second of more is
            taken, and a warning says so.
        output_fn: `(name, output)` to the tensor to capture; see `torch.record`.

    Raises:
        FileExistsError: The folder holds an earlier capture, and `resume` isn't set.
        ProbeError: From the model's call: the activations can't be counted; names the hook.

    Warns:
        TensorStateWarning: The axis of the neurons had to be guessed.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 3)
        >>> hook = StateCaptureHook("layer")
        >>> handle = layer.register_forward_hook(hook)
        >>> _ = layer(torch.ones(10, 4))
        >>> hook.state_count
        10
        >>> handle.remove()
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: float = 0.0,
        keep_raw: bool = False,
        storage_path: str | os.PathLike[str] | None = None,
        resume: bool = False,
        channel_axis: HookAxis = None,
        output_fn: OutputFn | None = None,
    ) -> None:
        super().__init__(
            name,
            threshold=threshold,
            keep_raw=keep_raw,
            storage_path=storage_path,
            resume=resume,
        )
        self._axes = ChannelAxes(channel_axis, {})
        self._output_fn = output_fn
        self._has_warned = False

    def __call__(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """Look at a module's call; the return value None leaves the call as it is.

        Args:
            module: The module.
            args: Its arguments.
            rest: What PyTorch adds: `kwargs` where asked for, then the output, after the call.
        """
        if not self.capture_on:
            return
        if torch.compiler.is_compiling():
            self._see_outside_graph(module, args, rest)
        else:
            self._see(module, args, rest)

    def _see(self, module: nn.Module, args: Any, rest: tuple[Any, ...]) -> None:
        if not is_first_run():
            return
        kwargs, output, has_output = _parts(self, module, rest)
        if has_output:
            tensor = output_tensor(self.name, output, self._output_fn)
            if tensor is None:
                raise no_tensor_error(self.name, output)
        else:
            tensor = input_tensor(args, kwargs)
            if tensor is None:
                raise ProbeError(
                    f"layer {self.name!r} was called without a tensor that the hook can see: "
                    "register it with with_kwargs=True, or leave the layer out"
                )
        if is_symbolic(tensor):
            return
        try:
            found = self._axes.find(self.name, self.name, module, tensor).axis
            if under_transform():
                with plain(tensor, found) as (inner, found):
                    tensor, axis = on_one_axis(inner, found)
                    array = to_host(tensor)
            else:
                tensor, axis = on_one_axis(tensor, found)
                array = to_host(tensor)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProbeError(f"layer {self.name!r} could not be counted: {error}") from error
        self.record(array.values, axis, bfloat16=array.bfloat16)
        if self._axes.guesses and not self._has_warned:
            self._has_warned = True
            warnings.warn(describe_guesses(self._axes.guesses), TensorStateWarning, stacklevel=2)

    # Not torch.compiler.disable, which imports the compiler at once, and takes seconds.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _see_outside_graph(self, module: nn.Module, args: Any, rest: tuple[Any, ...]) -> None:
        self._see(module, args, rest)


def _parts(
    hook: StateCaptureHook, module: nn.Module, rest: tuple[Any, ...]
) -> tuple[Mapping[str, Any], Any, bool]:
    """Return keyword arguments, output, and whether there is an output."""
    if not rest:
        return {}, None, False
    if len(rest) == 2:
        return rest[0], rest[1], True
    # One more: keyword arguments before the call, or the output after it.
    if type(rest[0]) is dict and _is_pre_hook_with_kwargs(hook, module):
        return rest[0], None, False
    return {}, rest[0], True


def _is_pre_hook_with_kwargs(hook: StateCaptureHook, module: nn.Module) -> bool:
    with_kwargs = module._forward_pre_hooks_with_kwargs
    return any(h is hook and key in with_kwargs for key, h in module._forward_pre_hooks.items())
