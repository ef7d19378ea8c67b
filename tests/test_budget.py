"""What a memory budget leaves depends on the data alone, and is exact for what is read."""

import math
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sampling_oracle import fail_to_count

from tensorstate_callbacks.errors import ProbeError, TensorStateWarning
from tensorstate_callbacks.recording.budget import (
    Budget,
    Sampling,
    counter_bytes,
    describe_thinned,
    kept_levels,
    level_positions,
    level_sizes,
    water_level,
)
from tensorstate_callbacks.recording.pass_counts import PassInfo
from tensorstate_callbacks.recording.probe_counter import ProbeCounter
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.positions import spread_positions


@pytest.mark.parametrize(
    ("sizes", "budget", "expected"),
    [
        ([1, 2, 10, 20], 20, 8.5),
        ([1, 2, 3], 10, math.inf),
        ([1, 2, 3], 6, math.inf),
        ([5, 5], 3, 1.5),
        ([1, None, None], 9, 4),
        ([None], 9, 9),
        ([], 9, math.inf),
    ],
)
def test_water_stands_where_all_of_it_is_used(sizes, budget, expected):
    assert water_level(sizes, budget) == expected


def test_levels_read_a_sixteenth_each_down_to_one():
    assert level_positions(112 * 112) == (12544, 784, 49, 4, 1)
    assert level_positions(17) == (17, 2, 1)
    assert level_positions(1) == (1,)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_given_up_on_the_way_is_what_the_whole_pass_gives_up(seed):
    """Layers grow in any order and pace; what is kept never depends on that."""
    chance = random.Random(seed)  # noqa: S311
    final = []
    for _ in range(chance.randint(1, 6)):
        sizes = [chance.randint(0, 100)]
        while sizes[-1] > 1 and len(sizes) < 4:
            sizes.append(chance.randint(0, sizes[-1]))
        final.append(sizes)
    budget = chance.randint(1, 200)
    expected = kept_levels(dict(enumerate(final)), budget)
    held = sum(final[name][level] for name, level in expected.items() if level is not None)
    assert held <= budget
    for _ in range(10):
        share, gone = [0.0] * len(final), [0] * len(final)
        for step in range(20):
            at = chance.randrange(len(final))
            share[at] = min(1.0, share[at] + chance.random() / 3)
            if step > 15:
                share = [1.0] * len(final)
            now = {
                name: [None if k < gone[name] else int(size * share[name]) for k, size in rest]
                for name, rest in ((n, list(enumerate(sizes))) for n, sizes in enumerate(final))
            }
            for name, level in kept_levels(now, budget).items():
                gone[name] = max(gone[name], len(final[name]) if level is None else level)
        ends = {n: at if at < len(final[n]) else None for n, at in enumerate(gone)}
        assert ends == expected


@pytest.mark.parametrize("n_neurons", [8, 16, 17, 20, 21, 22, 50, 64, 65, 100, 512, 2048])
@pytest.mark.parametrize("n_states", [1, 300, 20_000])
def test_a_counter_holds_no_more_than_is_said(n_neurons, n_states):
    rows = np.random.default_rng(0).integers(0, 256, (n_states, -(-n_neurons // 8)), np.uint8)
    if n_neurons % 8:
        rows[:, -1] &= (1 << n_neurons % 8) - 1
    counter = StateCounter(n_neurons)
    counter.update_packed(rows)
    # An empty table has some room too.
    assert counter.nbytes <= counter_bytes(n_neurons, counter.n_distinct) + 200_000


SHAPES = [(64, 16, 16), (40, 16, 16), (128, 8, 8), (24, 4, 4), (64,), (10, 16, 16)]
N_SAMPLES = 120


def layers():
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(N_SAMPLES, *shape)) + i % 2 * rng.normal(size=(1, *shape))).astype("f4")
        for i, shape in enumerate(SHAPES)
    ]


def kept(data, order, cuts, n_bytes):
    budget = Budget(n_bytes)
    counters = [ProbeCounter(shape[0], Sampling(), budget) for shape in SHAPES]
    for counter in counters:
        budget.join(counter)
    at = 0
    for size in cuts:
        for counter, values in zip(counters, data, strict=True):
            counter.update(values[order[at : at + size]], 1)
        at += size
    budget.finish()
    held = [c.sizes()[c.level] for c in counters if c.level is not None]
    assert sum(held) <= n_bytes
    return [(c.level, c.thinned, c.counter.spectrum()) for c in counters]


