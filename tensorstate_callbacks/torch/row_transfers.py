"""Bring packed states from devices to the host, those of many layers in one copy."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tensorstate_callbacks.recording.probe_counter import Grid, ProbeCounter, Rows
from tensorstate_callbacks.torch.counting_threads import CountingThreads, Job, Part
from tensorstate_callbacks.torch.device_streams import DeviceStream

# Rows leave the device together once there are so many bytes of them.
COPY_BYTES = 8 << 20
# The model waits while so many bytes on the host are to be counted.
MOST_WAITING = 128 << 20
# A device's own, and the host's.
OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)
# Rows of a layer begin where a kernel can write them best.
_ALIGNMENT = 64


class RowTransfers:
    """Collects packed rows on each device, and has them counted on the host.

    A copy is made when there is enough for it, at the latest when the counts are asked for. Not
    for several threads at once.

    Args:
        threads: Count what has arrived.
    """

    def __init__(self, threads: CountingThreads) -> None:
        self._threads = threads
        self._collected: dict[DeviceStream, _Collected] = {}

    def add(
        self,
        name: str,
        counter: ProbeCounter,
        grid: Grid,
        shape: tuple[int, int],
        device: torch.device,
        write: Callable[[torch.Tensor], None],
        takers: Sequence[Callable[[Rows], None]],
    ) -> None:
        """Have the states of one batch of a layer counted, now or later.

        Args:
            name: The layer.
            counter: Whose they are: of the same one, batches are counted one after the other.
            grid: How many positions of a sample lie along each axis.
            shape: How many states there are, and the bytes of each.
            device: Where they are.
            write: Writes them into a tensor of that shape.
            takers: Count them, once they are on the host.
        """
        stream = DeviceStream.current(device)
        n_bytes = shape[0] * shape[1]
        collected = self._collected.get(stream)
        if collected is None or not collected.has_room(n_bytes):
            if collected is not None:
                self._send(stream)
            collected = _Collected(stream, max(n_bytes, COPY_BYTES))
            self._collected[stream] = collected
        begin = collected.end
        write(collected.rows[begin : begin + n_bytes].view(shape))
        collected.layers.append(_Layer(name, counter, grid, begin, shape, tuple(takers)))
        if collected.end >= COPY_BYTES:
            self._send(stream)

    def send(self) -> None:
        """Have all counted that was collected so far."""
        for stream in list(self._collected):
            self._send(stream)

    def _send(self, stream: DeviceStream) -> None:
        collected = self._collected[stream]
        if collected.layers:
            self._threads.wait(MOST_WAITING)
            try:
                collected.job = collected.job or collected.to_job()
            except OUT_OF_MEMORY:
                for layer in collected.layers:
                    layer.counter.give_up(layer.grid)
            else:
                # Handed over again after an interrupt, it is counted once all the same.
                self._threads.put(collected.job)
        self._collected.pop(stream, None)


class _Layer(NamedTuple):
    """Rows of a layer among those that were collected."""

    name: str
    counter: ProbeCounter
    grid: Grid
    begin: int
    shape: tuple[int, int]
    takers: tuple[Callable[[Rows], None], ...]

    @property
    def end(self) -> int:
        return self.begin + self.shape[0] * self.shape[1]

    def count_rows(self, copy: "HostCopy") -> None:
        rows = copy.wait()[self.begin : self.end].reshape(self.shape)
        for take in self.takers:
            take(rows)


class _Collected:
    """Rows of several layers in one piece of a device's memory, for one copy.

    Attributes:
        rows: The memory, uint8.
        layers: Whose rows are in it, one after the other.
        job: Counts them, once they are on their way: no more may be added then.
    """

    @torch.inference_mode(False)
    def __init__(self, stream: DeviceStream, n_bytes: int) -> None:
        self._stream = stream
        self.rows = torch.empty(n_bytes, dtype=torch.uint8, device=stream.device)
        self.layers: list[_Layer] = []
        self.job: Job | None = None

    @property
    def end(self) -> int:
        end = self.layers[-1].end if self.layers else 0
        return -(-end // _ALIGNMENT) * _ALIGNMENT

    def has_room(self, n_bytes: int) -> bool:
        return self.job is None and self.end + n_bytes <= len(self.rows)

    def to_job(self) -> Job:
        n_bytes = self.layers[-1].end
        with self._stream.block():
            copy = HostCopy(self.rows[:n_bytes])
        parts = [
            Part(each.name, each.counter, partial(each.count_rows, copy)) for each in self.layers
        ]
        return Job(parts, n_bytes)


class HostCopy:
    """States on their way from a device to the host, on the stream that this thread uses.

    Args:
        rows: Packed states on the device, uint8. They are held until the copy is done.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows: torch.Tensor | None = rows
        self._host = _host_memory(rows)
        self._host.copy_(rows, non_blocking=True)
        # After the copy on the same stream: it is done when this is.
        self._event: Any = DeviceStream.current(rows.device).record_event()

    def wait(self) -> npt.NDArray[np.uint8]:
        """Return the states once they are here.

        Raises:
            RuntimeError: Something that the device was given to do has failed.
        """
        if self._event is not None:
            self._event.synchronize()
        self._rows = None
        return self._host.numpy()


@torch.inference_mode(False)
def _host_memory(rows: torch.Tensor) -> torch.Tensor:
    try:
        # Only from pinned memory can a device copy while the host does something else.
        return torch.empty(rows.shape, dtype=rows.dtype, device="cpu", pin_memory=True)
    except RuntimeError:
        # NumPy tells where there is no memory from other errors.
        return torch.from_numpy(np.empty(rows.shape, np.uint8))
