"""Counting the units of a layer, against np.unique of each unit's bits, once per kernel."""

import copy
import pickle

import numpy as np
import pytest
from counter_oracle import every_kernel, expected_states, new_counter, recurring
from group_oracle import assert_groups, expected_units, held, new_groups, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorstate_callbacks.metrics.entropy import spectrum_entropy
from tensorstate_callbacks.states.counter import Memory, available_kernels, use_kernel
from tensorstate_callbacks.states.group_counter import GroupCounter

few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([*range(1, 13), 16])
widths = st.one_of(st.integers(1, 70), st.sampled_from([100, 127, 128, 129, 200, 512, 515]))


@every_kernel
@pytest.mark.parametrize("size", range(1, 23))
def test_each_unit_of_any_size_is_counted(kernel, size):
    # Of large units there are many counts to copy.
    for width in (size + 1, 3 * size + 5, 131) if size <= 12 else (size + 1,):
        states = recurring(150, width) > 0
        counter = new_groups(kernel, width, size)
        counter.update(states[:70], 1)
        counter.update_packed(packed(states[70:]))
        counter.update_packed(packed(states[:0]))
        assert_groups(counter, states)


@every_kernel
@pytest.mark.parametrize(("width", "size", "times"), [(20, 8, 1), (12, 3, 1), (16, 16, 8)])
def test_more_rows_than_are_counted_at_once_are_all_counted(kernel, width, size, times, rng):
    numbers = rng.integers(0, 2**width, 280_000, np.uint32)
    activations = (numbers[:, None] >> np.arange(width, dtype=np.uint32) & 1).astype(np.uint8)
    rows = np.tile(numbers.view(np.uint8).reshape(-1, 4)[:, : -(-width // 8)], (times, 1))
    whole, parts = new_groups(kernel, width, size), new_groups(kernel, width, size)
    whole.update(activations, 1)
    parts.update_packed(rows)
    expected = np.concatenate([
        np.bincount(numbers >> first & 2 ** min(size, width - first) - 1,
                    minlength=2 ** min(size, width - first))
        for first in range(0, width, size)
    ])  # fmt: skip
    assert np.array_equal(whole.tables(), expected)
    assert np.array_equal(parts.tables(), times * expected)


@every_kernel
def test_tables_may_lie_in_memory_in_any_way(kernel):
    states = recurring(100, 20) > 0
    given = new_groups(kernel, 20, 8)
    given.update(states, 1)
    tables = given.tables()
    frozen = tables.copy()
    frozen.flags.writeable = False
    for some in (
        tables[::-1].copy()[::-1],
        np.repeat(tables, 2)[::2],
        tables.astype(">u8"),
        frozen,
    ):
        counter = new_groups(kernel, 20, 8)
        counter.add_tables(some, np.uint64(100))
        assert_groups(counter, states)


@every_kernel
@few
@given(data=st.data(), width=widths, size=sizes, seed=seeds)
def test_any_view_of_any_dtype_is_counted(kernel, data, width, size, seed):
    dtype = data.draw(st.sampled_from(["f2", "f4", "f8", "i1", "u2", "i8", "?"]))
    others = data.draw(st.lists(st.integers(0, 9), max_size=2))
    axis = data.draw(st.integers(0, len(others)))
    step = data.draw(st.sampled_from([-2, -1, 1, 3]))
    threshold = data.draw(st.sampled_from([0.0, 0.5, -0.5, 1.0, 10**400, -(10**400)]))
    shape = [*others[:axis], width, *others[axis:]]
    order = data.draw(st.permutations(range(len(shape))))
    drawn = np.random.default_rng(seed).standard_normal([3 * shape[i] for i in order]) * 2
    with np.errstate(invalid="ignore"):  # on ARM a negative float is no unsigned integer
        view = drawn.astype(dtype).transpose(np.argsort(order))
    view = view[tuple(slice(n if step > 0 else 2 * n - 1, None, step) for n in shape)]
    view = view[tuple(slice(0, n) for n in shape)]
    n_last = view.shape[axis]
    counter = new_groups(kernel, n_last, size)
    counter.update(view, axis, threshold)
    assert_groups(counter, expected_states(view, axis, threshold))


@every_kernel
def test_bfloat16_bits_and_memory_are_read_as_by_a_state_counter(kernel):
    floats = recurring(400, 21)
    bits = (floats.view(np.uint32) >> 16).astype(np.uint16)
    counter = new_groups(kernel, 21, 8)
    counter.update(bits, 1, bfloat16=True)
    counter.update(
        Memory(floats.ctypes.data, floats.shape, floats.strides, floats.dtype), 1, threshold=0.0
    )
    assert_groups(counter, np.concatenate([floats, floats]) > 0)


@every_kernel
@few
@given(width=widths, size=sizes, seed=seeds, most=st.sampled_from([1, 300, 2**31, 2**33, 2**50]))
def test_rows_with_counts_weigh_as_much(kernel, width, size, seed, most):
    rng = np.random.default_rng(seed)
    states = rng.random((60, width)) < 0.3
    times = rng.integers(0, most, 60, np.uint64, endpoint=True)
    counter = new_groups(kernel, width, size)
    counter.add_counts(packed(states), times)
    counter.update_packed(packed(states))
    both = np.concatenate([times, np.ones(60, np.uint64)])
    assert_groups(counter, np.concatenate([states, states]), both)


@every_kernel
@few
@given(width=widths, size=sizes, seed=seeds, n_shards=st.integers(1, 4))
def test_numbers_do_not_depend_on_batches_order_or_shards(kernel, width, size, seed, n_shards):
    rng = np.random.default_rng(seed)
    activations = recurring(200, width, seed)
    whole = new_groups(kernel, width, size)
    whole.update(activations, 1)
    shards = [new_groups(str(rng.choice(available_kernels())), width, size) for _ in range(4)]
    cuts = np.sort(rng.integers(0, 201, rng.integers(0, 8)))
    for batch in np.split(rng.permutation(activations), cuts):
        shards[rng.integers(n_shards)].update(batch.T, 0)
    merged = new_groups(kernel, width, size)
    for shard in rng.permutation(shards[:2]):
        merged.merge(shard)
    merged.add_tables(shards[2].tables(), shards[2].n_states)
    with use_kernel(kernel):
        merged.merge(pickle.loads(pickle.dumps(shards[3])))  # noqa: S301
    assert held(merged) == held(whole)


@every_kernel
@pytest.mark.parametrize("width", [1, 7, 8, 12, 16, 22])
def test_a_layer_that_is_one_unit_has_the_spectrum_of_its_states(kernel, width):
    activations = recurring(3000, width)
    states = new_counter(kernel, width)
    states.update(activations, 1)
    for size in {width, 22}:
        units = new_groups(kernel, width, size)
        units.update(activations, 1)
        assert units.spectra() == [states.spectrum()]
        assert units.n_distinct.tolist() == [states.n_distinct]
        assert units.fired().tolist() == states.fired().tolist()


@every_kernel
@pytest.mark.parametrize("width", [5, 64, 100])
def test_single_neurons_tell_how_often_each_fired(kernel, width):
    activations = recurring(1000, width)
    neurons, states = new_groups(kernel, width, 1), new_counter(kernel, width)
    neurons.update(activations, 1)
    states.update(activations, 1)
    fired = states.fired()
    assert (
        neurons.tables().reshape(width, 2).tolist() == np.stack([1000 - fired, fired], 1).tolist()
    )
    assert neurons.fired().tolist() == fired.tolist()


def test_entropy_grows_as_nested_groups_get_smaller():
    counters = [GroupCounter(64, size) for size in (16, 8, 4, 2, 1)]
    for counter in counters:
        counter.update(recurring(5000, 64), 1)
    bits = [sum(spectrum_entropy(s) for s in counter.spectra()) for counter in counters]
    assert bits == sorted(bits)
    assert len(set(bits)) == 5


@every_kernel
@pytest.mark.parametrize("size", [1, 3, 8, 12])
def test_merging_adds_and_leaves_the_other_counter_alone(kernel, size):
    first, second = recurring(900, 37, 1) > 0, recurring(500, 37, 2) > 0
    for other_kernel in available_kernels():
        counter, other = new_groups(kernel, 37, size), new_groups(other_kernel, 37, size)
        counter.update(first, 1)
        other.update(second, 1)
        counter.merge(other)
        assert_groups(counter, np.concatenate([first, second]))
        assert_groups(other, second)
        counter.merge(counter)
        assert_groups(counter, np.concatenate([first, second] * 2))
        counter.merge(new_groups(other_kernel, 37, size))
        assert counter.n_states == 2800


@every_kernel
@pytest.mark.parametrize("size", [1, 3, 8, 10])
def test_counts_stay_exact_while_merging_doubles_them_to_64_bits(kernel, size):
    states = np.eye(3, 20, dtype=bool)
    times = np.array([1, 100, 2**15 - 1], np.uint64)
    counter = new_groups(kernel, 20, size)
    counter.add_counts(packed(states), times)
    while 2 * counter.n_states < 2**64:
        if sum(times.tolist()) % 3:
            counter.merge(counter)
        else:
            counter.add_tables(counter.tables(), counter.n_states)
        times = 2 * times
        assert_groups(counter, states, times)
        if sum(times.tolist()) > 2**30:
            counter.update_packed(packed(states[:1]))
            times[0] += np.uint64(1)
    assert counter.n_states > 2**63
    for add in (
        lambda: counter.merge(counter),
        lambda: counter.add_tables(counter.tables(), counter.n_states),
        lambda: counter.add_counts(packed(states), times),
        lambda: counter.add_counts(packed(states), np.full(3, 2**63, np.uint64)),
    ):
        with pytest.raises(OverflowError, match=r"at most 2\*\*64 - 1 states"):
            add()
        assert_groups(counter, states, times)


@every_kernel
@pytest.mark.parametrize("size", [2, 8, 9])
def test_a_counter_that_is_full_to_the_last_state_refuses_and_loses_nothing(kernel, size):
    states = np.eye(1, 20, dtype=bool)
    full, one = new_groups(kernel, 20, size), new_groups(kernel, 20, size)
    full.add_counts(packed(states), np.array([2**64 - 2], np.uint64))
    full.update(states, 1)
    one.update(~states, 1)
    before = held(full)
    for add in (
        lambda: full.update(states, 1),
        lambda: full.update(states, 1, threshold=2),  # nothing fires
        lambda: full.update_packed(packed(states)),
        lambda: full.merge(one),
        lambda: full.add_tables(one.tables(), 1),
        lambda: full.add_tables(np.resize(one.tables(), len(one.tables())), 2**64),
    ):
        with pytest.raises(OverflowError, match=r"at most 2\*\*64 - 1 states"):
            add()
        assert held(full) == before
    one.reset()
    one.merge(full)
    assert held(one) == before
    assert full.n_states == 2**64 - 1


@every_kernel
@pytest.mark.parametrize("size", [3, 8, 12])
def test_counts_pass_32_bits_between_two_rows(kernel, size):
    states = recurring(3000, 40) > 0
    states[1::2] = states[0]
    almost = np.array([2**32 - 1000], np.uint64)
    counter, other = new_groups(kernel, 40, size), new_groups(kernel, 40, size)
    for _ in range(2):
        counter.add_counts(packed(states[:1]), almost)
        counter.update(states, 1)
        counter.update_packed(packed(states[::-1]))
    times = np.full(3000, 4, np.uint64)
    times[0] += 2 * almost[0]
    assert_groups(counter, states, times)
    for _ in range(2):
        other.merge(counter)
    assert_groups(other, states, 2 * times)
    other.reset()
    half = new_groups(kernel, 40, size)
    half.add_counts(packed(states[:1]), almost // 2 + 1000)
    for _ in range(2):
        other.merge(half)
    assert_groups(other, states[:1], 2 * (almost // 2 + 1000))


@every_kernel
@pytest.mark.parametrize("size", [1, 5, 8, 16])
@pytest.mark.parametrize("times", [2**28, 2**40])
def test_reset_forgets_everything(kernel, size, times):
    counter = new_groups(kernel, 50, size)
    empty = counter.nbytes
    counter.add_counts(packed(recurring(10, 50) > 0), np.full(10, times, np.uint64))
    assert counter.nbytes >= empty
    counter.reset()
    assert counter.nbytes == empty
    assert_groups(counter, np.empty((0, 50), bool))
    counter.update(recurring(100, 50, 3), 1)
    assert_groups(counter, recurring(100, 50, 3) > 0)
    counter.add_counts(packed(np.zeros((1, 50), bool)), np.array([2**32 - 101], np.uint64))
    assert counter.nbytes == empty  # counts of 32 bits have place again


def pickled(counter):
    return pickle.loads(pickle.dumps(counter))  # noqa: S301


@every_kernel
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("size", [1, 8, 16])
def test_a_copy_holds_the_same_and_counts_on_alone(kernel, clone, size):
    counter = new_groups(kernel, 30, size)
    counter.update(recurring(200, 30), 1)
    with use_kernel(kernel):
        other = clone(counter)
    assert other.kernel == kernel
    assert_groups(other, recurring(200, 30) > 0)
    other.update(recurring(10, 30, 5), 1)
    assert_groups(counter, recurring(200, 30) > 0)
    assert other.n_states == 210


def test_a_pickle_has_no_place_for_states_never_seen():
    counter = GroupCounter(64, 16)
    counter.update(recurring(500, 64), 1)
    assert len(pickle.dumps(counter)) < 4 * 500 * 16 + 2000


@every_kernel
def test_bad_input_is_named_and_leaves_the_counter_as_it_was(kernel):
    states = recurring(50, 20) > 0
    counter = new_groups(kernel, 20, 8)
    counter.update(states, 1)
    tables, padding = counter.tables(), np.array([[0, 0, 0]] * 9 + [[0, 0, 16]], np.uint8)
    wrong = tables.copy()
    wrong[300] += np.uint64(1)
    wrapped = tables.copy()
    wrapped[300:302] += np.uint64(2**63)
    rows = np.zeros((2, 3), np.uint8)
    calls = [
        (ValueError, "20 neurons", lambda: counter.update(states.T, 1)),
        (TypeError, "complex64", lambda: counter.update(states.astype("c8"), 1)),
        (ValueError, "finite", lambda: counter.update(states, 1, np.nan)),
        (ValueError, "beyond their 20", lambda: counter.update_packed(padding)),
        (ValueError, "beyond their 20",
         lambda: counter.add_counts(padding, np.ones(10, np.uint64))),
        (ValueError, r"\(m, 3\)", lambda: counter.update_packed(rows[:, :2])),
        (TypeError, "int64", lambda: counter.update_packed(rows.astype(np.int64))),
        (ValueError, r"\(2,\)", lambda: counter.add_counts(rows, np.ones(1, np.uint64))),
        (TypeError, "float64", lambda: counter.add_tables(tables.astype(float), 50)),
        (TypeError, "masked", lambda: counter.add_tables(np.ma.masked_less(tables, 1), 50)),
        (TypeError, "n_states must be an integer", lambda: counter.add_tables(tables, 50.0)),
        (ValueError, r"groups of 8 of 20 neurons .*\(528,\), not \(527,\)",
         lambda: counter.add_tables(tables[1:], 50)),
        (ValueError, "unit 0 add up to 50, not 51", lambda: counter.add_tables(tables, 51)),
        (ValueError, "unit 0 add up to 50, not -1", lambda: counter.add_tables(tables, -1)),
        (ValueError, "unit 1 add up to 51, not 50", lambda: counter.add_tables(wrong, 50)),
        (ValueError, f"unit 1 add up to {2**64 + 50}, not 50",
         lambda: counter.add_tables(wrapped, 50)),
        (ValueError, "groups of 4 of 20 neurons .* groups of 8 of 20 neurons",
         lambda: counter.merge(new_groups(kernel, 20, 4))),
        (ValueError, "21 neurons", lambda: counter.merge(new_groups(kernel, 21, 8))),
        (TypeError, "StateCounter", lambda: counter.merge(new_counter(kernel, 20))),
        (TypeError, "GroupCounter", lambda: new_counter(kernel, 20).merge(counter)),
    ]  # fmt: skip
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()
        assert_groups(counter, states)
    for bad in (0, -1, 23):
        with pytest.raises(ValueError, match=f"group_size must be 1 to 22, not {bad}"):
            new_groups(kernel, 20, bad)
    for bad in (1.0, "3", None):
        with pytest.raises(TypeError, match="group_size must be an integer"):
            new_groups(kernel, 20, bad)
    with pytest.raises(ValueError, match="n_neurons must be at least 1"):
        new_groups(kernel, 0, 3)


@every_kernel
def test_counts_that_no_memory_holds_are_refused_with_the_way_out(kernel):
    for width in (2**43, 2**62):
        with pytest.raises(MemoryError, match=rf"groups of 22 of {width}.*smaller group_size"):
            new_groups(kernel, width, 22)


@every_kernel
def test_memory_does_not_grow_with_states(kernel):
    counter = new_groups(kernel, 512, 8)
    before = counter.nbytes
    rng = np.random.default_rng(4)
    states = rng.random((4000, 512)) < 0.5
    counter.update(states, 1)
    assert counter.nbytes == before < 64 * 256 * (8.1 if kernel == "numpy" else 4.3)
    units = expected_units(states[:, :8], 8)
    assert counter.tables()[:256].tolist() == [units[0].get(state, 0) for state in range(256)]


def test_repr_says_what_was_counted():
    counter = new_groups("numpy", 10, 4)
    counter.update(np.ones((3, 10)), 1)
    assert repr(counter) == "GroupCounter(n_neurons=10, group_size=4, n_states=3, kernel='numpy')"
