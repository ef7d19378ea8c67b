"""Memory that runs out in the middle of a batch, by injection: nothing changes."""

import numpy as np
import pytest
from counter_oracle import assert_counts, native_kernels, new_counter

# What a call of few rows allocates by itself: where its rows lie, and lists of these.
OWN = 3


def until_it_succeeds(counter, add, most=None):
    """Fail one allocation after the other of `add`; how many there were. `most`: only a few."""
    from tensorstate_callbacks._native._counter import fail_allocation

    def held():
        return (
            counter.n_states,
            counter.n_distinct,
            counter.states().tolist(),
            counter.counts().tolist(),
            counter.fired().tolist(),
            [part.tolist() for part in counter.spectrum()],
        )

    before, failures = held(), 0
    for number in most or range(1, 10**6):
        fail_allocation(number)
        try:
            add()
            break
        except MemoryError:
            failures += 1
        finally:
            fail_allocation(0)
        assert held() == before
    return failures


@native_kernels
@pytest.mark.parametrize("width", [10, 18, 50, 100, 200])
@pytest.mark.parametrize("half", [2**7, 2**15])
def test_counts_around_the_sizes_that_spill_over_come_back_exactly(kernel, width, half):
    # Small counts hold less than two halves; what they add up to stands elsewhere, and grows there.
    before = [0, 0, 1, half - 1, half, half + 1, 2 * half - 1, 2 * half, 5 * half + 3, 2**40]
    more = [3, 2**20, half, 2 * half - 1, 1, 2**33, 2 * half, half - 1, 7, 5]
    rows = np.zeros((40, -(-width // 8)), np.uint8)
    rows[:, 0] = np.arange(40)
    old = np.array([before[i % 10] for i in range(40)], np.uint64)
    new = np.array([more[i * 7 // 5 % 10] for i in range(40)], np.uint64)
    for shift in range(0, 40, 3):
        order = np.roll(np.arange(40), shift)
        counter = new_counter(kernel, width)
        counter.add_counts(rows, old)
        failures = until_it_succeeds(counter, lambda counter=counter, order=order: (
            counter.add_counts(rows[order], new[order])
        ))  # fmt: skip
        assert failures >= 2
        assert counter.states()[:, 0].tolist() == list(range(40))
        assert counter.counts().tolist() == (old + new).tolist()


@native_kernels
def test_runs_before_the_one_that_finds_no_memory_are_taken_back(kernel):
    # Runs of a few rows each, of states whose small counts are full at different times.
    states = np.repeat(np.array([5, 9, 7, 9, 5, 1, 7, 8], np.uint8), 16)[:, None]
    runs = np.concatenate([states, states[::-1], states])
    for full in (1, 5, 7, 8, 9):
        counter = new_counter(kernel, 8)
        counter.update_packed(states)
        counter.add_counts(np.array([[full]], np.uint8), np.array([200], np.uint64))
        before = counter.counts()
        failures = until_it_succeeds(counter, lambda counter=counter: counter.update_packed(runs))
        # 5 prevails: where it finds no memory for its count, it goes on prevailing.
        assert failures == OWN + (full != 5)
        assert counter.counts().tolist() == (before + 3 * np.array([16, 32, 32, 16, 32])).tolist()


@native_kernels
@pytest.mark.parametrize("before", range(8))
@pytest.mark.parametrize("behind", range(4))
@pytest.mark.parametrize("prevail", [20, 15, 0])
def test_whichever_of_many_states_finds_no_memory_those_before_are_taken_back(
    kernel, before, behind, prevail
):
    # 99 is full; 0 prevails; the others stand one by one in front of it and behind it, in a group
    # of 16 or in the rest.
    counter = new_counter(kernel, 8)
    counter.add_counts(np.array([[99]], np.uint8), np.array([255], np.uint64))
    counter.update_packed(np.zeros((5, 1), np.uint8))
    others = np.arange(1, before + behind + 1)
    numbers = np.concatenate([np.zeros(prevail), others[:before], [99], others[before:], [0] * 9])
    rows = numbers.astype(np.uint8)[:, None]
    assert until_it_succeeds(counter, lambda: counter.update_packed(rows)) == OWN + 1
    expected = np.bincount(rows[:, 0], minlength=100)
    expected[99] += 255
    expected[0] += 5
    assert counter.counts().tolist() == expected[expected > 0].tolist()


@native_kernels
@pytest.mark.parametrize("width", [8, 16])
def test_a_state_that_prevails_from_the_first_block_on_finds_no_memory(kernel, width):
    counter = new_counter(kernel, width)
    zeros = np.zeros((600, width // 8), np.uint8)
    assert until_it_succeeds(counter, lambda: counter.update_packed(zeros)) == OWN + 1
    assert counter.counts().tolist() == [600]


@native_kernels
@pytest.mark.parametrize("width", [17, 18, 22])
def test_moving_to_another_engine_with_large_counts_fails_without_a_trace(kernel, width):
    # Few rows with large counts, then a quarter as many rows as there are possible states: these
    # are counted in an array, into which the large counts have to move.
    numbers = np.arange(400, dtype="<u4") * 255
    rows = numbers.view(np.uint8).reshape(-1, 4)[:, : -(-width // 8)]
    many = np.resize(rows, (2**width // 4, rows.shape[1]))
    some = [*range(1, 15), 50, 150, 400, 0]
    counter = new_counter(kernel, width)
    counter.add_counts(rows, np.arange(100, 500, dtype=np.uint64))
    failures = until_it_succeeds(counter, lambda: counter.update_packed(many), some)
    failures += until_it_succeeds(counter, lambda: counter.update_packed(rows), some)
    assert failures >= 3
    expected = np.bincount(np.arange(len(many)) % 400) + 1 + np.arange(100, 500)
    assert counter.n_distinct == 400
    order = np.lexsort(rows.T[::-1])
    assert counter.counts().tolist() == expected[order].tolist()
    counter.update_packed(many)
    expected += np.bincount(np.arange(len(many)) % 400)
    assert counter.counts().tolist() == expected[order].tolist()


@native_kernels
@pytest.mark.parametrize("width", [16, 50, 100, 200])
def test_merging_a_counter_into_itself_fails_without_a_trace_after_many_blocks(kernel, width):
    numbers = np.arange(10_000, dtype="<u2").view(np.uint8).reshape(-1, 2)
    rows = np.zeros((10_000, -(-width // 8)), np.uint8)
    rows[:, :2] = numbers
    full = 2**8 if width == 16 else 2**16  # of a small count: all of them spill over
    counts = np.random.default_rng(6).integers(full // 2, full, 10_000, np.uint64)
    counter = new_counter(kernel, width)
    counter.add_counts(rows, counts)
    failures = until_it_succeeds(counter, lambda: counter.merge(counter), [*range(1, 25), 0])
    assert failures >= (8 if width <= 128 else 2)
    assert counter.n_distinct == 10_000
    assert counter.spectrum()[0].tolist() == np.unique(2 * counts).tolist()
    assert counter.n_states == 2 * int(counts.sum())


@native_kernels
@pytest.mark.parametrize("width", [12, 20, 50, 100, 200, 512])
def test_nbytes_tells_at_least_what_states_and_counts_need(kernel, width):
    n_states = min(2 ** (width - 1), 30_000)
    rows = np.zeros((n_states, -(-width // 8)), np.uint8)
    rows[:, :2] = np.arange(n_states, dtype="<u2").view(np.uint8).reshape(-1, 2)
    counter = new_counter(kernel, width)
    counter.update_packed(rows)
    small = counter.nbytes
    if width <= 128:
        need = 2**width if width < 16 else n_states * (8 * -(-width // 64) + 2)
    else:  # a row, its count and its place
        need = n_states * (8 * -(-width // 64) + 8 + 8)
    assert small >= need
    counter.add_counts(rows, np.full(n_states, 2**32, np.uint64))
    if width <= 128:  # small counts that spill over
        assert counter.nbytes >= small + 16 * n_states
    assert counter.n_states == n_states * (2**32 + 1)


@native_kernels
@pytest.mark.parametrize("width", [50, 100, 200, 512])
def test_blocks_of_activations_are_taken_back_from_whichever_finds_no_memory(kernel, width):
    # A counter that failed once has grown: only a new one fails in the last of three blocks.
    from tensorstate_callbacks._native._counter import fail_allocation

    rng = np.random.default_rng(width)
    before, batch = (rng.standard_normal((n, width), np.float32) for n in (100, 10_000))
    failures, failed = 0, True
    while failed:
        counter = new_counter(kernel, width)
        counter.update(before, 1)
        fail_allocation(failures + 1)
        try:
            counter.update(batch, 1)
            failed = False
        except MemoryError:
            failures += 1
        finally:
            fail_allocation(0)
        states = [before > 0] if failed else [before > 0, batch > 0]
        assert_counts(counter, np.concatenate(states))
    assert failures >= 5
