"""Packed states of one capture point, kept in memory in the order in which they were observed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.uint8]


class RawStates(Protocol):
    """What keeps packed states and knows how many came with each batch."""

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""

    def appended(self, rows: Rows, n_samples: int) -> AbstractContextManager[None]:
        """Keep the states of a batch, unless the block raises: then they were never there."""

    def rows(self) -> Rows:
        """Return all states, shape `(states, bytes)`, uint8, read-only."""

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch, shape `(batches, 2)`."""

    def clear(self) -> None:
        """Forget everything."""


class MemoryStates:
    """Keeps packed states in memory."""

    def __init__(self) -> None:
        self._parts: list[Rows] = []
        self._batches: list[tuple[int, int]] = []

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""
        self._parts = [np.empty((0, -(-n_neurons // 8)), np.uint8)]

    @contextmanager
    def appended(self, rows: Rows, n_samples: int) -> Iterator[None]:
        """Keep the states of a batch, unless the block raises."""
        yield
        self._parts.append(rows)
        self._batches.append((n_samples, len(rows)))

    def rows(self) -> Rows:
        """Return all states, read-only."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        rows = self._parts[0].view()
        rows.flags.writeable = False
        return rows

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch."""
        return np.array(self._batches, np.int64).reshape(-1, 2)

    def clear(self) -> None:
        """Forget everything."""
        self._parts, self._batches = [], []


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

    Example:
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

    Example:
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
