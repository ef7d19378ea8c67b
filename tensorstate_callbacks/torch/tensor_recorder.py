"""Tensors of the probed layers in, wherever they lie; their states in a Recorder's counters out."""

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import torch

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.channel_axis import Axis
from tensorstate_callbacks.recording.recorder import Recorder, Width
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.torch.activations import host_memory, on_one_axis, strided
from tensorstate_callbacks.torch.device_packing import HostCopy, pack

# Copies under way at a time: enough for a device to go on, few enough for its memory.
MOST_UNDER_WAY = 16


class TensorRecorder(Recorder):
    """A Recorder of tensors, which doesn't wait for the devices that they lie on.

    What lies in host memory is counted at once. On an accelerator states are packed, copied while
    the device goes on, and counted when the copy has arrived: as further tensors come, at the
    latest when counts are asked for.
    """

    def __init__(self, names: Iterable[str], *, threshold: float = 0.0) -> None:
        super().__init__(names, threshold=threshold)
        # In the order in which a device makes them.
        self._under_way: deque[_Copy] = deque()
        self._copies_lock = threading.Lock()

    def by_width(self) -> dict[Width, StateCounter]:
        """Return the counter of each probe and number of neurons, in the order of `counters`.

        Raises:
            ProbeError: States that were under way could not be counted; names the layer.
        """
        with self._copies_lock:
            self._count_arrived(at_most=0)
        return super().by_width()

    def observe_tensor(self, name: str, tensor: torch.Tensor, channel_axis: Axis) -> None:
        """Count the states of one batch, now or later.

        Args:
            name: The probe.
            tensor: Activations of any shape, memory and device; may be overwritten afterwards.
            channel_axis: The axis of the neurons, or several that are one unit; may be negative.

        Raises:
            ProbeError: They can't be counted, or what an earlier call left under way can't; names
                the layer.
        """
        try:
            tensor, axis = on_one_axis(tensor, channel_axis)
            tensor = strided(tensor)
            if not lies_on_device(tensor):
                activations, bfloat16 = host_memory(tensor)
                self.observe(name, activations, axis, bfloat16=bfloat16)
                return
            copy = self._start(name, tensor, axis)
        except ProbeError:
            raise
        except Exception as error:
            raise ProbeError(f"layer {name!r} could not be counted: {error}") from error
        with self._copies_lock:
            self._under_way.append(copy)
            self._count_arrived(at_most=MOST_UNDER_WAY)

    def _start(self, name: str, tensor: torch.Tensor, channel_axis: int) -> "_Copy":
        # Reached now: layers that lie elsewhere may be counted before the copy is here.
        counter = self._counter(name, tuple(tensor.shape), channel_axis)
        return _Copy(name, counter, HostCopy(pack(tensor, channel_axis, self._threshold)))

    def _count_arrived(self, at_most: int) -> None:
        """Count what has arrived, and wait for more until at most so many are under way."""
        while self._under_way:
            name, counter, copy = self._under_way[0]
            try:
                if len(self._under_way) <= at_most and not copy.arrived():
                    return
                self._under_way.popleft()
                counter.update_packed(copy.wait())
            except Exception as error:
                # Kept, since the batch is missing from now on: there is no report without it.
                self.error = ProbeError(f"layer {name!r} could not be counted: {error}")
                raise self.error from error


class _Copy(NamedTuple):
    name: str
    counter: StateCounter
    copy: HostCopy


def lies_on_device(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's memory is an accelerator's."""
    return not tensor.is_cpu
