"""The benchmarks run, and compare only what gives the same answer; how fast is not for a test."""

import itertools
import mmap
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    competitors,
    count,
    footprint,
    pack,
    results,
    soak,
    states,
    table,
    timing,
)
from benchmarks.native_clock import NativeClock  # noqa: E402
from benchmarks.pinned import measure  # noqa: E402
from benchmarks.rows import Options, Row, Target, not_installed, relative, speed_up  # noqa: E402
from tensorstate_callbacks.states.counter import kernel_report  # noqa: E402


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True
    )


BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")
needs_keras = pytest.mark.skipif(
    not (find_spec("keras") and find_spec("tensorflow")), reason="TensorFlow is not installed"
)
needs_matplotlib = pytest.mark.skipif(
    not find_spec("matplotlib"), reason="Matplotlib is not installed"
)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("count", marks=needs_torch),
        "groups",
        pytest.param("memory", marks=needs_linux),
        pytest.param("growth", marks=needs_linux),
        pytest.param("exchange", marks=needs_linux),
        pytest.param("validation-torch", marks=needs_torch),
        pytest.param("validation-keras", marks=needs_keras),
        pytest.param("scale", marks=needs_torch),
        pytest.param("scale-threads", marks=needs_torch),
        pytest.param("scale-keras", marks=needs_keras),
        pytest.param("scale-memory", marks=[needs_torch, needs_linux]),
        pytest.param("device", marks=needs_torch),
        pytest.param("training", marks=needs_keras),
        pytest.param("display", marks=needs_matplotlib),
    ],
)
def test_a_quick_run_gives_a_ratio_for_each_comparison(part):
    found = measure(part, Options(quick=True))
    assert found
    for row in found:
        assert row.part == part
        if row.missing:
            assert row.note.endswith("is not installed")
        else:
            assert row.ours > 0
            assert row.theirs > 0
            assert row.ratio > 0


@needs_torch
def test_without_a_gpu_the_table_says_that_none_was_measured(monkeypatch):
    import torch

    from benchmarks import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = table.lines(device.run(Options()))
    assert len(lines) == 3 * 3
    assert all("no GPU was measured" in line for line in lines)
    assert sum("≤ 1.02" in line for line in lines) == 2


@needs_linux
def test_the_command_prints_the_table_and_what_it_ran_on():
    done = run("memory", "--quick")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Processor: ")
    lines = [line for line in done.stdout.splitlines() if line.startswith("| memory")]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert sum("512 bit" in line for line in lines) == 2
    assert "targets met" in done.stdout


def test_packing_is_timed_where_it_gives_what_numpy_does():
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        pytest.skip("there is no C++ compiler")
    if kernel_report()[0] == "numpy":
        pytest.skip("the compiled counter is not there")
    clock = NativeClock()
    drawn = np.random.default_rng(0).standard_normal((3, 70, 5, 7), np.float32)
    bits = np.moveaxis(drawn.view(np.uint32), 1, -1)
    rows = clock.packed(bits, pack.SPANS["float32"]).view(np.uint8)[:, :9]
    fires = np.moveaxis(drawn > 0, 1, -1).reshape(-1, 70)
    np.testing.assert_array_equal(rows, np.packbits(fires, axis=1, bitorder="little"))
    assert clock.pack(bits, pack.SPANS["float32"], 10) > 0
    assert clock.read(np.ones(1000, np.uint64), 10) > 0


def test_an_unknown_part_is_refused_with_those_there_are():
    done = run("cuont")
    assert done.returncode == 2
    assert "no part is called cuont; there are pack, count" in done.stderr


def test_quick_numbers_are_not_saved():
    done = run("count", "--quick", "--save")
    assert done.returncode == 2
    assert "say nothing about speed" in done.stderr


WIDE = ("np.unique", "polars value_counts")


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *((name, 2) for name in competitors.WAYS),
        *((name, 8) for name in competitors.WAYS if name != "np.bincount"),
        *((name, 13) for name in WIDE),
    ],
)
def test_each_way_counts_what_a_counter_does(name, width):
    way = competitors.WAYS[name]
    if not way.installed:
        pytest.skip(f"{way.library} is not installed")
    drawn = np.random.default_rng(width).integers(0, 2, (500, width), np.uint8)
    counts = way.count(way.prepare(competitors.as_keys(drawn)))
    expected = count.count(8 * width, drawn).counts()
    assert sorted(counts[counts > 0].tolist()) == sorted(expected.tolist())
    assert sum(counts.tolist()) == 500


