"""Forward hooks on some modules for a while; counted states in a Recorder out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.settings import Settings
from tensorstate_callbacks.torch.activations import find_tensor
from tensorstate_callbacks.torch.batch_rows import BatchRows
from tensorstate_callbacks.torch.calls import (
    OutputFn,
    given_out,
    is_first_run,
    is_symbolic,
    taken_in,
    takes_hooks,
)
from tensorstate_callbacks.torch.channel_axis import ChannelAxes
from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder
from tensorstate_callbacks.torch.transforms import plain, under_transform


class Hook:
    """A hook that stays behind when its module is copied or pickled.

    Without that a copy of the model, made during an evaluation, would count into the original's
    counters.
    """

    def __init__(self, see: Callable[..., None]) -> None:
        self._see = see

    def __call__(self, *args: Any) -> None:
        """Look at a module's call; the return value None leaves the call as it is."""
        # While a graph is compiled there are no numbers, and ours are no part of the user's graph.
        if not torch.compiler.is_compiling():
            self._see(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _idle_hook, ()


class Watch:
    """Looks at the calls of the probed modules and hands their activations to a recorder.

    A call's activations are counted before the hook returns: an in-place activation may overwrite
    them right after.

    Args:
        recorder: Takes the states.
        layers: The probed modules under their names.
        settings: Tells which sides of a module are probed.
        axes: Tells the axis of the neurons.
        output_fn: `(name, output)` to the tensor to count, or None to leave it to the rules.

    Attributes:
        active: Calls are looked at only while it is True.
        rows: Leaves out the samples of a batch that another process counts.
    """

    def __init__(
        self,
        recorder: TensorRecorder,
        layers: Mapping[str, nn.Module],
        settings: Settings,
        axes: ChannelAxes,
        output_fn: OutputFn | None = None,
    ) -> None:
        self._recorder = recorder
        self._layers = layers
        self._settings = settings
        self._axes = axes
        self._output_fn = output_fn
        self._follows = axes.need_producers(layers.values())
        self.active = True
        self.rows = BatchRows()

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Hook the probed modules, and those before them where their axes depend on it."""
        with ExitStack() as stack:

            def hang(register: Callable[..., RemovableHandle], see: Callable[..., None]) -> None:
                stack.callback(register(Hook(see), with_kwargs=True).remove)

            if self._follows:
                for module in filter(takes_hooks, model.modules()):
                    hang(module.register_forward_hook, self._see_axis)
            for name, layer in self._layers.items():
                before, after = self._settings.probe_names(name)
                # Without hooks it will be found to have seen nothing, which is warned of.
                if before is not None and takes_hooks(layer):
                    hang(layer.register_forward_pre_hook, partial(self._see_input, before, name))
                if after is not None and takes_hooks(layer):
                    hang(layer.register_forward_hook, partial(self._see_output, after))
            yield

    def _see_input(
        self, probe: str, name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        if not (self.active and is_first_run()):
            return
        tensor = taken_in(args, kwargs)
        if tensor is None:
            raise ProbeError(f"layer {name!r} was called without a tensor: exclude it")
        self._count(probe, module, tensor, partial(self._axes.of_input, name, module))

    def _see_output(
        self, name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        if not (self.active and is_first_run()):
            return
        tensor = given_out(name, output, self._output_fn)
        if self._follows:
            source = taken_in(args, kwargs)
            axis = partial(self._axes.of_output, name, module, source)
        else:
            # Nobody asks for it again, so it is found as an input's is, and not remembered.
            axis = partial(self._axes.of_input, name, module)
        self._count(name, module, tensor, axis)

    def _see_axis(
        self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        tensor = find_tensor(output) if self.active and is_first_run() else None
        if tensor is not None:
            self._axes.note(module, taken_in(args, kwargs), tensor)

    def _count(
        self, probe: str, module: nn.Module, tensor: torch.Tensor, axis: Callable[[Any], int]
    ) -> None:
        if is_symbolic(tensor):
            return
        try:
            if under_transform():
                with plain(tensor, axis(tensor)) as (inner, channel_axis):
                    self._observe(probe, module, inner, channel_axis)
            else:
                self._observe(probe, module, tensor, axis(tensor))
        except ProbeError:
            raise
        except (TypeError, RuntimeError) as error:
            raise ProbeError(f"layer {probe!r} could not be counted: {error}") from error

    def _observe(
        self, probe: str, module: nn.Module, tensor: torch.Tensor, channel_axis: int
    ) -> None:
        own = self.rows.own(probe, module, tensor, channel_axis)
        if own is not None:
            self._recorder.observe_tensor(probe, own, channel_axis)


def _idle_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_: Any) -> None:
    return None
