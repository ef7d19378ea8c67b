"""Count the states of tensors wherever they lie; an accelerator packs them into bits first."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.budget import WHOLE, Sampling
from tensorstate_callbacks.recording.channel_axis import Axis, folded_sample_axis, normal_axes
from tensorstate_callbacks.recording.pass_counts import Width
from tensorstate_callbacks.recording.probe_counter import ProbeCounter
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.counter import Memory
from tensorstate_callbacks.states.positions import grid_of
from tensorstate_callbacks.torch.activations import host_memory, on_one_axis, strided
from tensorstate_callbacks.torch.helping_threads import helping_threads

# Copies under way at a time: enough for a device to go on, few enough for its memory.
MOST_UNDER_WAY = 16
# A device's own, and the host's.
_OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)
_WIDER = {torch.uint16: torch.int64, torch.uint32: torch.int64}


class TensorRecorder(Recorder):
    """A Recorder of tensors, which doesn't wait for the devices that they lie on.

    What lies in host memory is counted at once. On an accelerator states are packed, copied while
    the device goes on, and counted when the copy has arrived: as further tensors come, at the
    latest when counts are asked for. Only the bits travel, 1/32 of what float32 activations would.
    """

    def __init__(
        self, names: Iterable[str], *, threshold: float = 0.0, sampling: Sampling = WHOLE
    ) -> None:
        super().__init__(names, threshold=threshold, sampling=sampling, n_threads=helping_threads())
        # In the order in which a device makes them.
        self._under_way: deque[_Copy] = deque()
        # The copy that is being counted, and what there was before it.
        self._counting: tuple[_Copy, Any] | None = None
        # An interrupt must not lock the thread out that it leaves it to.
        self._copies_lock = threading.RLock()

    def probe_counters(self) -> dict[Width, ProbeCounter]:
        """Return what counts each probe and number of neurons, in the order of `counters`.

        Raises:
            ProbeError: States that were under way could not be counted; names the layer.
        """
        with self._copies_lock:
            self._count_arrived(at_most=0)
        return super().probe_counters()

    def observe_tensor(
        self,
        name: str,
        tensor: torch.Tensor,
        channel_axis: Axis,
        sample_axis: int | None = 0,
    ) -> None:
        """Count the states of one batch, now or later.

        Args:
            name: The probe.
            tensor: Activations of any shape, memory and device; may be overwritten afterwards.
            channel_axis: The axis of the neurons, or several that are one unit; may be negative.
            sample_axis: The axis of the samples; None where there is one sample.

        Raises:
            ProbeError: They can't be counted, or what an earlier call left under way can't; names
                the layer.
        """
        try:
            if tensor.is_nested:
                # Each component is a sample with positions of its own.
                for part in tensor.unbind():
                    axes = [each - 1 for each in normal_axes(channel_axis, (0,) * tensor.ndim)]
                    self._observe(name, part, axes[0] if len(axes) == 1 else tuple(axes), None)
            else:
                self._observe(name, tensor, channel_axis, sample_axis)
        except ProbeError:
            raise
        except Exception as error:
            raise ProbeError(f"layer {name!r} could not be counted: {error}") from error

    def _observe(
        self, name: str, tensor: torch.Tensor, channel_axis: Axis, sample_axis: int | None
    ) -> None:
        samples = folded_sample_axis(sample_axis, channel_axis, tensor.shape)
        tensor, axis = on_one_axis(tensor, channel_axis)
        tensor = strided(tensor)
        if not lies_on_device(tensor):
            activations, bfloat16 = host_memory(tensor)
            self.observe(name, activations, axis, sample_axis=samples, bfloat16=bfloat16)
            return
        # Reached now: layers that lie elsewhere may be counted before the copy is here.
        counter = self._counter(name, tuple(tensor.shape), axis)
        try:
            copy = self._start(name, counter, tensor, axis, samples)
        except _OUT_OF_MEMORY:
            counter.give_up(grid_of(tensor.shape, axis, samples))
            return
        with self._copies_lock:
            self._under_way.append(copy)
            self._count_arrived(at_most=MOST_UNDER_WAY)

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

    def _start(
        self,
        name: str,
        counter: ProbeCounter,
        tensor: torch.Tensor,
        channel_axis: int,
        sample_axis: int | None,
    ) -> "_Copy":
        # Sample after sample, the neurons last.
        tensor = tensor.movedim(channel_axis, -1)
        if sample_axis is None:
            tensor = tensor.unsqueeze(0)
        else:
            channel = channel_axis % tensor.ndim
            tensor = tensor.movedim(sample_axis - (channel < sample_axis), 0)
        grid = tuple(tensor.shape[1:-1])
        places = counter.places(grid)
        if places is not None:
            tensor = tensor.flatten(1, -2)[:, torch.tensor(places, device=tensor.device)]
        return _Copy(name, counter, HostCopy(pack(tensor, -1, self._threshold)), grid)

    def _count_arrived(self, at_most: int) -> None:
        """Count what has arrived, and wait for more until at most so many are under way."""
        while self._under_way:
            first = self._under_way[0]
            name, counter, copy, grid = first
            try:
                if len(self._under_way) <= at_most and not copy.arrived():
                    return
                rows = copy.wait()
                if self._counting is None or self._counting[0] is not first:
                    self._counting = first, counter.progress
                # Else an interrupt came before it was taken off the list.
                if counter.progress == self._counting[1]:
                    counter.update_packed(rows, grid)
                self._under_way.popleft()
            except Exception as error:
                self._under_way.popleft()
                # Kept, since the batch is missing from now on: there is no report without it.
                self.error = ProbeError(f"layer {name!r} could not be counted: {error}")
                raise self.error from error


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


def pack(tensor: torch.Tensor, channel_axis: int, threshold: float) -> torch.Tensor:
    """Return the states of a tensor, made on its own device.

    Args:
        tensor: Real numbers of any shape, with strided memory.
        channel_axis: The axis of the neurons; may be negative.
        threshold: A neuron fires where its activation is above it; finite. The comparison is exact.

    Returns:
        Shape `(positions, ceil(neurons / 8))`, uint8, as `StateCounter.update_packed` takes it:
        neuron 0 is bit 0 of byte 0.

    Raises:
        TypeError: This kind of number can't be compared on devices.
    """
    fired = _fired(tensor, threshold).view(torch.uint8).movedim(channel_axis, -1)
    n_bytes = -(-fired.shape[-1] // 8)
    rows = torch.zeros((*fired.shape[:-1], n_bytes), dtype=torch.uint8, device=tensor.device)
    # Every eighth neuron has the same place in its byte, so there is nothing to pad.
    for bit in range(min(8, fired.shape[-1])):
        column = fired[..., bit::8]
        rows[..., : column.shape[-1]].add_(column, alpha=1 << bit)
    return rows.reshape(-1, n_bytes)


class HostCopy:
    """States on their way from a device to the host.

    Args:
        rows: Packed states on the device. They are held until the copy is done.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows: torch.Tensor | None = rows
        self._host = _host_memory(rows)
        self._host.copy_(rows, non_blocking=True)
        # After the copy on the same stream: it is done when this is.
        self._event = _record_event(rows.device)

    def arrived(self) -> bool:
        """Tell, without waiting, whether the copy is done."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> npt.NDArray[np.uint8]:
        """Return the states once they are here.

        Raises:
            RuntimeError: Something that the device was given to do has failed.
        """
        if self._event is not None:
            self._event.synchronize()
        self._rows = None
        return self._host.numpy()


class _Copy(NamedTuple):
    name: str
    counter: ProbeCounter
    copy: HostCopy
    grid: tuple[int, ...]


def _fired(tensor: torch.Tensor, threshold: float) -> torch.Tensor:
    dtype = _WIDER.get(tensor.dtype, tensor.dtype)
    if dtype == torch.uint64:
        raise TypeError("its activations are uint64, which devices can't compare: use output_fn")
    if dtype == torch.bool:
        dtype = torch.uint8
    if dtype.is_floating_point:
        if dtype.itemsize == 1:
            dtype = torch.float32
        return tensor.to(dtype) > _rounded_down(threshold, dtype)
    limits, whole = torch.iinfo(dtype), math.floor(threshold)
    if not limits.min <= whole < limits.max:
        return torch.full_like(tensor, whole < limits.min, dtype=torch.bool)
    return tensor.to(dtype) > whole


def _rounded_down(threshold: float, dtype: torch.dtype) -> float:
    """The greatest number of the dtype up to the threshold: what is above one is above the other.

    Left to itself, torch would round to the nearest: float32's 0.1 is greater than 0.1.
    """
    if dtype == torch.float64:
        return threshold
    with np.errstate(over="ignore"):
        near = (np.float16 if dtype == torch.float16 else np.float32)(threshold)
    # As Python floats: NumPy would round the threshold to compare.
    if float(near) > threshold:
        near = np.nextafter(near, near.dtype.type(-np.inf))
    if dtype == torch.bfloat16:
        bits = int(near.view(np.uint32))
        cut = bits & 0xFFFF0000
        # Cutting bits off goes towards zero, which is up for negative numbers.
        bits = cut + 0x10000 if near < 0 and cut != bits else cut
        near = np.uint32(bits).view(np.float32)
    return float(near)


def _host_memory(rows: torch.Tensor) -> torch.Tensor:
    try:
        # Only from pinned memory can a device copy while the host does something else.
        return torch.empty(rows.shape, dtype=rows.dtype, device="cpu", pin_memory=True)
    except RuntimeError:
        return torch.empty(rows.shape, dtype=rows.dtype, device="cpu")


def _record_event(device: torch.device) -> Any:
    """An event behind all that the device was given to do, or None after waiting for it."""
    backend = getattr(torch, device.type, None)
    make_event = getattr(backend, "Event", None)
    if make_event is None:
        getattr(backend, "synchronize", lambda: None)()
        return None
    event = make_event()
    # mps has one stream only.
    current_stream = getattr(backend, "current_stream", None)
    if current_stream is None:
        event.record()
    else:
        event.record(current_stream(device))
    return event
