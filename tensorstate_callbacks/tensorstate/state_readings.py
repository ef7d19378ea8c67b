"""Read the states that one point of a network has captured."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import StatesNotAvailableError
from tensorstate_callbacks.metrics.efficiency import efficiency
from tensorstate_callbacks.metrics.entropy import spectrum_entropy
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.packed_states import decompress_states, row_keys
from tensorstate_callbacks.tensorstate.stored_states import RawStates

ROWS_AT_ONCE = 1 << 20


class FreshLock:
    """A reentrant lock whose copy, or pickle, is a new lock that nobody holds.

    Attributes:
        held: The lock. `with` takes it itself: in a method of ours, an interrupt could leave it.
    """

    def __init__(self) -> None:
        self.held = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return FreshLock, ()


@dataclass
class Captured:
    """What a capture point has captured so far.

    Attributes:
        raw: Keeps the states in the order observed; None where they are only counted.
        counter: Counts them; None before the first batch.
        positions: States per sample, of all batches, each with how many states were counted before
            it came up; it holds once there are more.
        lock: Held while one of these changes.
    """

    raw: RawStates | None = None
    counter: StateCounter | None = None
    positions: dict[int, int] = field(default_factory=dict)
    lock: FreshLock = field(default_factory=FreshLock)


class StateReadings:
    """What `StateCapture` layers, hooks and the `efficiency_layers` of a model let you read.

    The names and meanings are those of the capture layers and hooks of TensorState 0.1 to 0.4.

    Attributes:
        name: Name of the capture point.
    """

    name: str

    @property
    def state_count(self) -> int:
        """Number of states recorded so far, repeats included."""
        counter = self._read().counter
        return 0 if counter is None else counter.n_states

    @property
    def states(self) -> npt.NDArray[np.bool_]:
        """The distinct states, shape `(distinct, neurons)`, bool, in the order of `counts()`."""
        counter = self._counted()
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
            Shape `(distinct,)`, uint64, in the order of `state_ids()` and `states`; 0 where a state
            wasn't seen in the samples of `index`.

        Raises:
            IndexError: There is no such sample.
            StatesNotAvailableError: Nothing was captured, or `index` needs states that were not
                kept.
            TypeError: `index` is neither whole numbers nor a mask.
        """
        counter = self._counted()
        if index is None:
            return counter.counts()
        raw = self._kept()
        with self._read().lock.held:
            batches, rows = raw.batches(), raw.rows()
            distinct = row_keys(counter.states())
        try:
            samples = sample_numbers(index, int(batches[:, 0].sum()))
        except (IndexError, TypeError) as error:
            raise type(error)(f"layer {self.name!r}: {error}") from None
        at = rows_of_samples(batches, samples)
        counts = np.zeros(len(distinct), np.uint64)
        for begin in range(0, len(at), ROWS_AT_ONCE):
            keys = row_keys(rows[at[begin : begin + ROWS_AT_ONCE]])
            found = np.searchsorted(distinct, keys)
            counts += np.bincount(found, minlength=len(distinct)).astype(np.uint64)
        return counts

    def state_ids(self) -> list[bytes]:
        """Return the distinct states as packed bytes, in the order of `counts()`."""
        states = self._counted().states()
        data, width = states.tobytes(), states.shape[1]
        return [data[begin : begin + width] for begin in range(0, len(data), width)]

    def states_per_instance(self) -> int:
        """Return how many states each sample has: the positions of a convolution's output.

        Raises:
            StatesNotAvailableError: Nothing was captured, or the samples have different sizes.
        """
        self._counted()
        positions = self._read().positions
        if len(positions) != 1:
            raise StatesNotAvailableError(
                f"layer {self.name!r} captured samples with different numbers of states: "
                f"{', '.join(map(str, sorted(positions)))}"
            )
        return next(iter(positions))

    def max_entropy(self) -> float:
        """Return the highest entropy that the layer could have: its number of neurons, in bits."""
        return float(self._counted().n_neurons)

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
        return spectrum_entropy(self._counted().spectrum(), alpha)

    def efficiency(self, alpha1: float = 1, alpha2: float | None = None) -> float:
        """Return the entropy of order `alpha1` as a share of the highest, or of another order's.

        Args:
            alpha1: Order of the Rényi entropy in the numerator.
            alpha2: Order in the denominator, less than `alpha1`; None for `max_entropy()`.

        Returns:
            A share between 0 and 1.

        Raises:
            StatesNotAvailableError: Nothing was captured.
            ValueError: An order is out of its range, or there was one state only, where all orders
                are 0 bits and have no ratio.
        """
        bits = self.entropy(alpha1)
        if alpha2 is None:
            return efficiency(bits, self._counted().n_neurons)
        if alpha2 >= alpha1:
            raise ValueError(f"alpha1 must be above alpha2; got {alpha1} and {alpha2}")
        below = self.entropy(alpha2)
        if below == 0:
            raise ValueError(f"layer {self.name!r} was in one state only: its entropies are all 0")
        return min(bits / below, 1.0)

    def _read(self) -> Captured:
        raise NotImplementedError

    def _counted(self) -> StateCounter:
        counter = self._read().counter
        if counter is None or counter.n_states == 0:
            raise StatesNotAvailableError(
                f"layer {self.name!r} has captured nothing yet: run the model on some data with "
                "capture_on first"
            )
        return counter

    def _kept(self) -> RawStates:
        self._counted()
        raw = self._read().raw
        if raw is None:
            raise StatesNotAvailableError(
                f"layer {self.name!r} keeps counts, not the states in the order observed: build "
                "it with keep_raw=True (in memory) or a storage_path (on disk), and capture again"
            )
        return raw


