"""What counting costs in memory, and what happens where there is none."""

import numpy as np
import pytest
from counter_oracle import assert_counts, native_kernels, new_counter

from tensorstate_callbacks.states.counter import StateCounter


@native_kernels
@pytest.mark.parametrize("width", [20, 22, 50, 64, 65, 128, 129, 512])
def test_memory_per_distinct_state_is_bounded_while_states_grow(kernel, width):
    bound = 30 if width <= 64 else -(-width // 8) + 40
    rng = np.random.default_rng(3)
    counter = new_counter(kernel, width)
    while counter.n_distinct < 150_000:
        rows = rng.integers(0, 256, (5000, -(-width // 8)), np.uint8)
        if width % 8:
            rows[:, -1] >>= 8 - width % 8
        counter.update_packed(rows)
        if counter.n_distinct >= 10_000:
            assert counter.nbytes <= bound * counter.n_distinct


def test_more_memory_than_is_kept_for_the_next_counter_is_given_back():
    # Twice what is kept, in two counters whose memory comes back in turn.
    rows = np.random.default_rng(8).integers(0, 2**64, (2, 3_200_000), np.uint64)
    rows = rows.view(np.uint8).reshape(2, -1, 8)
    for _ in range(2):
        counters = [StateCounter(64), StateCounter(64)]
        for counter, part in zip(counters, rows, strict=True):
            counter.update_packed(part)
        assert sum(counter.nbytes for counter in counters) > 2 * 64 * 2**20
        assert [counter.n_distinct for counter in counters] == [3_200_000] * 2
        for counter in counters:
            counter.reset()
            assert counter.nbytes == 0
    counters[0].update_packed(rows[0][:1000])
    assert_counts(counters[0], np.unpackbits(rows[0][:1000], axis=1, bitorder="little"))


@native_kernels
@pytest.mark.parametrize("width", [10, 18, 20, 50, 65, 512])
def test_a_failed_allocation_takes_the_whole_batch_back(kernel, width):
    from tensorstate_callbacks._native._counter import fail_allocation

    rng = np.random.default_rng(2)
    before, batch = (rng.standard_normal((n, width)) for n in (1500, 30_000))
    rows = np.packbits(batch > 0, axis=1, bitorder="little")
    other = new_counter(kernel, width)
    other.update(batch, 1)
    for add in (
        lambda counter: counter.update(batch, 1),
        lambda counter: counter.update_packed(rows),
        lambda counter: counter.merge(other),
    ):
        counter = new_counter(kernel, width)
        counter.update(before, 1)
        failures = 0
        try:
            while True:
                fail_allocation(failures + 1)
                try:
                    add(counter)
                    break
                except MemoryError:
                    failures += 1
                fail_allocation(0)
                assert_counts(counter, before > 0)
        finally:
            fail_allocation(0)
        assert failures >= (1 if width <= 16 else 2)
        assert_counts(counter, np.concatenate([before, batch]) > 0)
        undisturbed = new_counter(kernel, width)
        undisturbed.update(before, 1)
        add(undisturbed)
        assert counter.nbytes == undisturbed.nbytes


@native_kernels
@pytest.mark.parametrize("width", [10, 18, 50, 65, 512])
def test_a_failed_allocation_for_large_counts_takes_them_back(kernel, width):
    from tensorstate_callbacks._native._counter import fail_allocation

    rows = np.packbits(np.eye(8, width, dtype=bool), axis=1, bitorder="little")
    for add, factor in (
        (lambda counter: counter.add_counts(rows, np.full(8, 2**20, np.uint64)), 1),
        (lambda counter: counter.merge(counter), 0),
    ):
        counter = new_counter(kernel, width)
        for _ in range(100):  # below what a small count holds, so that more of them spill over
            counter.update_packed(rows)
        before, failures = counter.counts().tolist(), 0
        try:
            while True:
                fail_allocation(failures + 1)
                try:
                    add(counter)
                    break
                except MemoryError:
                    failures += 1
                fail_allocation(0)
                assert counter.counts().tolist() == before
                assert counter.n_states == 800
        finally:
            fail_allocation(0)
        assert failures >= 2
        assert counter.counts().tolist() == [100 + factor * 2**20 + (1 - factor) * 100] * 8
