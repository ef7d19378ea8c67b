"""Counting, merging, copying and refusing, against collections.Counter, once per kernel."""

import copy
import math
import pickle
import threading

import numpy as np
import pytest
from counter_oracle import (
    WIDTHS,
    assert_counts,
    every_kernel,
    new_counter,
    recurring,
)

from tensorstate_callbacks.states.counter import StateCounter, available_kernels, use_kernel


@every_kernel
@pytest.mark.parametrize("width", WIDTHS)
def test_packed_rows_count_like_the_activations_they_came_from(kernel, width):
    states = recurring(300, width) > 0
    rows = np.packbits(states, axis=1, bitorder="little")
    counter = new_counter(kernel, width)
    counter.update_packed(rows[:100])
    counter.update_packed(rows[100:][::-1])
    counter.update_packed(rows[:0])
    assert_counts(counter, states)


@every_kernel
@pytest.mark.parametrize(("width", "n_positions"), [(20, 400_000), (22, 5000), (50, 60_000)])
def test_many_distinct_states_are_counted_exactly(kernel, width, n_positions):
    numbers = np.random.default_rng(1).integers(0, 2**width, n_positions, np.uint64)
    rows = numbers.view(np.uint8).reshape(-1, 8)[:, : -(-width // 8)]
    counter = new_counter(kernel, width)
    for part in np.array_split(rows, 7):
        counter.update_packed(part)
    counter.update_packed(rows[:1000])
    expected, counts = np.unique(np.concatenate([numbers, numbers[:1000]]), return_counts=True)
    padded = np.zeros((len(expected), 8), np.uint8)
    padded[:, : rows.shape[1]] = counter.states()
    found = padded.view(np.uint64).reshape(-1)
    order = np.argsort(found)
    assert np.array_equal(found[order], expected)
    assert np.array_equal(counter.counts()[order], counts)


@every_kernel
@pytest.mark.parametrize("width", [64, 80, 128, 192, 256, 512, 1024])
def test_states_alike_but_for_a_few_bits_stay_apart(kernel, width):
    numbers = np.arange(6000, dtype="<u2").view(np.uint8).reshape(-1, 2)
    for first_byte in {0, width // 16, width // 8 - 2}:
        rows = np.full((6000, width // 8), 77, np.uint8)
        rows[:, first_byte : first_byte + 2] = numbers
        counter = new_counter(kernel, width)
        counter.update_packed(rows)
        assert counter.n_distinct == 6000
        assert {row.tobytes() for row in counter.states()} == {row.tobytes() for row in rows}


@every_kernel
@pytest.mark.parametrize("width", [20, 64, 65, 512])
def test_add_counts_weighs_states(kernel, width):
    rows = np.packbits(recurring(50, width) > 0, axis=1, bitorder="little")
    times = np.arange(50, dtype=np.uint64)
    counter = new_counter(kernel, width)
    counter.add_counts(rows, times)
    expected = np.repeat(recurring(50, width) > 0, times.astype(int), axis=0)
    assert_counts(counter, expected)


@every_kernel
@pytest.mark.parametrize("width", [1, 16, 20, 50, 64, 65, 512])
def test_merging_adds_counts_and_leaves_the_other_counter_alone(kernel, width):
    first, second = recurring(3000, width, 1) > 0, recurring(2000, width, 1) > 0
    for other_kernel in available_kernels():
        counter, other = new_counter(kernel, width), new_counter(other_kernel, width)
        counter.update(first, 1)
        other.update(second, 1)
        counter.merge(other)
        assert_counts(counter, np.concatenate([first, second]))
        assert_counts(other, second)
        counter.merge(counter)
        assert_counts(counter, np.concatenate([first, second] * 2))
        counter.merge(new_counter(other_kernel, width))
        assert counter.n_states == 10_000


def test_merging_large_tables_takes_no_quadratic_time():
    # Read out in the order of its hashes, a table must not pile up in the other.
    numbers = np.arange(1_000_000, dtype=np.uint64)
    part, target = StateCounter(64), StateCounter(64)
    part.update_packed(numbers.view(np.uint8).reshape(-1, 8))
    thread = threading.Thread(target=target.merge, args=(part,), daemon=True)
    thread.start()
    thread.join(timeout=20)  # 0.07 s; piled up, half a minute and more
    assert not thread.is_alive()
    assert target.n_distinct == target.n_states == 1_000_000


@every_kernel
def test_total_beyond_64_bits_is_an_error_that_changes_nothing(kernel):
    for width in (3, 40, 70):
        row = np.zeros((1, -(-width // 8)), np.uint8)
        counter = new_counter(kernel, width)
        counter.add_counts(row, np.array([2**64 - 2], np.uint64))
        counter.update(np.full((1, width), 1.0), 1)
        other = new_counter(kernel, width)
        other.update(np.full((1, width), -1.0), 1)
        state = counter.counts().tolist(), counter.states().tolist()
        for too_much in (
            lambda counter=counter, other=other: counter.merge(other),
            lambda counter=counter: counter.merge(counter),
            lambda counter=counter, other=other: counter.update_packed(other.states()),
            lambda counter=counter, width=width: counter.update(np.zeros((5, width)), 1),
            lambda counter=counter, row=row: counter.add_counts(
                np.repeat(row, 2, axis=0), np.array([2**63, 2**63], np.uint64)
            ),
        ):
            with pytest.raises(OverflowError, match=r"2\*\*64"):
                too_much()
        assert (counter.counts().tolist(), counter.states().tolist()) == state
        assert counter.n_states == 2**64 - 1


@every_kernel
def test_moments_and_spectrum_equal_hand_calculation(kernel):
    counter = new_counter(kernel, 8)
    assert counter.moments([0, 1, 2, math.inf]).tolist() == [0, 0, 0, 0]
    rows = np.array([[1], [2], [3], [4], [5], [6]], np.uint8)
    counter.add_counts(rows, np.array([1, 5000, 2, 2**40, 2, 5000], np.uint64))
    values, multiplicities = counter.spectrum()
    assert values.tolist() == [1, 2, 5000, 2**40]
    assert multiplicities.tolist() == [1, 2, 2, 1]
    assert counter.moments([0, 0.5, 1, 2, math.inf, 1000]).tolist() == [
        6,
        math.fsum([1, 2 * math.sqrt(2), 2 * math.sqrt(5000), 2**20]),
        math.fsum([4, 2 * 5000 * math.log2(5000), 40 * 2**40]),
        float(1 + 4 + 4 + 2 * 5000**2 + 2**80),
        2**40,
        math.inf,
    ]
    assert counter.moments([]).shape == (0,)
    for bad in (-1, math.nan):
        with pytest.raises(ValueError, match="order"):
            counter.moments([1, bad])


@every_kernel
@pytest.mark.parametrize("width", [5, 20, 64, 65, 512])
def test_reset_forgets_everything(kernel, width):
    counter = new_counter(kernel, width)
    empty = counter.nbytes
    counter.update(recurring(5000, width), 1)
    assert counter.nbytes > empty
    counter.reset()
    assert_counts(counter, np.empty((0, width), bool))
    assert counter.nbytes == empty
    counter.update(recurring(100, width, 3), 1)
    assert_counts(counter, recurring(100, width, 3) > 0)


def pickled(counter):
    return pickle.loads(pickle.dumps(counter))  # noqa: S301


@every_kernel
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_holds_the_same_and_counts_on_alone(kernel, clone):
    for width in (20, 65):
        counter = new_counter(kernel, width)
        counter.update(recurring(200, width), 1)
        with use_kernel(kernel):
            other = clone(counter)
        assert other.kernel == kernel
        assert_counts(other, recurring(200, width) > 0)
        other.update(recurring(10, width, 5), 1)
        assert_counts(counter, recurring(200, width) > 0)
        assert other.n_states == 210


@every_kernel
def test_bad_input_is_named_and_leaves_the_counter_as_it_was(kernel):
    states = recurring(50, 20) > 0
    counter = new_counter(kernel, 20)
    counter.update(states, 1)
    good = np.zeros((2, 20, 3), np.float32)
    rows = np.zeros((2, 3), np.uint8)
    one, two = np.ones(1, np.uint64), np.ones(2, np.uint64)
    padding = np.array([[0, 0, 16]], np.uint8)
    calls = [
        (ValueError, r"axis 0 of activations of shape \(2, 20, 3\) has 2 channels.*20 neurons",
         lambda: counter.update(good, 0)),
        (ValueError, r"no axis 3", lambda: counter.update(good, 3)),
        (ValueError, r"no axis -4", lambda: counter.update(good, -4)),
        (ValueError, r"no axis 0", lambda: counter.update(np.float32(1), 0)),
        (TypeError, "integer", lambda: counter.update(good, 1.0)),
        (TypeError, "complex64.*float32", lambda: counter.update(good.astype("c8"), 1)),
        (TypeError, "object", lambda: counter.update(good.astype(object), 1)),
        (TypeError, "str", lambda: counter.update(good.astype("U3"), 1)),
        (TypeError, "datetime64", lambda: counter.update(good.astype("M8[s]"), 1)),
        (TypeError, "longdouble|float128|float96",
         lambda: counter.update(good.astype(np.clongdouble).real, 1)),
        (TypeError, "bfloat16=True.*float32", lambda: counter.update(good, 1, bfloat16=True)),
        (TypeError, "bfloat16=True.*int32",
         lambda: counter.update(good.astype(np.int32), 1, bfloat16=True)),
        (ValueError, "finite", lambda: counter.update(good, 1, math.nan)),
        (ValueError, "finite", lambda: counter.update(good, 1, -math.inf)),
        (ValueError, "finite", lambda: counter.update(good, 1, np.float32(math.inf))),
        (TypeError, "real number", lambda: counter.update(good, 1, "0")),
        (TypeError, "real number", lambda: counter.update(good, 1, 1j)),
        (ValueError, "beyond their 20", lambda: counter.update_packed(padding)),
        (ValueError, r"\(m, 3\)", lambda: counter.update_packed(rows[:, :2])),
        (ValueError, r"\(m, 3\)", lambda: counter.update_packed(rows[0])),
        (TypeError, "int64", lambda: counter.update_packed(rows.astype(np.int64))),
        (ValueError, "beyond their 20", lambda: counter.add_counts(padding, one)),
        (ValueError, r"\(2,\)", lambda: counter.add_counts(rows, one)),
        (TypeError, "float64", lambda: counter.add_counts(rows, two.astype(float))),
        (ValueError, "21 neurons.*20 neurons", lambda: counter.merge(new_counter(kernel, 21))),
        (TypeError, "dict", lambda: counter.merge({})),
    ]  # fmt: skip
    for error, message, call in calls:
        if "float128" in message and np.dtype(np.longdouble).itemsize == 8:
            continue  # here a longdouble is a float64
        with pytest.raises(error, match=message):
            call()
        assert_counts(counter, states)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1, not {bad}"):
            new_counter(kernel, bad)
    for bad in (1.0, "3", None):
        with pytest.raises(TypeError, match="integer"):
            new_counter(kernel, bad)


@every_kernel
@pytest.mark.parametrize("width", [3, 20, 40, 100, 200])
def test_counts_stay_exact_while_merging_doubles_them_to_64_bits(kernel, width):
    rows = np.packbits(np.eye(3, width, dtype=bool), axis=1, bitorder="little")
    expected = [1, 100, 2**15 - 1]
    counter = new_counter(kernel, width)
    counter.add_counts(rows, np.array(expected, np.uint64))
    order = np.lexsort(rows.T[::-1])
    while 2 * sum(expected) < 2**64:
        other = pickled(counter) if sum(expected) % 3 else counter
        counter.merge(other)
        expected = [2 * count for count in expected]
        assert counter.counts().tolist() == [expected[i] for i in order]
        assert counter.fired()[:3].tolist() == expected
        assert counter.spectrum()[0].tolist() == expected
        assert counter.n_states == sum(expected)
    assert max(expected) > 2**62
    with pytest.raises(OverflowError):
        counter.merge(counter)
    assert counter.counts().tolist() == [expected[i] for i in order]


@every_kernel
@pytest.mark.parametrize("width", [1, 12, 20, 50, 100, 200])
def test_a_counter_that_is_full_to_the_last_state_is_merged_or_refuses_and_loses_nothing(
    kernel, width
):
    rows = np.packbits(np.eye(2, width, dtype=bool)[:width], axis=1, bitorder="little")
    other = new_counter(kernel, width)
    other.add_counts(rows[:1], np.array([1], np.uint64))
    for first in (1, 2**63, 2**64 - 2)[: 3 * len(rows) - 3] or (2**64 - 1,):
        counts = np.array([first, 2**64 - 1 - first][: len(rows)], np.uint64)
        full, empty = new_counter(kernel, width), new_counter(kernel, width)
        full.add_counts(rows, counts)
        empty.merge(full)
        full.merge(new_counter(kernel, width))
        for add in (
            lambda full=full: full.merge(other),
            lambda full=full: full.merge(full),
            lambda full=full, empty=empty: full.merge(empty),
            lambda full=full: full.update_packed(rows),
            lambda full=full: full.update(np.ones((1, width)), 1),
            lambda full=full, counts=counts: full.add_counts(rows, counts),
        ):
            with pytest.raises(OverflowError, match="at most 2\\*\\*64 - 1 states"):
                add()
            assert full.n_states == 2**64 - 1
            assert dict(zip(full.states().tobytes(), full.counts().tolist(), strict=False)) == dict(
                zip(empty.states().tobytes(), empty.counts().tolist(), strict=False)
            )
            assert sorted(full.counts().tolist()) == sorted(counts.tolist())


@every_kernel
@pytest.mark.parametrize("width", [12, 50, 100])
def test_counts_that_are_more_than_a_counter_holds_in_their_last_row_are_taken_back(kernel, width):
    counter = new_counter(kernel, width)
    batch = recurring(9000, width)
    counter.update(batch, 1)
    rows = np.packbits(recurring(9000, width, 1) > 0, axis=1, bitorder="little")
    counts = np.ones(9000, np.uint64)
    counts[-1] = 2**64 - 1
    with pytest.raises(OverflowError):
        counter.add_counts(rows, counts)
    assert_counts(counter, batch > 0)


@every_kernel
@pytest.mark.parametrize("width", [12, 50, 64, 100, 200])
def test_rows_counted_zero_times_are_no_states(kernel, width):
    states = recurring(3000, width) > 0
    rows = np.packbits(states, axis=1, bitorder="little")
    counts = np.zeros(3000, np.uint64)
    counts[2000:2500:2] = 1
    counter = new_counter(kernel, width)
    counter.add_counts(rows, counts)
    assert_counts(counter, states[2000:2500:2])


def test_repr_says_what_was_counted():
    counter = new_counter("numpy", 4)
    counter.update(np.ones((3, 4)), 1)
    assert repr(counter) == "StateCounter(n_neurons=4, n_states=3, n_distinct=1, kernel='numpy')"


@every_kernel
@pytest.mark.parametrize("width", [16, 20, 64, 72, 127, 200])
@pytest.mark.parametrize("place", [0, -1])
def test_states_that_differ_in_one_byte_are_sorted_by_it(kernel, width, place, rng):
    rows = np.zeros((16, -(-width // 8)), np.uint8)
    rows[:, place] = rng.permutation(16)  # a last byte has at least 4 bits
    rows[:, 1:-1] = rng.integers(0, 256)
    counter = new_counter(kernel, width)
    counter.update_packed(rows)
    assert [row.tobytes() for row in counter.states()] == sorted(row.tobytes() for row in rows)
