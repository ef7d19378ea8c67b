"""Watch a model through forward hooks for a while, and count its layers' states."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.channel_axis import n_neurons
from tensorstate_callbacks.recording.class_labels import BatchLabels
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.torch.activations import (
    OutputFn,
    count_samples,
    find_tensor,
    input_tensor,
    is_ordinary,
    is_symbolic,
    no_tensor_error,
    output_tensor,
    plain,
    strided,
    under_transform,
)
from tensorstate_callbacks.torch.batch_rows import BatchRows
from tensorstate_callbacks.torch.channel_axis import ChannelAxes, Found, describe_guesses
from tensorstate_callbacks.torch.following import Follower
from tensorstate_callbacks.torch.hooks import Hooks, is_first_run, takes_hooks
from tensorstate_callbacks.torch.layers import is_dense_call, unwrap
from tensorstate_callbacks.torch.masks import Masks, Seen, called_batch
from tensorstate_callbacks.torch.picking import FirstPass, PickedLayers
from tensorstate_callbacks.torch.tensor_recorder import Layout, TensorRecorder

# Layouts of tensors remembered; where sizes vary without end, all are forgotten now and then.
_MOST_LAYOUTS = 4096


class _Call(NamedTuple):
    """A call of a layer, as a probe sees it.

    Attributes:
        probe: The probe.
        layer: The layer's name.
        module: The layer.
        source: What the layer was given.
        value: What the probe looks at: that, or what the layer gave.
    """

    probe: str
    layer: str
    module: nn.Module
    source: Any
    value: Any


class _Decided(NamedTuple):
    """What was decided for the tensors of a probe that are of one shape.

    Attributes:
        layout: How they lie in memory, and what counts them.
        revision: Of the axes, as it was found out.
    """

    layout: Layout
    revision: int


class Watch:
    """Looks at the calls of the probed modules and hands their activations to a recorder.

    A call's activations are counted before the hook returns: an in-place activation may overwrite
    them right after.

    Args:
        recorder: Takes the states.
        layers: The probed modules under their names.
        settings: Which sides of a module are probed.
        axes: Finds the axis of the neurons.
        output_fn: `(name, output)` to the tensor to count, or None to leave it to the rules.
        masks: Tells which positions count.
        labels: Finds the labels of a batch, where states are counted by class.
        hooks: What its hooks are made of.

    Attributes:
        active: Calls are looked at.
        rows: Leaves out the samples of a batch that another process counts.
        sees_padding: Padding would be counted: some activations were no nested tensors, which have
            none.
    """

    def __init__(
        self,
        recorder: TensorRecorder,
        layers: PickedLayers,
        settings: Settings,
        axes: ChannelAxes,
        output_fn: OutputFn | None = None,
        *,
        masks: Masks,
        labels: BatchLabels,
        hooks: Hooks,
    ) -> None:
        self.hooks, self.masks, self._labels = hooks, masks, labels
        self._recorder = recorder
        self._layers = layers
        self._settings = settings
        self._axes = axes
        self._output_fn = output_fn
        self._first = FirstPass(layers)
        self._follower = Follower(axes)
        axes.follower = self._follower
        # How often the model was run, as far as that shows, and in which run each width came first.
        self._n_runs = 0
        self._by_batch = False
        self._widths: dict[str, dict[int, int]] = {}
        self._without_tensor: dict[str, str] = {}
        self._decided: dict[tuple[str, tuple[int, ...], int | None], _Decided] = {}
        self._handles: dict[str, list[RemovableHandle]] = {}
        self.active = True
        self.sees_padding = False
        self.rows = BatchRows()

    def open(self, model: nn.Module) -> None:
        """Hook the probed modules, and all while their axes depend on what came before them."""
        for name, module in self._first.begin(model).items():
            if takes_hooks(module):
                see = partial(self._see_aside, name)
                self._add_hook(name, module.register_forward_pre_hook, see)
        # Without hooks a layer will be found to have seen nothing, which is warned of.
        for name, layer in filter(lambda item: takes_hooks(item[1]), self._layers.items()):
            before, after = self._settings.probe_names(name)
            if before is not None:
                see = partial(self._see_input, before, name)
                self._add_hook(name, layer.register_forward_pre_hook, see)
            if after is not None:
                see = partial(self._see_output, after)
                self._add_hook(name, layer.register_forward_hook, see)
            elif name in self._layers.tentative:
                self._add_hook(name, layer.register_forward_hook, partial(self._verify, name))
        root = unwrap(model)
        if takes_hooks(root) and not self._by_batch:
            self._add_hook("", root.register_forward_pre_hook, self._begin_run)
            self._add_hook("", root.register_forward_hook, self._end_run)
        self.masks.add_hooks(self.hooks, lambda: self.active)
        self._axes.awaited = self._awaited()
        if self._axes.awaited and not self._axes.is_settled():
            self._follower.add_hooks(model, self.hooks.make)

    def close(self, model: nn.Module) -> None:
        """Remove all hooks; may be called again."""
        self.masks.end()
        self._recorder.begin_batch(None)
        self.hooks.is_open = False
        self._follower.remove_hooks()
        for name in list(self._handles):
            self._remove_hooks_of(name)
        self.hooks.remove_left(model)

    def resume(self, batch: Any = None, n_samples: int | None = None) -> None:
        """Look at calls from here on, as those of a new batch.

        Args:
            batch: The batch; None where it isn't known.
            n_samples: How many samples it has, where that is known.

        Raises:
            ProbeError: States are counted by class, and the batch has no labels.
        """
        self._by_batch = self.active = True
        self._n_runs += 1
        self.masks.begin_batch(batch, n_samples)
        if self._labels.is_on:
            known = None if batch is None else self._labels.of_batch(batch, n_samples)
            self._recorder.begin_batch(known)

    def pause(self) -> None:
        """Look at no calls until `resume`."""
        self._by_batch = True
        if self.active:
            self.find_output()
        self.active = False

    def find_output(self) -> None:
        """Leave out the layer that makes the output: of those called so far, the last."""
        output, done = self._first.find_output()
        if output is not None:
            self._leave_out(output)
        for name in done:
            self._remove_hooks_of(name)

    def conclude(self) -> dict[str, str]:
        """End the pass, and return its warnings: kinds to texts."""
        self.find_output()
        warned = {}
        silent = [n for n in self._recorder.unseen() if n in self._without_tensor]
        if silent:
            self._recorder.drop(silent)
            gave = ", ".join(f"{name} (a {self._without_tensor[name]})" for name in silent)
            warned["tensor"] = (
                f"left out, since they took or gave no tensor that could be counted: {gave}. "
                "Exclude them, or give output_fn=(name, output) -> tensor"
            )
        if self._axes.guesses:
            warned["axis"] = describe_guesses(self._axes.guesses)
        warned |= self.masks.warnings(self._recorder.dropped)
        warned |= self._labels.warnings()
        uncovered = self._first.uncovered()
        if uncovered is not None:
            warned["weights"] = uncovered
        return warned

    def _add_hook(
        self, name: str, register: Callable[..., RemovableHandle], see: Callable[..., object]
    ) -> None:
        handle = register(self.hooks.make(see), with_kwargs=True)
        self._handles.setdefault(name, []).append(handle)

    def _remove_hooks_of(self, name: str) -> None:
        for handle in self._handles.pop(name, ()):
            handle.remove()

    def _leave_out(self, name: str) -> None:
        self._remove_hooks_of(name)
        probes = [probe for probe in self._settings.probe_names(name) if probe]
        self._recorder.drop(probes)
        self._axes.awaited -= {*probes}
        self._layers.leave_out(name)

    def _awaited(self) -> set[str]:
        return {
            probe
            for name, layer in self._layers.items()
            for probe in self._settings.probe_names(name)
            if probe and self._axes.need_following([layer])
        }

    def _begin_run(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.active and not self._by_batch and is_first_run():
            self._n_runs += 1
            self.rows.n_samples = count_samples(args, kwargs)
            self.masks.begin_run(module, args, kwargs)
            if self._labels.is_on:
                batch = called_batch(module, args, kwargs)
                self._recorder.begin_batch(self._labels.of_batch(batch, self.rows.n_samples))

    def _end_run(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.active and not self._by_batch and is_first_run():
            self.find_output()

    def _see_aside(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.active and is_first_run():
            self._first.see(name)

    def _verify(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> bool:
        """Tell whether a layer is one of those that are meant; where it isn't, leave it out."""
        if name in self._layers.tentative:
            if not is_dense_call(module, input_tensor(args, kwargs), find_tensor(output)):
                self._leave_out(name)
                return False
            self._layers.tentative.discard(name)
        return True

    def _see_input(
        self, probe: str, name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        if not (self.active and is_first_run()):
            return
        if args and self._count_as_before(probe, args[0]):
            return
        self._first.see(name)
        tensor = input_tensor(args, kwargs)
        if tensor is not None:
            given = (*args, *kwargs.values())
            self._count(_Call(probe, name, module, given, given), tensor)
        elif len(self._layers) > 1:
            self._without_tensor[probe] = "call without a tensor"
        else:
            raise ProbeError(f"layer {name!r} was called without a tensor: exclude it")

    def _see_output(
        self, name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        if not (self.active and is_first_run()) or self._count_as_before(name, output):
            return
        if not self._verify(name, module, args, kwargs, output):
            return
        self._first.see(name)
        tensor = output_tensor(name, output, self._output_fn)
        if tensor is not None:
            given = (*args, *kwargs.values())
            self._count(_Call(name, name, module, given, output), tensor)
        elif len(self._layers) > 1:
            self._without_tensor[name] = type(output).__name__
        else:
            raise no_tensor_error(name, output)

    def _count(self, call: _Call, tensor: torch.Tensor) -> None:
        if is_symbolic(tensor):
            return
        try:
            found = self._axes.find(call.probe, call.layer, call.module, tensor)
            if under_transform():
                with plain(tensor, found.axis) as (inner, axis):
                    self._observe(call, inner, Found(axis, found.is_sure))
            else:
                self._observe(call, tensor, found)
                self._remember(call.probe, call.module, tensor, found)
        except ProbeError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._failed(call.probe, error) from error

    @staticmethod
    def _failed(probe: str, error: Exception) -> ProbeError:
        return ProbeError(f"layer {probe!r} could not be counted: {error}")

    def _count_as_before(self, probe: str, value: Any) -> bool:
        """Count what a module took or gave if it is a tensor like one that was counted before.

        Nearly all are, and to decide all about them anew would take longer than to count them.
        """
        if not is_ordinary(value):
            return False
        decided = self._decided.get((probe, value.shape, self.rows.n_samples))
        if (
            decided is None
            or decided.revision != self._axes.revision
            or self._follower.is_on()
            or not self.rows.keeps_all()
            or self.masks.is_on
        ):
            return False
        try:
            return decided.layout.count(value)
        except Exception as error:
            raise self._failed(probe, error) from error

    def _remember(self, probe: str, module: nn.Module, tensor: torch.Tensor, found: Found) -> None:
        if self._output_fn is not None or self._first.awaits_calls() or self.masks.is_on:
            return
        if self._recorder.classes is not None:
            # What is counted by class isn't counted in place.
            return
        if not (is_ordinary(tensor) and self._axes.is_fixed(probe, tensor.ndim)):
            return
        view, axis, sample_axis = self.rows.by_sample(module, tensor, found.axis)
        layout = self._recorder.layout_of(probe, view, axis, sample_axis, tensor.stride())
        if layout is not None:
            if len(self._decided) >= _MOST_LAYOUTS:
                self._decided.clear()
            key = probe, tensor.shape, self.rows.n_samples
            self._decided[key] = _Decided(layout, self._axes.revision)

    def _observe(self, call: _Call, tensor: torch.Tensor, found: Found) -> None:
        probe, module, masks = call.probe, call.module, self.masks
        if not (found.is_sure or tensor.is_nested):
            self._check_width(probe, n_neurons(found.axis, tensor.shape), found)
        if not tensor.is_nested:
            self.sees_padding = True
        packed = masks.packed_parts(call.value, tensor, found.axis, self.rows.n_own)
        if packed is not None:
            for part in packed:
                self._recorder.observe_tensor(probe, *part)
            return
        own = self.rows.own(probe, module, tensor, found.axis)
        if own is None:
            return
        n_own = None if own is tensor else self.rows.n_own
        first = None if n_own is None else np.arange(n_own)
        if own.is_nested:
            self._recorder.observe_tensor(probe, own, found.axis, samples=first)
            return
        plain_own = strided(own)
        view = self.rows.by_sample(module, plain_own, found.axis, n_own)
        if not masks.is_on:
            self._recorder.observe_tensor(probe, *view, first)
            return
        source = find_tensor(call.source)
        seen = Seen(probe, call.layer, plain_own, found.axis, view, n_own, source)
        for part in masks.parts(seen):
            some = first if part.samples is None else part.samples
            self._recorder.observe_tensor(probe, *part._replace(samples=some))

    def _check_width(self, probe: str, width: int, found: Found) -> None:
        """Raise an error where a later run of the model has another number of neurons."""
        widths = self._widths.setdefault(probe, {})
        first_run = min(widths.values(), default=self._n_runs)
        if width not in widths and first_run < self._n_runs:
            raise ValueError(
                f"the axis of its neurons, {found.axis}, has {width} entries, and had "
                f"{' or '.join(map(str, widths))} in an earlier batch: it is none of neurons. Give "
                "the right one with channel_axis="
            )
        widths.setdefault(width, self._n_runs)
