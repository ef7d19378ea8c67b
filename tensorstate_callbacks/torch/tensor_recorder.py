"""Count the states of tensors wherever they lie; on an accelerator without waiting for it."""

import math
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.budget import WHOLE, Sampling
from tensorstate_callbacks.recording.channel_axis import Axis, folded_sample_axis, normal_axes
from tensorstate_callbacks.recording.class_counts import Samples
from tensorstate_callbacks.recording.class_problems import SHORT
from tensorstate_callbacks.recording.pass_counts import Width
from tensorstate_callbacks.recording.probe_counter import Grid, ProbeCounter, Rows
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.counter import Memory
from tensorstate_callbacks.states.positions import grid_of
from tensorstate_callbacks.torch.activations import host_memory, on_one_axis, strided
from tensorstate_callbacks.torch.counting_threads import CountingThreads
from tensorstate_callbacks.torch.device_states import DeviceStates
from tensorstate_callbacks.torch.device_tables import DeviceTables
from tensorstate_callbacks.torch.helping_threads import helping_threads
from tensorstate_callbacks.torch.row_transfers import OUT_OF_MEMORY, RowTransfers


class TensorRecorder(Recorder):
    """A Recorder of tensors, which doesn't wait for the devices that they lie on.

    What lies in host memory is counted at once. On an accelerator groups are counted where they
    lie; of whole layers states are packed there, 1/32 of what float32 activations take, and counted
    on the host by threads of its own while the model goes on. Both are there when counts are asked
    for.
    """

    def __init__(
        self, names: Iterable[str], *, threshold: float = 0.0, sampling: Sampling = WHOLE
    ) -> None:
        super().__init__(names, threshold=threshold, sampling=sampling, n_threads=helping_threads())
        self._states = DeviceStates(threshold)
        self._threads = CountingThreads(self._keep_error)
        self._transfers = RowTransfers(self._threads)
        self._tables: DeviceTables | None = None
        if sampling.group_size is not None:
            self._tables = DeviceTables(sampling.group_size, self._states, self._threads)
        # An error that nobody was told of so far.
        self._failure: ProbeError | None = None
        # An interrupt must not lock the thread out that it leaves it to.
        self._device_lock = threading.RLock()

    def probe_counters(self) -> dict[Width, ProbeCounter]:
        """Return what counts each probe and number of neurons, in the order of `counters`.

        Raises:
            ProbeError: States that a device had could not be counted; names the layer.
        """
        try:
            with self._device_lock:
                self._transfers.send()
                if self._tables is not None:
                    self._tables.send()
            self._threads.wait()
        except Exception as error:
            raise ProbeError(f"what devices hold could not be counted: {error}") from error
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return super().probe_counters()

    def observe_tensor(
        self,
        name: str,
        tensor: torch.Tensor,
        channel_axis: Axis,
        sample_axis: int | None = 0,
        samples: Samples = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        """Count the states of one batch, now or later.

        Args:
            name: The probe.
            tensor: Activations of any shape, memory and device; may be overwritten afterwards.
            channel_axis: The axis of the neurons, or several that are one unit; may be negative.
            sample_axis: The axis of the samples; None where there is one sample.
            samples: Which of the batch's samples these are; see `Recorder.observe`.
            labels: Of the batch; see `Recorder.observe`.

        Raises:
            ProbeError: They can't be counted; names the layer. What shows only later is raised
                when counts are asked for.
        """
        try:
            if tensor.is_nested:
                # Each component is a sample with positions of its own.
                for number, part in enumerate(tensor.unbind()):
                    axes = [each - 1 for each in normal_axes(channel_axis, (0,) * tensor.ndim)]
                    axis = axes[0] if len(axes) == 1 else tuple(axes)
                    one = np.array([number]) if samples is None else samples[number : number + 1]
                    self._observe(name, part, axis, None, one, labels)
            else:
                self._observe(name, tensor, channel_axis, sample_axis, samples, labels)
        except ProbeError:
            raise
        except Exception as error:
            raise ProbeError(f"layer {name!r} could not be counted: {error}") from error

    def _observe(
        self,
        name: str,
        tensor: torch.Tensor,
        channel_axis: Axis,
        sample_axis: int | None,
        samples: Samples,
        labels: npt.NDArray[Any] | None,
    ) -> None:
        along = folded_sample_axis(sample_axis, channel_axis, tensor.shape)
        tensor, axis = on_one_axis(tensor, channel_axis)
        tensor = strided(tensor)
        if not lies_on_device(tensor):
            activations, bfloat16 = host_memory(tensor)
            self.observe(
                name,
                activations,
                axis,
                sample_axis=along,
                bfloat16=bfloat16,
                samples=samples,
                labels=labels,
            )
            return
        # Reached now: layers that lie elsewhere may be counted before this one. On one thread, as
        # several layers are counted at once.
        counter = self._counter(name, tuple(tensor.shape), axis, n_threads=1)
        grid = grid_of(tensor.shape, axis, along)
        if counter.level is None:
            counter.give_up(grid)
        elif tensor.numel():
            n_samples = None if along is None else tensor.shape[along]
            width = Width(name, counter.n_neurons)
            known = self._labels_of(width, grid, n_samples, samples, labels)
            try:
                with self._device_lock:
                    self._observe_there(name, counter, grid, _by_sample(tensor, axis, along), known)
            except OUT_OF_MEMORY:
                counter.give_up(grid)

    def _observe_there(
        self,
        name: str,
        counter: ProbeCounter,
        grid: Grid,
        values: torch.Tensor,
        labels: npt.NDArray[np.int64] | None,
    ) -> None:
        takers: list[Callable[[Rows], None]] = []
        # mps had no sums of 64-bit integers at first.
        is_counted = self._tables is not None and values.device.type != "mps"
        if self._tables is not None and is_counted:
            self._tables.count(name, counter, grid, values)
        else:
            takers.append(lambda rows: counter.update_packed(rows, grid))
        if self.classes is not None and labels is not None:
            takers.append(
                partial(self.classes.count, Width(name, counter.n_neurons), labels=labels)
            )
        if not takers:
            return
        places = counter.places(grid)
        n_read = math.prod(grid) if places is None else len(places)
        shape = values.shape[0] * n_read, -(-values.shape[-1] // 8)
        write = partial(self._states.pack, values, places)
        try:
            self._transfers.add(name, counter, grid, shape, values.device, write, takers)
        except OUT_OF_MEMORY:
            if self.classes is None or not is_counted:
                raise
            # Only classes need the rows.
            self.classes.give_up(Width(name, counter.n_neurons), SHORT)

    def layout_of(
        self,
        name: str,
        tensor: torch.Tensor,
        channel_axis: Axis,
        sample_axis: int | None,
        strides: tuple[int, ...],
    ) -> "Layout | None":
        """Return how a tensor's memory is to be counted; None where it isn't counted in place.

        Args:
            name: The probe.
            tensor: Activations in strided memory on the host.
            channel_axis: As for `observe_tensor`.
            sample_axis: As for `observe_tensor`.
            strides: Of the tensor that it is a view of, in entries.
        """
        if not isinstance(channel_axis, int) or lies_on_device(tensor):
            return None
        memory, bfloat16 = host_memory(tensor)
        if not isinstance(memory, Memory):
            return None
        counter = self._counter(name, tuple(tensor.shape), channel_axis)
        count = partial(
            counter.update,
            channel_axis=channel_axis,
            threshold=self._threshold,
            sample_axis=folded_sample_axis(sample_axis, channel_axis, tensor.shape),
            bfloat16=bfloat16,
        )
        return Layout(memory, tensor.dtype, strides, count)

    def _keep_error(self, name: str, error: Exception) -> None:
        """Keep why a layer could not be counted: without it there is no report."""
        if name not in self.dropped and self.error is None:
            failure = ProbeError(f"layer {name!r} could not be counted: {error}")
            failure.__cause__ = error
            self.error = self._failure = failure


class Layout(NamedTuple):
    """How tensors of one kind lie in the host's memory, and what counts them.

    Attributes:
        memory: Of one of them.
        dtype: Theirs.
        strides: Theirs, in entries.
        update: Counts the states of a memory.
    """

    memory: Memory
    dtype: torch.dtype
    strides: tuple[int, ...]
    update: Callable[[Memory], None]

    def count(self, tensor: torch.Tensor) -> bool:
        """Count the states of a tensor of the same shape; False where it lies otherwise."""
        if tensor.dtype is not self.dtype or tensor.stride() != self.strides or tensor.is_neg():
            return False
        _, shape, strides, dtype = self.memory
        self.update(Memory(tensor.data_ptr(), shape, strides, dtype))
        return True


def lies_on_device(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's memory is an accelerator's."""
    return not tensor.is_cpu


def _by_sample(tensor: torch.Tensor, channel_axis: int, sample_axis: int | None) -> torch.Tensor:
    """Return a view whose first axis is that of samples, and the last that of neurons."""
    tensor = tensor.movedim(channel_axis, -1)
    if sample_axis is None:
        return tensor.unsqueeze(0)
    channel = channel_axis % tensor.ndim
    return tensor.movedim(sample_axis - (channel < sample_axis), 0)