def test_a_way_that_counts_otherwise_is_not_compared(monkeypatch):
    def wrong(keys):
        return np.bincount(keys) * 2

    way = competitors.WAYS["np.bincount"]
    monkeypatch.setitem(competitors.WAYS, "np.bincount", way._replace(count=wrong))
    rows = np.array([[0], [1], [1], [2]], np.uint8)
    case = count.Case("four", lambda options: (8, rows), ("np.bincount",), {})
    with pytest.raises(RuntimeError, match="four: np.bincount counts otherwise"):
        count._compare(case, Options(quick=True))


def test_what_is_missing_is_a_row_that_says_so(monkeypatch):
    way = competitors.WAYS["np.bincount"]._replace(library="no_such_library")
    monkeypatch.setitem(competitors.WAYS, "np.bincount", way)
    rows = np.array([[0], [1]], np.uint8)
    case = count.Case(
        "two", lambda options: (8, rows), ("np.bincount",), {"np.bincount": Target(3)}
    )
    (row,) = count._compare(case, Options(quick=True))
    assert row.missing
    assert row.met is None
    assert "np.bincount is not installed" in table.lines([row])[0]


@pytest.mark.parametrize(
    ("neurons", "size"), [(8, 256), (20, 5000), (50, 5000), (64, 5000), (100, 5000)]
)
def test_distinct_states_are_distinct(neurons, size):
    first = states.distinct_states(neurons, size // 2)
    rest = states.distinct_states(neurons, size - size // 2, size // 2)
    rows = np.concatenate([first, rest])
    assert rows.shape == (size, -(-neurons // 8))
    assert len(np.unique(rows, axis=0)) == size
    bits = np.unpackbits(rows, axis=1, bitorder="little")
    assert not bits[:, neurons:].any()
    assert bits[:, :neurons].any(0).all()


def test_states_of_lenet5_are_those_of_its_layer():
    pytest.importorskip("torch")
    neurons, rows = states.lenet5_states("conv_3")
    assert (neurons, rows.shape) == (100, (5000, 13))
    from lenet5_torch import REFERENCE

    fired = np.unpackbits(rows, axis=1, bitorder="little").sum()
    assert fired / 500_000 == pytest.approx(
        REFERENCE["layers"]["conv_3"]["mean_firing_rate"], abs=1e-3
    )


def test_runs_are_interleaved_and_the_median_is_taken():
    order, now = [], [0.0]
    durations = {"a": iter([9.0, 1.0, 5.0, 2.0]), "b": iter([9.0, 4.0, 4.0, 100.0])}

    def call(name):
        order.append(name)
        now[0] += next(durations[name])

    taken = timing.medians(
        {name: lambda name=name: call(name) for name in durations}, 3, clock=lambda: now[0]
    )
    assert order == ["a", "b"] * 4
    assert taken == {"a": 2.0, "b": 4.0}


def test_calls_of_a_method_are_timed_and_do_what_they_did():
    class Adder:
        def add(self, number, more=0):
            if number < 0:
                raise ValueError(number)
            return number + more

    own = Adder.add
    with timing.timed_calls(Adder, "add") as spent:
        assert Adder().add(1, more=2) == 3
        with pytest.raises(ValueError, match="-1"):
            Adder().add(-1)
    assert Adder.add is own
    assert len(spent) == 2
    assert all(seconds >= 0 for seconds in spent)


SCALE = (ROOT / "docs" / "how_to" / "scale.md").read_text(encoding="utf-8")


def scale_table(lines):
    """Return the efficiencies of a table of docs/how_to/scale.md by unit and positions."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {(unit, at): list(map(float, shown)) for unit, at, _, _, *shown in cells}


def check_order(table):
    for at in ("16", "64", "all"):
        order = ["layer", "groups of 16", "groups of 8"] + ["rate bound"] * (at == "all")
        for less, more in itertools.pairwise(order):
            pairs = zip(table[less, at], table[more, at], strict=True)
            assert all(smaller <= larger for smaller, larger in pairs)


@pytest.mark.parametrize("network", ["ResNet-50", "ConvNeXt-tiny", "ViT-small"])
def test_smaller_units_show_more_in_the_tables_of_the_page(network):
    _, _, rest = SCALE.partition(f"<!-- {network} -->\n")
    lines = rest.partition(f"<!-- end of {network} -->")[0].splitlines()
    assert len(lines) == 2 + 10
    check_order(scale_table(lines))


@needs_torch
def test_all_settings_count_the_same_pass():
    import torch

    from benchmarks.scale_metrics import measure

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 32, 3, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 40, 3, 4)]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(40, 2)]
    lines = list(measure(torch.nn.Sequential(*layers, *head), 3))
    table = scale_table(lines)
    check_order(table)
    assert len({tuple(shown) for shown in table.values()}) == len(table)


@needs_linux
@needs_keras
@pytest.mark.parametrize("framework", ["lightning", f"keras-{BACKEND}"])
def test_a_short_soak_compares_the_last_epochs_and_fits_with_early_ones(framework):
    if framework == "lightning" and not find_spec("pytorch_lightning"):
        pytest.skip("Lightning is not installed")
    rows = soak.measure(framework, epochs=20, fits=5)
    name = soak.FRAMEWORKS[framework]
    assert [row.case for row in rows] == [
        f"{name}, processor time, last 4 epochs of 20",
        f"{name}, memory of the process, last 4 epochs of 20",
        f"{name}, processor time, last 1 fits of 5",
        f"{name}, memory of the process, last 1 fits of 5",
    ]
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)
    # What grows with each fit by much is a leak; how much time it takes is not for a test.
    assert rows[1].ratio < 1.1
    assert rows[3].ratio < 1.2


def test_memory_growth_is_measured_in_a_process_of_its_own():
    if not footprint.Growth.measurable():
        pytest.skip("needs Linux's /proc")

    def work():
        growth = footprint.Growth()
        # Not from malloc, which may have as much in hand.
        filled = np.frombuffer(mmap.mmap(-1, 32 << 20), np.float64)
        filled[:] = 1
        return [growth.peak(), float(filled.sum())]

    peak, total = footprint.in_child(work)
    assert total == 4 << 20
    assert 32 << 20 <= peak < 40 << 20


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (speed_up("count", "x", "y", 1.0, 3.0, "ns", Target(3)), True),
        (speed_up("count", "x", "y", 1.0, 2.9, "ns", Target(3)), False),
        (relative("training", "x", "y", 103.0, 100.0, "ms", Target(1.03, False)), True),
        (relative("training", "x", "y", 104.0, 100.0, "ms", Target(1.03, False)), False),
        (relative("memory", "x", "y", 31.0, 100.0, "B/state", Target(30, False, "B")), False),
        (relative("memory", "x", "y", 29.0, 10.0, "B/state", Target(30, False, "B")), True),
        (relative("memory", "x", "y", 29.0, 10.0, "B/state"), None),
        (not_installed("count", "x", "y", Target(3)), None),
    ],
)
def test_targets_are_judged_by_the_ratio_or_where_they_have_a_unit_by_our_number(row, met):
    assert row.met is met
    cell = table.lines([row])[0]
    assert ("met" in cell, "missed" in cell) == (met is True, met is False)


def test_saved_results_keep_the_parts_that_were_not_run(tmp_path):
    path = tmp_path / "RESULTS.md"
    results.save(
        [Row("memory", "old", 1, 2, "B", "y", 0.5), Row("pack", "a", 1, 2, "B", "y", 0.5)], path
    )
    results.save(
        [Row("count", "b", 2, 3, "ns", "y", 1.5, Target(2)), Row("pack", "c", 1, 1, "B", "y", 1)],
        path,
    )
    text = path.read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if "|" in line
    ]
    assert cells[0] == ["part", "case", "ours", "against", "theirs", "ratio", "target", ""]
    assert [row[:2] for row in cells[2:]] == [["pack", "c"], ["count", "b"], ["memory", "old"]]
    assert cells[3] == ["count", "b", "2 ns", "y", "3 ns", "1.500", "≥ 2", "missed"]
    assert str(ROOT) not in text
