"""Keep the states of a few samples in their order, where a pass would count them."""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.probe_counter import Counter, Grid, ProbeCounter, Rows

MOST_BYTES = 128 << 20
"""What the packed states of one run over the probe data may take, all layers together."""


class LayerStates(NamedTuple):
    """The states of one layer in one run over the probe data.

    Attributes:
        n_neurons: Bits of a state.
        rows: Packed states in the order in which they came, shape `(states, bytes)`, uint8.
        n_samples: Of how many samples they are, of each equally many, sample after sample; None
            where they don't lie so.
    """

    n_neurons: int
    rows: Rows
    n_samples: int | None

    def is_like(self, other: "LayerStates") -> bool:
        """Tell whether these are states of the same neurons, samples and positions."""
        return self.n_neurons == other.n_neurons and self.rows.shape == other.rows.shape


class RowLimit:
    """The memory that the kept states of all layers may take.

    Args:
        most_bytes: How much.

    Attributes:
        is_passed: They would take more: what a layer has is not all of it.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._left = most_bytes
        self.is_passed = False
        # An interrupt must not lock the thread out that it leaves it to.
        self._lock = threading.RLock()

    def take(self, n_bytes: int) -> bool:
        """Take so much of it; return whether it was there."""
        with self._lock:
            self._left -= n_bytes
            self.is_passed = self.is_passed or self._left < 0
            return not self.is_passed


class RowKeeper(ProbeCounter):
    """Keeps the states that one probe shows, all that are to be read, in their order.

    Args:
        n_neurons: Bits of a state.
        sampling: Which positions are read.
        limit: Takes what they need.
        n_threads: At most so many threads pack a large batch.
    """

    def __init__(
        self, n_neurons: int, sampling: Sampling, limit: RowLimit, n_threads: int = 1
    ) -> None:
        super().__init__(n_neurons, Sampling(positions=sampling.positions), None, n_threads)
        self._limit = limit
        # Of the batch that runs: rows of shape (samples, positions, bytes), one for each call.
        self._parts: list[Rows] = []
        self._batches: list[Rows] = []
        self._is_regular = True

    @property
    def has_seen(self) -> bool:
        """Whether there are any states."""
        return self.n_wanted > 0

    def end_batch(self, n_samples: int) -> None:
        """Put what came since the last call together, sample by sample.

        Args:
            n_samples: How many samples the batch has.
        """
        parts, self._parts = self._parts, []
        if not parts:
            return
        if all(len(part) % max(n_samples, 1) == 0 for part in parts):
            # Of a layer that is called several times, or with several rows of each sample, a
            # sample's states are all of these.
            by_sample = [part.reshape(n_samples, -1, part.shape[-1]) for part in parts]
            self._batches.append(np.concatenate(by_sample, axis=1))
        else:
            # Under a mask, samples of one length at a time.
            self._is_regular = False
            flat = [part.reshape(1, -1, part.shape[-1]) for part in parts]
            self._batches.append(np.concatenate(flat, axis=1))

    def states(self) -> LayerStates | None:
        """Return the states of all batches; None where there are none, or no memory for them."""
        if self.level is None or not self._batches:
            return None
        lengths = {batch.shape[1] for batch in self._batches}
        n_samples = sum(map(len, self._batches)) if self._is_regular and len(lengths) == 1 else None
        n_bytes = self._batches[0].shape[-1]
        rows = np.concatenate([batch.reshape(-1, n_bytes) for batch in self._batches])
        return LayerStates(self.n_neurons, rows, n_samples)

    def _count(
        self,
        grid: Grid,
        n_given: int,
        n_samples: int,
        rows_at: Callable[[int], Rows],
        count_all: Callable[[Counter], None],
    ) -> None:
        n_read = self.n_read(grid)
        n_bytes = -(-self.n_neurons // 8)
        if not (n_read and n_samples):
            return
        self.n_wanted = n_read
        if not self._limit.take(n_samples * n_read * n_bytes):
            return
        try:
            # A copy: what is given may be overwritten afterwards.
            rows = np.array(rows_at(n_read))
        except MemoryError:
            self.keep(None)
            return
        self._parts.append(rows.reshape(n_samples, n_read, n_bytes))
