"""Count the states of what is recorded at one point of a network, and keep them if asked to."""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.settings import check_threshold
from tensorstate_callbacks.states.counter import StateCounter, pack_states
from tensorstate_callbacks.tensorstate.state_readings import ROWS_AT_ONCE, Captured, StateReadings
from tensorstate_callbacks.tensorstate.stored_states import MemoryStates, StoredStates


class CapturedStates(StateReadings):
    r"""Counts the states of one layer over as many batches as are recorded.

    Axis 0 of what is recorded counts the samples, unless it is the axis of the neurons; samples are
    numbered in the order in which they come.

    Args:
        name: Of the capture point.
        threshold: A neuron fires where its activation is above it; finite.
        keep_raw: Keep every state in memory, in the order observed, for `raw_states` and
            `counts(index)`: `ceil(n_neurons / 8)` bytes each.
        storage_path: Folder to keep every state in on disk instead; see `StoredStates`.
        resume: Go on with the capture that `storage_path` holds, up to its last whole batch.

    Attributes:
        capture_on: Nothing is recorded while it is False.

    Raises:
        BlockingIOError: Another process captures into `storage_path`.
        FileExistsError: `storage_path` holds an earlier capture, and `resume` isn't set.
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range, or the capture can't be resumed.

    Examples:
        >>> captured = CapturedStates("conv_1", keep_raw=True)
        >>> captured.record(np.array([[1.0, -1.0], [2.0, 3.0], [1.0, 0.0]]), channel_axis=-1)
        >>> captured.state_count, captured.counts(), captured.state_ids()
        (3, array([2, 1], dtype=uint64), [b'\x01', b'\x03'])
        >>> captured.counts([1, 2])
        array([1, 1], dtype=uint64)
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: float = 0.0,
        keep_raw: bool = False,
        storage_path: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.name = name
        self.capture_on = True
        self._threshold = check_threshold(threshold)
        self._captured = Captured(MemoryStates() if keep_raw else None)
        if storage_path is not None:
            stored = StoredStates(storage_path, name, self._threshold, resume=resume)
            self._captured.raw = stored
            self._count_stored(stored)
        elif resume:
            raise ValueError(f"{name}: there is nothing to resume without a storage_path")

    def record(
        self, activations: npt.ArrayLike, channel_axis: int, *, bfloat16: bool = False
    ) -> None:
        """Count the states of one batch, if `capture_on`; several threads may do so.

        Args:
            activations: Activations of any shape; see `StateCounter.update`.
            channel_axis: The axis of the neurons; may be negative.
            bfloat16: The activations are the bits of bfloat16 numbers as 16-bit integers.

        Raises:
            ProbeError: They can't be counted, or not be stored. Nothing of the batch is counted
                then, and what was before stays.
        """
        if not self.capture_on:
            return
        try:
            array = np.asarray(activations)
            with self._captured.lock.held:
                self._record(array, channel_axis, bfloat16)
        except OSError as error:
            raise ProbeError(
                f"layer {self.name!r}: a batch of states could not be stored ({error}). The "
                f"{self.state_count} states of the batches before are safe; make room, then go on "
                "or start again with resume=True"
            ) from error
        except Exception as error:
            raise ProbeError(f"layer {self.name!r} could not be counted: {error}") from error

    def reset_states(self) -> None:
        """Forget everything captured, on disk too."""
        with self._captured.lock.held:
            captured = self._captured
            captured.counter, captured.positions = None, {}
            if captured.raw is not None:
                captured.raw.clear()

    def _read(self) -> Captured:
        with self._captured.lock.held:
            self._mend()
        return self._captured

    def _record(self, array: npt.NDArray[Any], channel_axis: int, bfloat16: bool) -> None:
        if array.ndim == 0:
            raise ValueError("activations need an axis of neurons; got a single number")
        captured, raw = self._captured, self._captured.raw
        self._mend()
        counter = captured.counter or StateCounter(array.shape[channel_axis])
        n_samples = _n_samples(array, channel_axis)
        if array.size:
            per_sample = array.size // counter.n_neurons // n_samples
            # Ahead of the states: it holds as soon as more are counted than now.
            captured.positions = {per_sample: counter.n_states, **captured.positions}
        if raw is None:
            counter.update(array, channel_axis, self._threshold, bfloat16=bfloat16)
            captured.counter = counter
            return
        rows = pack_states(array, channel_axis, self._threshold, bfloat16=bfloat16)
        if captured.counter is None:
            raw.begin(counter.n_neurons)
        try:
            if len(rows):
                raw.append(rows, n_samples)
                counter.update_packed(rows)
            captured.counter = counter
        finally:
            self._mend()

    def _mend(self) -> None:
        """Take back what an interrupt kept from being counted: what counts is what was counted."""
        captured = self._captured
        n_states = 0 if captured.counter is None else captured.counter.n_states
        if captured.raw is not None:
            captured.raw.cut(n_states)
        if any(before >= n_states for before in captured.positions.values()):
            captured.positions = {p: n for p, n in captured.positions.items() if n < n_states}

    def _count_stored(self, stored: StoredStates) -> None:
        if stored.n_neurons is None:
            return
        counter = self._captured.counter = StateCounter(stored.n_neurons)
        rows = stored.rows()
        try:
            for begin in range(0, len(rows), ROWS_AT_ONCE):
                counter.update_packed(rows[begin : begin + ROWS_AT_ONCE])
        except ValueError as error:
            raise ValueError(
                f"the stored states of layer {self.name!r} are damaged: {error}"
            ) from error
        batches = stored.batches().tolist()
        self._captured.positions = dict.fromkeys(
            (states // samples for samples, states in batches), -1
        )


def _n_samples(array: npt.NDArray[Any], channel_axis: int) -> int:
    return 1 if channel_axis % array.ndim == 0 else array.shape[0]
