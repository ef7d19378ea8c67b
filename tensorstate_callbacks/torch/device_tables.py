"""Count groups of neurons on the devices that they lie on, until the counts are asked for."""

import numpy as np
import torch

from tensorstate_callbacks.recording.probe_counter import Grid, ProbeCounter
from tensorstate_callbacks.states.group_counter import table_size
from tensorstate_callbacks.torch.counting_threads import CountingThreads, Job, Part
from tensorstate_callbacks.torch.device_states import DeviceStates
from tensorstate_callbacks.torch.device_streams import DeviceStream


class DeviceTables:
    """The counts of a pass's groups, where they were made.

    While the model runs nothing is copied to the host and nobody waits. Each stream has counts of
    its own: what is done on two has no order. Not for several threads at once.

    Args:
        group_size: Neurons of a unit.
        states: Counts them.
        threads: Add to what the host has what was counted.
    """

    def __init__(self, group_size: int, states: DeviceStates, threads: CountingThreads) -> None:
        self._group_size = group_size
        self._states = states
        self._threads = threads
        # All that may hold counts, and which of them go on.
        self._tables: list[_Table] = []
        self._active: dict[tuple[ProbeCounter, DeviceStream], _Table] = {}

    def count(
        self,
        name: str,
        counter: ProbeCounter,
        grid: Grid,
        values: torch.Tensor,
    ) -> None:
        """Count one batch of a layer.

        Args:
            name: The layer.
            counter: Will hold the counts.
            grid: How many positions of a sample lie along each axis.
            values: Shape `(samples, *grid, neurons)`, any strides.
        """
        key = counter, DeviceStream.current(values.device)
        table = self._active.get(key)
        if table is None or table.is_closed:
            table = _Table(name, *key, min(self._group_size, counter.n_neurons))
            self._tables.append(table)
            self._active[key] = table
        self._states.count(values, counter.places(grid), table.unit_size, table.counts)
        table.grid = grid

    def send(self) -> None:
        """Have all added to the counters that was counted so far."""
        while self._tables:
            table = self._tables[0]
            table.job = table.job or table.close()
            # Handed over again after an interrupt, it is added once all the same.
            self._threads.put(table.job)
            self._tables.pop(0)
        self._active.clear()


class _Table:
    """The counts of a layer's units on one stream of a device.

    Attributes:
        unit_size: Neurons of a unit.
        counts: As `GroupCounter.tables` orders them, int64.
        grid: How many positions of a sample the last batch had along each axis.
        is_closed: Nothing more may be counted.
        job: Adds them to the layer's counter.
    """

    @torch.inference_mode(False)
    def __init__(
        self, name: str, counter: ProbeCounter, stream: DeviceStream, unit_size: int
    ) -> None:
        self._name, self._counter, self._stream = name, counter, stream
        self.unit_size = unit_size
        n_counts = table_size(counter.n_neurons, unit_size)
        self.counts = torch.zeros(n_counts, dtype=torch.int64, device=stream.device)
        self.grid: Grid = ()
        self.is_closed = False
        self.job: Job | None = None

    def close(self) -> Job:
        self.is_closed = True
        return Job([Part(self._name, self._counter, self._add)], self.counts.nbytes)

    def _add(self) -> None:
        try:
            counts = np.empty(len(self.counts), np.int64)
        except MemoryError:
            self._counter.give_up(self.grid)
            return
        with self._stream.block():
            # Waits for the stream that counts.
            torch.from_numpy(counts).copy_(self.counts)
        n_states = int(counts[: 1 << self.unit_size].sum())
        if n_states:
            n_positions = self._counter.n_read(self.grid)
            self._counter.add_tables(counts.view(np.uint64), n_states, n_positions)
