"""Raw states on disk: the same numbers as in memory, and what a crash or a full disk leaves."""

import copy
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tensorstate_callbacks.errors import ProbeError, StatesNotAvailableError
from tensorstate_callbacks.tensorstate.captured_states import CapturedStates


def images(n_samples, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-1, 2, (n_samples, 20, 3, 2)).astype(np.float32)


def capture(folder, *batches, **kwargs):
    states = CapturedStates("block/conv:1", storage_path=folder, **kwargs)
    for batch in batches:
        states.record(batch, 1)
    return states


def in_memory(*batches):
    states = CapturedStates("block/conv:1", keep_raw=True)
    for batch in batches:
        states.record(batch, 1)
    return states


def assert_same(left, right):
    np.testing.assert_array_equal(left.raw_states, right.raw_states)
    np.testing.assert_array_equal(left.counts(), right.counts())
    np.testing.assert_array_equal(left.counts([0, 2]), right.counts([0, 2]))
    assert left.state_ids() == right.state_ids()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_states_on_disk_are_those_in_memory(tmp_path):
    batches = images(4), images(3, 1), images(5, 2)
    states = capture(tmp_path / "a" / "b", *batches)
    assert_same(states, in_memory(*batches))
    # Memory-mapped, and where the user said.
    assert isinstance(states.raw_states, np.memmap)
    assert files(tmp_path / "a" / "b") == ["block%2Fconv%3A1.journal", "block%2Fconv%3A1.states"]
    assert (tmp_path / "a" / "b" / "block%2Fconv%3A1.states").stat().st_size == 12 * 6 * 3


def test_a_capture_is_resumed(tmp_path):
    capture(tmp_path, images(4), images(3, 1))
    states = capture(tmp_path, resume=True)
    assert_same(states, in_memory(images(4), images(3, 1)))
    assert states.states_per_instance() == 6
    states.record(images(5, 2), 1)
    assert_same(states, in_memory(images(4), images(3, 1), images(5, 2)))
    assert_same(capture(tmp_path, resume=True), states)


def test_an_earlier_capture_is_not_mixed_in(tmp_path):
    capture(tmp_path, images(4))
    with pytest.raises(FileExistsError, match=r"'block/conv:1' captured earlier.*resume=True"):
        capture(tmp_path)
    assert capture(tmp_path, resume=True).state_count == 24


def test_a_capture_that_saw_nothing_leaves_no_files(tmp_path):
    states = capture(tmp_path)
    assert files(tmp_path) == []
    states.reset_states()
    assert_same(capture(tmp_path, images(4)), in_memory(images(4)))


def test_two_captures_that_begin_together_are_not_mixed(tmp_path):
    states, other = capture(tmp_path), capture(tmp_path)
    states.record(images(4), 1)
    with pytest.raises(ProbeError, match="could not be stored.*exists"):
        other.record(images(4), 1)
    assert_same(states, in_memory(images(4)))


@pytest.mark.parametrize("begun", [b"", b'{"versi', b'{"version": 1, "name": "block/conv:1", "neu'])
@pytest.mark.parametrize("empty", [(), ("states",)])
def test_a_crash_before_the_first_batch(tmp_path, begun, empty):
    (tmp_path / "block%2Fconv%3A1.journal").write_bytes(begun)
    for suffix in empty:
        (tmp_path / f"block%2Fconv%3A1.{suffix}").touch()
    states = capture(tmp_path, images(3, 1), resume=True)
    assert_same(states, in_memory(images(3, 1)))
    assert_same(capture(tmp_path, resume=True), in_memory(images(3, 1)))


def test_a_crash_within_the_first_batch(tmp_path):
    capture(tmp_path, images(4))
    journal, data = sorted(tmp_path.iterdir())
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    assert_same(capture(tmp_path, images(3, 1), resume=True), in_memory(images(3, 1)))
    assert data.stat().st_size == 3 * 6 * 3


def test_resuming_nothing_starts_anew(tmp_path):
    states = capture(tmp_path, images(4), resume=True)
    assert_same(states, in_memory(images(4)))
    with pytest.raises(ValueError, match="nothing to resume without a storage_path"):
        CapturedStates("conv", resume=True)


