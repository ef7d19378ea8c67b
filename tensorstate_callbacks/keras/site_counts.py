"""Hold what the calls of probed layers have counted in the graph, until the evaluation ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tensorstate_callbacks.keras.backends import Backend, Tally
from tensorstate_callbacks.keras.device_states import Plan, codes_of, states_of
from tensorstate_callbacks.keras.probe_axes import Decided, Site
from tensorstate_callbacks.recording.pass_counts import Width
from tensorstate_callbacks.recording.recorder import Recorder


class _Key(NamedTuple):
    site: Site
    n_neurons: int
    device: str


class _Counted(NamedTuple):
    """The tables of one site.

    Attributes:
        tally: Counts.
        decided: The axes taken.
        shape: Of the tensors, None where sizes differ.
        plan: How their states are made.
    """

    tally: Tally
    decided: Decided
    shape: tuple[Any, ...]
    plan: Plan


class SiteCounts:
    """Tables of the units' states, one for each call of a layer in a step.

    They are as old as the graphs that add to them: each pass begins with `reset`, whatever became
    of the one before.

    Args:
        backend: Makes the tables.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._counted: dict[_Key, _Counted] = {}

    def add(self, site: Site, decided: Decided, tensor: Any, plan: Plan) -> None:
        """Count the tensor's states whenever the step runs.

        Args:
            site: The call.
            decided: The axes taken there.
            tensor: Activations.
            plan: How their states are made.
        """
        # Each replica of a model counts on a device of its own.
        key = _Key(site, plan.n_neurons, str(getattr(tensor, "device", "")))
        counted = self._counted.get(key)
        if counted is None:
            tally = self._backend.Tally(plan.n_counts or 0, tensor)
            counted = _Counted(tally, decided, tuple(tensor.shape), plan)
            self._counted[key] = counted
        bits = states_of(self._backend, tensor, plan)
        counted.tally.add(codes_of(self._backend, bits, plan))

    def reset(self) -> None:
        """Begin at zero."""
        for counted in list(self._counted.values()):
            counted.tally.reset()

    def read_into(
        self,
        recorder: Recorder,
        check_size: Callable[[Site, Decided, tuple[Any, ...]], None],
    ) -> None:
        """Add what was counted to a recorder's counters.

        Args:
            recorder: Takes it, but for probes that it has dropped.
            check_size: Raises an error where an axis has another size than before.

        Raises:
            ProbeError: There is such an axis.
        """
        for key, counted in self._counted.items():
            name = key.site.name
            if name in recorder.dropped:
                continue
            tables = counted.tally.read()
            n_states = int(tables[: 1 << (counted.plan.unit or 0)].sum())
            if n_states:
                check_size(key.site, counted.decided, counted.shape)
                width = Width(name, key.n_neurons)
                unsigned = tables.astype(np.uint64)
                recorder.add_tables(width, unsigned, n_states, counted.plan.n_read)
