"""Activations at one point of a network in; what is to know of its states out.

The names and meanings are those of the capture layers and hooks of TensorState 0.1 to 0.4.
"""

import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError, StatesNotAvailableError
from tensorstate_callbacks.metrics.efficiency import efficiency
from tensorstate_callbacks.metrics.entropy import spectrum_entropy
from tensorstate_callbacks.recording.settings import check_threshold
from tensorstate_callbacks.states.counter import StateCounter, pack_states
from tensorstate_callbacks.states.packed_states import decompress_states, row_keys
from tensorstate_callbacks.tensorstate.raw_states import (
    MemoryStates,
    RawStates,
    rows_of_samples,
    sample_numbers,
)
from tensorstate_callbacks.tensorstate.stored_states import StoredStates


class FreshLock:
    """A reentrant lock whose copy, or pickle, is a new lock that nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return FreshLock, ()


_ROWS_AT_ONCE = 1 << 20


class CapturedStates:
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
        FileExistsError: `storage_path` holds an earlier capture, and `resume` isn't set.
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range, or the capture can't be resumed.

    Example:
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
        self._counter: StateCounter | None = None
        # States per sample, of all batches.
        self._positions: set[int] = set()
        self._lock = FreshLock()
        self._raw: RawStates | None = MemoryStates() if keep_raw else None
        if storage_path is not None:
            self._raw = StoredStates(storage_path, name, self._threshold, resume=resume)
            self._count_stored(self._raw)
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
            with self._lock:
                self._record(array, channel_axis, bfloat16)
        except OSError as error:
            raise ProbeError(
                f"layer {self.name!r}: a batch of states could not be stored ({error}). The "
                f"{self.state_count} states of the batches before are safe; make room, then go on "
                "or start again with resume=True"
            ) from error
        except Exception as error:
            raise ProbeError(f"layer {self.name!r} could not be counted: {error}") from error

    @property
    def state_count(self) -> int:
        """States recorded so far, repeats included."""
        return 0 if self._counter is None else self._counter.n_states

    @property
    def states(self) -> npt.NDArray[np.bool_]:
        """The distinct states, shape `(distinct, neurons)`, bool, in step with `counts()`."""
        counter = self._captured()
        return decompress_states(counter.states(), counter.n_neurons)

    @property
    def raw_states(self) -> npt.NDArray[np.uint8]:
        """All states as observed, shape `(state_count, ceil(neurons / 8))`, uint8, read-only."""
        return self._kept().rows()

    def counts(self, index: npt.ArrayLike | None = None) -> npt.NDArray[np.uint64]:
        """Return how often each distinct state was seen.

        Args:
            index: Sample numbers to look at, or a mask of all samples; None for everything. A
                sample that is named twice counts twice. Needs `keep_raw` or `storage_path`.

        Returns:
            Shape `(distinct,)`, uint64, in step with `state_ids()` and `states`: 0 where a state
            wasn't seen in the samples of `index`.

        Raises:
            IndexError: There is no such sample.
            StatesNotAvailableError: Nothing was captured, or `index` needs states that were not
                kept.
            TypeError: `index` is neither whole numbers nor a mask.
        """
        counter = self._captured()
        if index is None:
            return counter.counts()
        raw = self._kept()
        with self._lock:
            batches, rows = raw.batches(), raw.rows()
            distinct = row_keys(counter.states())
        at = rows_of_samples(batches, self._samples(index, batches))
        counts = np.zeros(len(distinct), np.uint64)
        for begin in range(0, len(at), _ROWS_AT_ONCE):
            keys = row_keys(rows[at[begin : begin + _ROWS_AT_ONCE]])
            found = np.searchsorted(distinct, keys)
            counts += np.bincount(found, minlength=len(distinct)).astype(np.uint64)
        return counts

    def state_ids(self) -> list[bytes]:
        """Return the distinct states as packed bytes, in step with `counts()`."""
        states = self._captured().states()
        data, width = states.tobytes(), states.shape[1]
        return [data[begin : begin + width] for begin in range(0, len(data), width)]

    def states_per_instance(self) -> int:
        """Return how many states each sample has: the positions of a convolution's output.

        Raises:
            StatesNotAvailableError: Nothing was captured, or samples of several sizes.
        """
        self._captured()
        if len(self._positions) != 1:
            raise StatesNotAvailableError(
                f"layer {self.name!r} captured samples with different numbers of states: "
                f"{', '.join(map(str, sorted(self._positions)))}"
            )
        return next(iter(self._positions))

    def max_entropy(self) -> float:
        """Return the highest entropy that the layer could have: its number of neurons, in bits."""
        return float(self._captured().n_neurons)

    def entropy(self, alpha: float | None = 1) -> float:
        """Return the entropy of the states in bits.

        Args:
            alpha: Order of the Rényi entropy, 0 to infinity; 1 is Shannon's. None is
                `max_entropy()`.

        Raises:
            StatesNotAvailableError: Nothing was captured.
            ValueError: `alpha` is negative or NaN.
        """
        if alpha is None:
            return self.max_entropy()
        return spectrum_entropy(self._captured().spectrum(), alpha)

    def efficiency(self, alpha1: float = 1, alpha2: float | None = None) -> float:
        """Return the entropy of order `alpha1` as a share of the highest, or of another order's.

        Args:
            alpha1: Order of the Rényi entropy above the line.
            alpha2: Order below the line, less than `alpha1`; None for `max_entropy()`.

        Returns:
            A share between 0 and 1.

        Raises:
            StatesNotAvailableError: Nothing was captured.
            ValueError: An order is out of its range, or there was one state only, where all orders
                are 0 bits and have no ratio.
        """
        bits = self.entropy(alpha1)
        if alpha2 is None:
            return efficiency(bits, self._captured().n_neurons)
        if alpha2 >= alpha1:
            raise ValueError(f"alpha1 must be above alpha2; got {alpha1} and {alpha2}")
        below = self.entropy(alpha2)
        if below == 0:
            raise ValueError(f"layer {self.name!r} was in one state only: its entropies are all 0")
        return min(bits / below, 1.0)

    def reset_states(self) -> None:
        """Forget everything captured, on disk too."""
        with self._lock:
            self._counter = None
            self._positions = set()
            if self._raw is not None:
                self._raw.clear()

    def _record(self, array: npt.NDArray[Any], channel_axis: int, bfloat16: bool) -> None:
        if array.ndim == 0:
            raise ValueError("activations need an axis of neurons; got a single number")
        counter = self._counter or StateCounter(array.shape[channel_axis])
        if self._raw is None:
            counter.update(array, channel_axis, self._threshold, bfloat16=bfloat16)
        else:
            rows = pack_states(array, channel_axis, self._threshold, bfloat16=bfloat16)
            if self._counter is None:
                self._raw.begin(counter.n_neurons)
            if len(rows):
                with self._raw.appended(rows, _n_samples(array, channel_axis)):
                    counter.update_packed(rows)
        self._counter = counter
        if array.size:
            n_states = array.size // counter.n_neurons
            self._positions = self._positions | {n_states // _n_samples(array, channel_axis)}

    def _count_stored(self, stored: StoredStates) -> None:
        if stored.n_neurons is None:
            return
        self._counter = StateCounter(stored.n_neurons)
        rows = stored.rows()
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            self._counter.update_packed(rows[begin : begin + _ROWS_AT_ONCE])
        self._positions = {states // samples for samples, states in stored.batches().tolist()}

    def _captured(self) -> StateCounter:
        if self._counter is None or self._counter.n_states == 0:
            raise StatesNotAvailableError(
                f"layer {self.name!r} has captured nothing yet: run the model on some data with "
                "capture_on first"
            )
        return self._counter

    def _samples(
        self, index: npt.ArrayLike, batches: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        try:
            return sample_numbers(index, int(batches[:, 0].sum()))
        except (IndexError, TypeError) as error:
            raise type(error)(f"layer {self.name!r}: {error}") from None

    def _kept(self) -> RawStates:
        self._captured()
        if self._raw is None:
            raise StatesNotAvailableError(
                f"layer {self.name!r} keeps counts, not the states in the order observed: build "
                "it with keep_raw=True (in memory) or a storage_path (on disk), and capture again"
            )
        return self._raw


def _n_samples(array: npt.NDArray[Any], channel_axis: int) -> int:
    return 1 if channel_axis % array.ndim == 0 else array.shape[0]
