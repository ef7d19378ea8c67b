"""What tests of GroupCounter share: the counts of each unit, by np.unique of its own bits."""

import numpy as np

from tensorstate_callbacks.states.counter import use_kernel
from tensorstate_callbacks.states.group_counter import GroupCounter


def new_groups(kernel, n_neurons, group_size):
    with use_kernel(kernel):
        return GroupCounter(n_neurons, group_size)


def packed(states):
    return np.packbits(states, axis=1, bitorder="little")


def expected_units(states, group_size, times=None):
    """Of each unit a dict from state to how often it was seen, of (rows, neurons) bool."""
    times = [1] * len(states) if times is None else times.tolist()
    found = []
    for first in range(0, states.shape[1], group_size):
        unit = states[:, first : first + group_size]
        numbers, inverse = np.unique(unit @ (1 << np.arange(unit.shape[1])), return_inverse=True)
        counts = dict.fromkeys(numbers.tolist(), 0)
        for number, count in zip(numbers[inverse.reshape(-1)].tolist(), times, strict=True):
            counts[number] += count
        found.append({number: count for number, count in counts.items() if count})
    return found


def held(counter):
    """All that a counter can be asked for, as plain values that can be compared."""
    return (
        counter.n_states,
        counter.tables().tobytes(),
        counter.n_distinct.tolist(),
        counter.fired().tolist(),
        [tuple(spectrum.pairs()) for spectrum in counter.spectra()],
    )


def assert_groups(counter, states, times=None):
    """Everything that a counter tells, against `states`, (rows, neurons) bool."""
    expected = expected_units(states, counter.group_size, times)
    n_states = len(states) if times is None else sum(times.tolist())
    tables, left = counter.tables(), states.shape[1]
    both = counter.snapshot()
    assert np.array_equal(both[0], tables)
    assert both[1].tolist() == counter.fired().tolist()
    assert tables.dtype == counter.fired().dtype == counter.n_distinct.dtype == np.uint64
    assert counter.n_states == n_states
    assert counter.n_units == len(expected)
    start = 0
    for counts in expected:
        size = min(counter.group_size, left)
        seen = tables[start : start + 2**size]
        assert {int(s): int(seen[s]) for s in np.flatnonzero(seen)} == counts
        start, left = start + 2**size, left - size
    assert (start, left) == (len(tables), 0)
    assert counter.n_distinct.tolist() == [len(counts) for counts in expected]
    assert [dict(spectrum.pairs()) for spectrum in counter.spectra()] == [
        {value: list(counts.values()).count(value) for value in counts.values()}
        for counts in expected
    ]
    values = [spectrum.values.tolist() for spectrum in counter.spectra()]
    assert values == [sorted(each) for each in values]
    weights = np.ones(len(states), object) if times is None else times.astype(object)
    assert counter.fired().tolist() == (weights @ states.astype(object)).tolist()