@pytest.mark.parametrize("n_bytes", [10**5, 5 * 10**5, 10**6, 2 * 10**6, 4 * 10**6, 10**8])
def test_what_is_kept_does_not_depend_on_batches_or_order(n_bytes):
    data, straight = layers(), np.arange(N_SAMPLES)
    mixed = np.random.default_rng(1).permutation(N_SAMPLES)
    expected = kept(data, straight, [N_SAMPLES], n_bytes)
    for order in (straight, mixed):
        for cuts in ([1] * N_SAMPLES, [7] * 17 + [1], [60, 60], [119, 1]):
            assert kept(data, order, cuts, n_bytes) == expected
    for (level, thinned, spectrum), values in zip(expected, data, strict=True):
        if level is None:
            assert thinned == (0, math.prod(values.shape[2:]))
            continue
        grid = values.shape[2:]
        n_read = level_positions(math.prod(grid))[level]
        places = spread_positions(grid, n_read)
        oracle = StateCounter(values.shape[1])
        oracle.update(values.reshape(*values.shape[:2], -1)[:, :, places], 1)
        assert oracle.spectrum() == spectrum
        assert thinned == (None if level == 0 else (n_read, math.prod(grid)))
    assert any(level != 0 for level, *_ in expected) == (n_bytes < 3 * 10**6)


@pytest.mark.parametrize(
    ("shape", "channel_axis", "sample_axis"),
    [
        ((6, 64, 9, 8), 1, 0),
        ((6, 9, 8, 64), -1, 0),
        ((40, 6, 64), 2, 1),
        ((9, 6, 64, 8), 2, 1),
        ((64, 9, 8), 0, None),
    ],
)
@pytest.mark.parametrize("positions", [None, 20])
def test_each_level_counts_its_places_wherever_samples_and_neurons_lie(
    shape, channel_axis, sample_axis, positions
):
    values = np.random.default_rng(6).integers(-3, 3, shape, np.int8)
    if sample_axis is None:
        samples = np.moveaxis(values, channel_axis, -1)[np.newaxis]
    else:
        samples = np.moveaxis(values, (sample_axis, channel_axis), (0, -1))
    grid, rows = samples.shape[1:-1], samples.reshape(len(samples), -1, 64)
    for threshold in (1, -300):
        counter = ProbeCounter(64, Sampling(positions=positions), Budget(10**9))
        for _ in range(2):
            counter.update(values, channel_axis, threshold, sample_axis=sample_axis)
        levels = counter.levels()
        read = level_positions(positions or math.prod(grid))
        assert len(levels) == len(read) == 3
        for level, n_read in zip(levels, read, strict=True):
            oracle = StateCounter(64)
            for _ in range(2):
                oracle.update(rows[:, spread_positions(grid, n_read)], -1, threshold)
            assert level.states().tolist() == oracle.states().tolist()
            assert level.counts().tolist() == oracle.counts().tolist()


def test_a_batch_of_more_positions_than_those_before_has_its_reserves():
    rng = np.random.default_rng(2)
    small, large = rng.normal(size=(5, 64, 1, 1)), rng.normal(size=(5, 64, 16, 16))
    found = []
    for batches in ([small, large], [large, small]):
        budget = Budget(10**9)
        counter = ProbeCounter(64, Sampling(), budget)
        budget.join(counter)
        for values in batches:
            counter.update(values, 1)
        levels = counter.levels()
        assert [level.n_states for level in levels] == [5 + 5 * n for n in (256, 16, 1)]
        found.append([level.spectrum() for level in levels])
    assert found[0] == found[1]


def test_positions_are_thinned_as_if_fewer_had_been_asked_for():
    values = np.random.default_rng(3).normal(size=(50, 64, 12, 12)).astype("f4")
    short = Recorder(["conv"], sampling=Sampling(positions=100, max_memory=30_000))
    asked = Recorder(["conv"], sampling=Sampling(positions=7))
    for recorder in (short, asked):
        recorder.observe("conv", values, 1)
    assert short.counts().thinned == {"conv": (7, 100)}
    assert short.report() == asked.report()
    assert asked.report().layers["conv"].n_states == 350