@pytest.mark.parametrize("lost", ["line", "half a line", "states beyond the journal"])
def test_a_batch_cut_short_is_dropped(tmp_path, lost):
    capture(tmp_path, images(4), images(3, 1))
    journal, data = sorted(tmp_path.iterdir())
    lines = journal.read_bytes().splitlines(keepends=True)
    if lost == "line":
        journal.write_bytes(b"".join(lines[:-1]))
    elif lost == "half a line":
        journal.write_bytes(b"".join(lines)[:-4])
    else:
        data.write_bytes(data.read_bytes() + b"abc")
    states = capture(tmp_path, resume=True)
    assert data.stat().st_size == states.state_count * 3
    whole = [images(4)] if "line" in lost else [images(4), images(3, 1)]
    assert_same(states, in_memory(*whole))
    states.record(images(5, 2), 1)
    assert_same(capture(tmp_path, resume=True), in_memory(*whole, images(5, 2)))


def test_a_process_that_is_killed_leaves_its_whole_batches(tmp_path):
    code = f"""
    import os, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_stored_states import capture, images
    from tensorstate_callbacks.tensorstate import stored_states
    states = capture({str(tmp_path)!r}, images(4))
    append = stored_states._append
    def die_before_the_journal(path, end, data):
        if path.suffix == ".journal":
            os._exit(7)
        append(path, end, data)
    stored_states._append = die_before_the_journal
    states.record(images(3, 1), 1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 7
    assert (tmp_path / "block%2Fconv%3A1.states").stat().st_size == 7 * 6 * 3
    assert_same(capture(tmp_path, resume=True), in_memory(images(4)))


@contextmanager
def room_for(n_bytes):
    """Let no file grow beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="needs RLIMIT_FSIZE to run out of room")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_no_room_on_disk_loses_nothing_of_earlier_batches(tmp_path):
    states = capture(tmp_path, images(4), images(3, 1))
    with room_for(500):
        with pytest.raises(ProbeError, match=r"'block/conv:1'.*could not be stored.*42 states"):
            states.record(images(60, 2), 1)
        # What doesn't fit leaves room for what does.
        assert (tmp_path / "block%2Fconv%3A1.states").stat().st_size == 42 * 3
        states.record(images(2, 3), 1)
    expected = in_memory(images(4), images(3, 1), images(2, 3))
    assert_same(states, expected)
    assert_same(capture(tmp_path, resume=True), expected)


def test_no_room_for_the_first_batch(tmp_path):
    states = capture(tmp_path)
    with room_for(20), pytest.raises(ProbeError, match="The 0 states"):
        states.record(images(4), 1)
    states.record(images(3, 1), 1)
    assert_same(capture(tmp_path, resume=True), in_memory(images(3, 1)))


def test_a_batch_that_cannot_be_counted_is_not_stored(tmp_path, monkeypatch):
    states = capture(tmp_path, images(4))

    def no_memory(rows):
        raise MemoryError("no memory")

    monkeypatch.setattr(states._captured.counter, "update_packed", no_memory)
    with pytest.raises(ProbeError, match="could not be counted: no memory"):
        states.record(images(3, 1), 1)
    monkeypatch.undo()
    assert_same(states, in_memory(images(4)))
    assert_same(capture(tmp_path, resume=True), states)


def test_reset_forgets_what_is_on_disk(tmp_path):
    states = capture(tmp_path, images(4))
    states.reset_states()
    assert files(tmp_path) == []
    states.record(np.ones((3, 7)), -1)
    assert capture(tmp_path, resume=True).max_entropy() == 7.0


def test_a_copy_does_not_write_into_the_originals_files(tmp_path):
    states = capture(tmp_path, images(4))
    other = copy.deepcopy(states)
    other.record(images(3, 1), 1)
    assert (states.state_count, other.state_count) == (24, 42)
    assert_same(states, in_memory(images(4)))
    with pytest.raises(StatesNotAvailableError, match="belong to the capture point"):
        _ = other.raw_states
    other.reset_states()
    assert states.raw_states.shape == (24, 3)
