"""Invariant 1: what a counter holds depends on the states only, not on how they came in."""

import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from counter_oracle import every_kernel, expected_states, new_counter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tensorstate_callbacks.states.counter import available_kernels, use_kernel

few = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([1, 3, 7, 8, 9, 16, 17, 20, 63, 64, 65, 127, 128, 129, 511, 512])
DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


def held(counter):
    """Everything a counter can be asked for, as plain values."""
    return (
        counter.n_states,
        counter.n_distinct,
        counter.states().tolist(),
        counter.counts().tolist(),
        counter.fired().tolist(),
        [part.tolist() for part in counter.spectrum()],
        counter.moments([0, 0.5, 1, 2, np.inf]).tobytes(),
    )


@every_kernel
@few
@given(width=widths, seed=seeds, n_positions=st.integers(0, 200), n_shards=st.integers(1, 4))
def test_numbers_do_not_depend_on_batches_order_or_shards(
    kernel, width, seed, n_positions, n_shards
):
    rng = np.random.default_rng(seed)
    patterns = rng.standard_normal((max(1, n_positions // 4), width), np.float32)
    activations = patterns[rng.integers(0, len(patterns), n_positions)]
    whole = new_counter(kernel, width)
    whole.update(activations, 1)

    shuffled = rng.permutation(activations)
    shards = [new_counter(str(rng.choice(available_kernels())), width) for _ in range(n_shards)]
    cuts = np.sort(rng.integers(0, n_positions + 1, rng.integers(0, 8)))
    for batch in np.split(shuffled, cuts):
        shards[rng.integers(n_shards)].update(batch.T, 0)
    merged = new_counter(kernel, width)
    for shard in rng.permutation(shards):
        merged.merge(shard)
    assert held(merged) == held(whole)


@every_kernel
@settings(few, max_examples=10)
@given(width=widths, seed=seeds, n_threads=st.integers(1, 5), n_batches=st.integers(1, 12))
def test_numbers_do_not_depend_on_the_number_of_threads(kernel, width, seed, n_threads, n_batches):
    rng = np.random.default_rng(seed)
    activations = rng.standard_normal((1500, width), np.float32).repeat(2, axis=0)
    whole, shared = new_counter(kernel, width), new_counter(kernel, width)
    whole.update(activations, 1)
    with ThreadPoolExecutor(n_threads) as pool:
        batches = np.array_split(rng.permutation(activations), n_batches)
        for done in [pool.submit(shared.update, batch, 1) for batch in batches]:
            done.result()
    assert held(shared) == held(whole)


@every_kernel
@few
@given(data=st.data(), width=widths, seed=seeds, dtype=st.sampled_from(DTYPES))
def test_any_view_of_any_dtype_counts_like_its_copy(kernel, data, width, seed, dtype):
    n_others = data.draw(st.integers(0, 4))
    axis = data.draw(st.integers(0, n_others))
    steps = data.draw(
        st.lists(st.sampled_from([-3, -2, -1, 1, 2]), min_size=n_others + 1, max_size=n_others + 1)
    )
    others = data.draw(st.lists(st.integers(0, 9), min_size=n_others, max_size=n_others))
    shape = [*others[:axis], width, *others[axis:]]
    order = data.draw(st.permutations(range(n_others + 1)))
    offset = data.draw(st.integers(0, 7))
    threshold = data.draw(st.sampled_from([0.0, 0.5, -0.5, 1.0, -3.0]))

    rng = np.random.default_rng(seed)
    spaced = [size * abs(step) for size, step in zip(shape, steps, strict=True)]
    n_bytes = int(np.prod(spaced)) * np.dtype(dtype).itemsize
    memory = rng.integers(0, 256, n_bytes + offset, np.uint8)[offset:]  # NaN and denormals too
    memory = np.ndarray([spaced[i] for i in order], dtype, memory.data)
    view = memory.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    assert view.shape == tuple(shape)

    counter = new_counter(kernel, width)
    counter.update(view, axis, threshold)
    states = expected_states(view.view(np.uint8) != 0 if dtype == "?" else view, axis, threshold)
    rows = np.packbits(states, axis=1, bitorder="little")
    expected = Counter(row.tobytes() for row in rows)
    found = [row.tobytes() for row in counter.states()]
    assert dict(zip(found, counter.counts().tolist(), strict=True)) == expected
    assert counter.fired().tolist() == states.sum(axis=0).tolist()


class CounterMachine(RuleBasedStateMachine):
    """Random operations on a StateCounter and on a collections.Counter of the same states."""

    kernel = "numpy"

    @initialize(width=widths, seed=seeds)
    def start(self, width, seed):
        self.rng = np.random.default_rng(seed)
        self.width = width
        self.counter = new_counter(self.kernel, width)
        self.expected = Counter()

    def some_states(self, n_states, n_patterns):
        n_patterns = min(n_patterns, n_states + 1)
        patterns = self.rng.integers(0, 2, (n_patterns, self.width), np.uint8).astype(bool)
        states = patterns[self.rng.integers(0, n_patterns, n_states)]
        return states, np.packbits(states, axis=1, bitorder="little")

    @rule(n_states=st.integers(0, 60), n_patterns=st.integers(1, 20))
    def update(self, n_states, n_patterns):
        states, rows = self.some_states(n_states, n_patterns)
        self.counter.update(np.where(states, 2.5, -0.0).astype(np.float32), 1)
        self.expected.update(row.tobytes() for row in rows)

    # 8000 distinct states fill more than one segment of a table.
    @rule(
        n_states=st.sampled_from([0, 1, 33, 300, 1500, 8000]),
        n_patterns=st.sampled_from([1, 300, 10**6]),
    )
    def update_packed(self, n_states, n_patterns):
        _, rows = self.some_states(n_states, n_patterns)
        self.counter.update_packed(rows)
        self.expected.update(row.tobytes() for row in rows)

    # Counts around the sizes that small counts spill over at, and huge ones.
    @rule(n_states=st.integers(0, 40), most=st.sampled_from([1, 130, 2**15 + 1, 2**40]))
    def add_counts(self, n_states, most):
        _, rows = self.some_states(n_states, 10)
        counts = self.rng.integers(0, most, n_states, np.uint64, endpoint=True)
        self.counter.add_counts(rows, counts)
        for row, count in zip(rows, counts.tolist(), strict=True):
            if count:
                self.expected[row.tobytes()] += count

    @rule()
    def add_the_same_states_again_and_again(self):
        _, rows = self.some_states(2, 2)
        for _ in range(9):
            rows = np.concatenate([rows, rows])  # 1024 in the end
            self.counter.update_packed(rows)
            self.expected.update(row.tobytes() for row in rows)

    @rule()
    def go_through_a_pickle(self):
        with use_kernel(self.kernel):
            self.counter = pickle.loads(pickle.dumps(self.counter))  # noqa: S301

    @rule(
        kernel=st.sampled_from(available_kernels()),
        n_states=st.sampled_from([0, 1, 60, 6000]),
    )
    def merge(self, kernel, n_states):
        other = new_counter(kernel, self.width)
        _, rows = self.some_states(n_states, 10 if n_states < 100 else n_states)
        other.update_packed(rows)
        self.counter.merge(other)
        self.expected.update(row.tobytes() for row in rows)

    @rule()
    def merge_with_itself(self):
        if 2 * self.expected.total() < 2**64:
            self.counter.merge(self.counter)
            self.expected.update(Counter(self.expected))

    @rule()
    def reset(self):
        self.counter.reset()
        self.expected.clear()

    @invariant()
    def holds_what_was_counted(self):
        rows = [row.tobytes() for row in self.counter.states()]
        assert rows == sorted(self.expected)
        assert self.counter.counts().tolist() == [self.expected[row] for row in rows]
        assert self.counter.n_states == self.expected.total()
        assert self.counter.n_distinct == len(self.expected)
        values, multiplicities = (part.tolist() for part in self.counter.spectrum())
        assert values == sorted(set(self.expected.values()))
        times = Counter(self.expected.values())
        assert multiplicities == [times[value] for value in values]
        bits = np.unpackbits(
            self.counter.states(), axis=1, count=self.width, bitorder="little"
        ).astype(np.uint64)
        assert np.array_equal(self.counter.fired(), self.counter.counts() @ bits)


def machine_of(kernel):
    machine = type(f"CounterMachine_{kernel}", (CounterMachine,), {"kernel": kernel})
    case = machine.TestCase
    case.settings = settings(few, max_examples=25, stateful_step_count=20)
    return case


for _kernel in available_kernels():
    globals()[f"TestMachine_{_kernel}"] = machine_of(_kernel)