def rows_of_samples(
    batches: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return where the states of some samples stand among all states.

    Args:
        batches: Samples and states of each batch, shape `(batches, 2)`; the samples of a batch have
            equally many states, which stand one after another.
        samples: Sample numbers, from 0, in any order.

    Returns:
        Row numbers, sample by sample.

    Examples:
        >>> rows_of_samples(np.array([[2, 4], [1, 3]]), np.array([2, 0]))
        array([4, 5, 6, 0, 1])
    """
    n_samples, n_states = batches.T
    first_sample = np.cumsum(n_samples) - n_samples
    first_state = np.cumsum(n_states) - n_states
    per_sample = n_states // n_samples
    batch = np.searchsorted(first_sample, samples, side="right") - 1
    begins = first_state[batch] + (samples - first_sample[batch]) * per_sample[batch]
    lengths = per_sample[batch]
    # A ramp over each sample's own states, put at its beginning.
    ramp = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows: npt.NDArray[np.int64] = np.repeat(begins, lengths) + ramp
    return rows


def sample_numbers(index: npt.ArrayLike, n_samples: int) -> npt.NDArray[np.int64]:
    """Return the sample numbers that an index means, from 0.

    Args:
        index: A sample number, several, counted from the end where negative; or a mask.
        n_samples: How many samples there are.

    Raises:
        IndexError: There is no such sample, or the mask is of another length.
        TypeError: It is neither whole numbers nor a mask.

    Examples:
        >>> sample_numbers([0, -1], 5), sample_numbers([False, True], 2)
        (array([0, 4]), array([1]))
    """
    numbers = np.atleast_1d(np.asarray(index))
    if numbers.size == 0:
        return np.empty(0, np.int64)
    if numbers.dtype.kind == "b":
        if numbers.shape != (n_samples,):
            raise IndexError(
                f"a mask of the samples needs the shape ({n_samples},); got {numbers.shape}"
            )
        return np.flatnonzero(numbers)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise TypeError(f"index takes sample numbers, or a mask of the samples; got {index!r:.80}")
    outside = numbers[(numbers < -n_samples) | (numbers >= n_samples)]
    if len(outside):
        raise IndexError(
            f"{n_samples} samples were captured, numbered from 0: there is no sample {outside[0]}"
        )
    return np.where(numbers < 0, numbers + n_samples, numbers).astype(np.int64)
