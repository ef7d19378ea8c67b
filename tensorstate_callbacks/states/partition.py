"""Partition counted states by hash, a part for each process, and read such parts back.

Knows no framework: what is sent is a table of int64 that any collective can carry. A state belongs
to the same part wherever it was counted, so the parts of all processes hold disjoint states, and
the spectra of the parts add up to that of all data.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): SplitMix64.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


class Partition(NamedTuple):
    """Counted states, ordered by the part they belong to.

    Attributes:
        table: One row per state, its key words and its count, shape `(m, n_words + 1)`, int64.
        sizes: How many rows each part has, shape `(n_parts,)`, int64.
    """

    table: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def n_words(n_neurons: int) -> int:
    """Return how many 64-bit words hold a state."""
    return -(-n_neurons // 64)


def part_of(states: npt.NDArray[np.uint8], n_parts: int) -> npt.NDArray[np.int64]:
    """Return the part that each state belongs to: a function of its bits alone.

    Args:
        states: Shape `(m, ceil(n_neurons / 8))`, uint8, as `StateCounter.states` gives them.
        n_parts: Number of parts, 1 to 2**31.

    Returns:
        Shape `(m,)`, int64, from 0 to `n_parts - 1`.

    Examples:
        >>> part_of(np.array([[0], [1], [2], [3]], np.uint8), 3)
        array([2, 1, 1, 0])
    """
    return _parts_of_words(_words(states), n_parts)


def partition_states(
    states: npt.NDArray[np.uint8],
    counts: npt.NDArray[np.uint64],
    n_parts: int,
    key_bytes: int | None = None,
) -> Partition:
    """Cut counted states into parts.

    Args:
        states: Distinct states, shape `(m, ceil(n_neurons / 8))`, uint8.
        counts: How often each was seen, shape `(m,)`, uint64.
        n_parts: Number of parts.
        key_bytes: So many bytes of a state, from the first on, say which part it belongs to; None:
            all of them.
    """
    words = _words(states)
    keys = words if key_bytes is None else _words(states[:, :key_bytes])
    parts = _parts_of_words(keys, n_parts)
    # NumPy sorts small integers by radix.
    small = parts.astype(np.uint16) if n_parts <= 1 << 16 else parts
    order = np.argsort(small, kind="stable")
    table = np.empty((len(words), words.shape[1] + 1), np.int64)
    # gloo has no uint64: the bits travel as int64.
    table[:, :-1] = words.view(np.int64)[order]
    table[:, -1] = counts.view(np.int64)[order]
    return Partition(table, np.bincount(parts, minlength=n_parts).astype(np.int64))


def join_states(
    table: npt.NDArray[np.int64], n_neurons: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
    """Return the states and counts of a table's rows, as `StateCounter.add_counts` takes them."""
    keys = np.ascontiguousarray(table[:, :-1]).view(np.uint64).astype("<u8", copy=False)
    states = keys.view(np.uint8)[:, : -(-n_neurons // 8)]
    return np.ascontiguousarray(states), np.ascontiguousarray(table[:, -1]).view(np.uint64)


def _words(states: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    m, n_bytes = states.shape
    padded = np.zeros((m, 8 * -(-n_bytes // 8)), np.uint8)
    padded[:, :n_bytes] = states
    return padded.view("<u8").astype(np.uint64, copy=False)


def _parts_of_words(words: npt.NDArray[np.uint64], n_parts: int) -> npt.NDArray[np.int64]:
    mixed = _hash(words)
    # The upper half of the product is even over the parts, without a division.
    return (((mixed >> np.uint64(32)) * np.uint64(n_parts)) >> np.uint64(32)).astype(np.int64)


def hash_rows(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return a number for each row that depends on nothing but its bytes, shape `(m,)`, uint64."""
    return _hash(_words(rows))


def random_words(
    seeds: npt.NDArray[np.uint64], draws: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return the draw of that number, counted from 0, of each seed's own random sequence.

    Args:
        seeds: Shape `(m,)`, uint64.
        draws: Shape `(m,)`, uint64.
    """
    mixed = seeds + (draws + np.uint64(1)) * _STEP
    _mix(mixed)
    return mixed


def _hash(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed = np.zeros(len(words), np.uint64)
    for column in words.T:
        mixed += column + _STEP
        _mix(mixed)
    return mixed


def _mix(mixed: npt.NDArray[np.uint64]) -> None:
    for shift, factor in _MIX:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> np.uint64(31)
