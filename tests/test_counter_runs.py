"""States that repeat their neighbours, and counts around what a small count holds."""

import ctypes
import mmap

import numpy as np
import pytest
from counter_oracle import every_kernel, native_kernels, new_counter

LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1025, 70_000)


def counted(counter):
    rows, counts = counter.snapshot()
    return {row.tobytes(): int(count) for row, count in zip(rows, counts, strict=True)}


def expected(rows):
    values, counts = np.unique(rows.view(f"V{rows.shape[1]}").ravel(), return_counts=True)
    return {value.tobytes(): int(count) for value, count in zip(values, counts, strict=True)}


def packed(numbers, width):
    shifts = np.arange(0, 8 * -(-width // 8), 8, dtype=np.uint64)
    return (np.asarray(numbers, np.uint64)[:, None] >> shifts).astype(np.uint8)


@every_kernel
@pytest.mark.parametrize("width", [3, 8, 16, 17, 20, 22, 23])
def test_runs_of_any_length_are_counted_whole(kernel, width):
    rng = np.random.default_rng(width)
    lengths = rng.choice(LENGTHS, 40)
    numbers = np.repeat(rng.integers(0, 1 << width, 40), lengths)
    # Alternating, so that no neighbour is alike.
    numbers = np.concatenate([numbers, np.tile(numbers[[0, -1]], 300), numbers[:77]])
    rows = packed(numbers, width)
    counter = new_counter(kernel, width)
    counter.update_packed(rows)
    assert counted(counter) == expected(rows)
    # What was counted is the same in pieces that begin anywhere within a run.
    pieces = new_counter(kernel, width)
    for piece in np.array_split(rows, 23):
        pieces.update_packed(piece)
    assert counted(pieces) == counted(counter)
    assert counter.n_distinct == len(expected(rows))


@every_kernel
@pytest.mark.parametrize("width", [16, 20, 50, 100])
@pytest.mark.parametrize("half", [1 << 7, 1 << 8, 1 << 15, 1 << 16])
def test_counts_around_what_a_small_one_holds(kernel, width, half):
    # Grown by ones, by a few, and at once; the sums end on either side of each edge.
    row = packed([5], width)
    other = packed([6], width)
    for total in (half - 1, half, half + 1, 2 * half - 1, 2 * half, 2 * half + 1):
        for steps in ([1] * min(total, 300), [total // 3] * 3, [total]):
            counter = new_counter(kernel, width)
            counter.update_packed(other)
            for step in steps:
                counter.add_counts(row, np.array([step], np.uint64))
            rest = total - sum(steps)
            counter.update_packed(np.tile(row, (rest, 1)))
            assert counted(counter) == {row.tobytes(): total, other.tobytes(): 1}


@native_kernels
def test_small_counts_that_run_over_without_memory_are_taken_back(kernel):
    from tensorstate_callbacks._native._counter import fail_allocation

    # Every state reaches 256 within the batch: the side table has to grow again and again.
    numbers = np.tile(np.arange(600), 130)
    before = packed(numbers, 20)
    ones = packed(numbers, 20)
    repeats = packed(np.repeat(np.arange(600), 130), 20)
    several = packed(np.tile(np.repeat(np.arange(600), 10), 13), 20)  # several in each 64
    for batch in (ones, repeats, several):
        counter = new_counter(kernel, 20)
        counter.update_packed(before)
        assert counter.nbytes == 1 << 20
        was, failures = counted(counter), 0
        try:
            while True:
                fail_allocation(failures + 1)
                try:
                    counter.update_packed(batch)
                    break
                except MemoryError:
                    failures += 1
                fail_allocation(0)
                assert counted(counter) == was
                assert counter.n_states == len(before)
        finally:
            fail_allocation(0)
        assert failures >= 5
        assert counted(counter) == expected(np.concatenate([before, batch]))


@every_kernel
@pytest.mark.parametrize("width", [1, 7, 9, 17, 20, 27, 33, 50, 57, 63, 65, 100])
def test_packed_rows_at_the_end_of_memory_are_read_to_their_last_byte(kernel, width):
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mprotect"):
        pytest.skip("this system can't forbid reading a page (mprotect)")
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    readable = np.frombuffer(pages, np.uint8)[: mmap.PAGESIZE]
    beyond = ctypes.c_void_p(readable.ctypes.data + mmap.PAGESIZE)
    assert libc.mprotect(beyond, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    rng = np.random.default_rng(width)
    row_bytes = -(-width // 8)
    for size in (1, 2, 7, 8, 9, 15, 63, 64, 65, 200):
        rows = rng.integers(0, 256, (size, row_bytes), np.uint8)
        if width % 8:
            rows[:, -1] >>= 8 - width % 8
        memory = readable[len(readable) - rows.size :].reshape(rows.shape)
        memory[:] = rows
        counter = new_counter(kernel, width)
        counter.update_packed(memory)
        assert counted(counter) == expected(rows)
    assert libc.mprotect(beyond, ctypes.c_size_t(mmap.PAGESIZE), 3) == 0


@every_kernel
@pytest.mark.parametrize("width", [1, 9, 20, 23, 50, 63, 65, 100, 1001])
def test_a_bit_beyond_the_neurons_is_found_in_any_row(kernel, width):
    row_bytes = -(-width // 8)
    for size in (1, 2, 63, 64, 65, 130):
        for row in {0, size // 2, size - 1}:
            for bit in {width % 8, 7}:
                rows = np.zeros((size, row_bytes), np.uint8)
                rows[:, -1] = (1 << width % 8) - 1
                rows[row, -1] |= 1 << bit
                counter = new_counter(kernel, width)
                with pytest.raises(ValueError, match=f"beyond their {width} neurons"):
                    counter.update_packed(rows)
                assert counter.n_states == 0


@native_kernels
def test_twenty_neurons_are_counted_in_an_array_as_soon_as_that_pays(kernel):
    few, many = packed(np.arange(1000), 20), packed(np.arange(1 << 16), 20)
    counter = new_counter(kernel, 20)
    counter.update_packed(few)
    assert counter.nbytes < 1 << 16
    counter.update_packed(many)  # a sixteenth of all states in one batch
    assert counter.nbytes == 1 << 20
    slowly = new_counter(kernel, 20)
    for start in range(0, len(many), 1000):
        slowly.update_packed(many[start : start + 1000])
    slowly.update_packed(few)
    assert slowly.nbytes == 1 << 20
    assert counted(slowly) == counted(counter)