def test_layers_that_fit_at_no_level_are_left_out_and_told():
    values = np.random.default_rng(4).normal(size=(500, 64)).astype("f4")
    recorder = Recorder(["dense", "small"], sampling=Sampling(max_memory=15_000))
    recorder.observe("dense", values, 1)
    recorder.observe("small", values[:, :8], 1)
    counts = recorder.counts()
    assert counts.thinned == {"dense": (0, 1)}
    assert list(counts.report(PassInfo()).layers) == ["small"]
    assert counts.unseen() == []
    text = describe_thinned({**counts.thinned, "conv": (4, 64)})
    assert "conv (4 of 64)" in text
    assert "dense could not be counted at all" in text
    assert text.index("group_size=8") < text.index("positions=16")


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("max_memory", [None, 10**9])
@pytest.mark.parametrize("after", [0, 1])
def test_a_counter_that_finds_no_memory_costs_the_layer(monkeypatch, group_size, max_memory, after):
    fail_to_count(monkeypatch, 40, after)
    values = np.random.default_rng(4).normal(size=(6, 40, 5, 5)).astype("f4")
    sampling = Sampling(group_size=group_size, max_memory=max_memory)
    recorder, alone = Recorder(["wide", "small"], sampling=sampling), Recorder(["small"])
    for batch in np.split(values, 3):
        recorder.observe("wide", batch, 1)
        recorder.observe("small", batch[:, :7], 1)
        alone.observe("small", batch[:, :7], 1)
    counts = recorder.counts()
    assert counts.thinned == {"wide": (0, 25)}
    assert counts.names == ("small",)
    assert counts.unseen() == []
    small = recorder.report().layers["small"]
    assert (small.n_states, small.efficiency) == (150, alone.report().layers["small"].efficiency)


def test_counts_that_can_not_be_read_for_want_of_memory_cost_the_layer(monkeypatch):
    recorder = Recorder(["wide", "small"])
    for name, n_neurons in (("wide", 40), ("small", 7)):
        recorder.observe(name, np.eye(n_neurons), 1)
    spectrum = StateCounter.spectrum

    def fail(self):
        if self.n_neurons == 40:
            raise MemoryError
        return spectrum(self)

    monkeypatch.setattr(StateCounter, "spectrum", fail)
    with pytest.warns(TensorStateWarning, match="memory.*: wide could not be counted at all"):
        assert list(recorder.report().layers) == ["small"]


def test_neurons_that_can_not_be_put_on_one_axis_for_want_of_memory_cost_the_layer(monkeypatch):
    def fail(activations, axis):
        raise MemoryError

    monkeypatch.setattr("tensorstate_callbacks.recording.recorder.folded", fail)
    layer = Recorder(["q", "small"])
    layer.observe("q", np.zeros((5, 3, 2, 4)), (-2, -1))
    layer.observe("small", np.eye(7), 1)
    assert layer.counts().thinned == {"q": (0, 3)}


def test_arrays_that_no_machine_has_room_for_cost_the_layer():
    recorder = Recorder(["huge", "small"], sampling=Sampling(group_size=22))
    # 16 TB of counts.
    recorder.observe("huge", np.zeros((1, 22 * 10**6), bool), 1)
    with pytest.raises(ProbeError, match="no layer could be counted.*huge could not be counted at"):
        recorder.report()
    recorder.observe("small", np.eye(7), 1)
    assert list(recorder.report().layers) == ["small"]


def test_groups_need_the_same_memory_whatever_is_counted():
    values = np.random.default_rng(5).normal(size=(400, 64, 4, 4)).astype("f4")
    recorder = Recorder(["conv"], sampling=Sampling(group_size=8, max_memory=10_000))
    recorder.observe("conv", values, 1)
    assert recorder.counts().thinned == {}
    assert recorder.report().layers["conv"].n_states == 6400
    assert level_sizes(64, [5]) == [200]


RESNET = [(64, 112), *[(256, 56)] * 9, *[(512, 28)] * 12, *[(1024, 14)] * 18, *[(2048, 7)] * 9]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's resource limits")
def test_a_pass_of_twenty_gigabytes_ends_within_its_budget():
    # States of a deep network's layers, nearly all of them distinct: all of 130 images would take
    # some 350 MB already. A process of its own, whose peak is its own.
    code = textwrap.dedent(f"""
        import resource
        import numpy as np
        from tensorstate_callbacks.recording.budget import Sampling
        from tensorstate_callbacks.recording.recorder import (Recorder)
        shapes = {RESNET!r}
        rng = np.random.default_rng(0)
        recorder = Recorder(map(str, range(len(shapes))), sampling=Sampling(max_memory=64 << 20))
        noise = rng.integers(0, 256, (1 << 20) + 4096 * 64, np.uint8).view(np.int8)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        recorder.observe("0", noise[: 64 * 4].reshape(1, 64, 2, 2), 1)
        before = peak()
        for number in range(130):
            for name, (channels, side) in enumerate(shapes):
                size = channels * side * side
                start = int(rng.integers(0, 4096)) * 64
                values = np.resize(noise[start : start + (1 << 20)], size)
                recorder.observe(str(name), values.reshape(1, channels, side, side), 1)
        counts = recorder.counts()
        print(peak() - before, len(counts.thinned), len(counts.probes))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, thinned, probes = map(int, done.stdout.split())
    assert grown < 64 + 30
    assert thinned > 20
    assert probes == len(RESNET)
