"""Raw states on disk: the same numbers as in memory, and what a crash or a full disk leaves."""

import copy
import json
import os
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


def test_what_cannot_be_resumed_says_why(tmp_path):
    capture(tmp_path, images(4), threshold=0.5)
    with pytest.raises(ValueError, match="threshold 0.5, not 0.0"):
        capture(tmp_path, resume=True)
    journal, data = sorted(tmp_path.iterdir())
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="shorter than its journal says, 72 bytes"):
        capture(tmp_path, threshold=0.5, resume=True)
    data.write_bytes(content)
    header, batch = journal.read_text().splitlines()
    journal.write_text(json.dumps({**json.loads(header), "version": 2}) + "\n" + batch + "\n")
    with pytest.raises(ValueError, match="version 2, this is version 1"):
        capture(tmp_path, threshold=0.5, resume=True)
    journal.write_text("not a journal\n")
    with pytest.raises(ValueError, match="can't be resumed"):
        capture(tmp_path, threshold=0.5, resume=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


HEADER = {"version": 1, "name": "block/conv:1", "neurons": 20, "threshold": 0.0}
BATCH = {"samples": 4, "states": 24}


@pytest.mark.parametrize(
    "journal",
    [
        None,  # somebody else's states
        b"",
        b"\n",
        b"\0" * 80,
        b"text of somebody else",
        b"text of somebody else\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"3\n",
        b"[" * 100_000 + b"\n",
        json.dumps({**HEADER, "name": "another"}).encode() + b"\n",
        *(
            json.dumps({**HEADER, **change}).encode() + b"\n"
            for change in (
                {"version": True},
                {"version": "1"},
                {"neurons": "20"},
                {"neurons": 0},
                {"neurons": -20},
                {"neurons": True},
                {"neurons": 20.5},
                {"neurons": 10**30},
                {"neurons": None},
                {"threshold": False},
                {"threshold": "0"},
                {"threshold": float("nan")},
                {"name": None},
            )
        ),
        *(
            json.dumps(HEADER).encode() + b"\n" + line
            for line in (
                b"\n",
                b"null\n",
                b"[4, 24]\n",
                b"[" * 100_000 + b"\n",
                b"\0" * 40,
                b"someone",
                b'{"samples": 4}\n',
                *(
                    json.dumps({**BATCH, **change}).encode() + b"\n"
                    for change in (
                        {"samples": 0},
                        {"samples": -4},
                        {"samples": True, "states": True},
                        {"samples": "4"},
                        {"samples": 4.0},
                        {"samples": 5},
                        {"states": -24},
                        {"states": 0},
                        {"states": 10**30},
                        {"states": [24]},
                    )
                ),
            )
        ),
    ],
)
def test_a_journal_that_is_not_ours_and_whole_is_one_error_and_nothing_changes(tmp_path, journal):
    capture(tmp_path, images(4))
    path = tmp_path / "block%2Fconv%3A1.journal"
    path.unlink()
    if journal is not None:
        path.write_bytes(journal)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"block%2Fconv%3A1\.journal"):
        capture(tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_journal_of_somebody_else_without_states_stays(tmp_path):
    path = tmp_path / "block%2Fconv%3A1.journal"
    path.write_bytes(b"text of somebody else")
    with pytest.raises(ValueError, match="doesn't begin as a journal does"):
        capture(tmp_path, resume=True)
    assert contents(tmp_path) == {path.name: b"text of somebody else"}


def test_padding_bits_that_no_state_has_are_an_error(tmp_path):
    capture(tmp_path, images(4))
    _, data = sorted(tmp_path.iterdir())
    data.write_bytes(b"\xff" * data.stat().st_size)
    with pytest.raises(ValueError, match="states of layer 'block/conv:1' are damaged"):
        capture(tmp_path, resume=True)


@pytest.mark.parametrize("suffix", ["states", "journal"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_no_file_of_its_own_is_not_written_to(tmp_path, kind, suffix):
    folder, other = tmp_path / "states", tmp_path / "other"
    capture(folder, images(4))
    path = folder / f"block%2Fconv%3A1.{suffix}"
    path.rename(other)
    if "link" in kind:
        path.symlink_to(other)
        if kind == "dangling link":
            other.unlink()
    elif kind == "folder":
        path.mkdir()
    else:
        getattr(os, "mkfifo", pytest.skip)(path)
    before = contents(folder), contents(tmp_path)
    with pytest.raises(ValueError, match=rf"{suffix} can't be resumed: it is (a link|not a file)"):
        capture(folder, resume=True)
    with pytest.raises(FileExistsError):
        capture(folder)
    assert (contents(folder), contents(tmp_path)) == before


def other_process(code):
    """Run code in another process that has `capture` and `images`."""
    lines = [
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from test_stored_states import capture, images",
        textwrap.dedent(code),
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], check=False, capture_output=True, text=True
    )


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    states = capture(tmp_path, images(4))
    code = f"states = capture({str(tmp_path)!r}, images(3, 1), resume=True)"
    refused = other_process(code)
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("BlockingIOError: ")
    assert "block%2Fconv%3A1.journal is in use by another process" in last
    states.record(images(5, 2), 1)
    del states
    assert other_process(code).stderr == ""
    expected = in_memory(images(4), images(5, 2), images(3, 1))
    assert_same(capture(tmp_path, resume=True), expected)


def test_a_second_capture_of_the_same_process_takes_over(tmp_path):
    first = capture(tmp_path, images(4))
    second = capture(tmp_path, images(3, 1), resume=True)
    with pytest.raises(ProbeError, match="later capture of this process"):
        first.record(images(5, 2), 1)
    first.reset_states()
    second.record(images(5, 2), 1)
    del first
    expected = in_memory(images(4), images(3, 1), images(5, 2))
    assert_same(second, expected)
    assert "in use" in other_process(f"capture({str(tmp_path)!r}, resume=True)").stderr
    assert_same(capture(tmp_path, resume=True), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:os.fork:RuntimeWarning")
def test_a_forked_process_leaves_the_capture_to_its_parent(tmp_path):
    states = capture(tmp_path, images(4))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            states.record(images(3, 1), 1)
        except ProbeError as error:
            os.write(write, str(error).encode())
        os.close(write)
        signal.pause()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert "belongs to the process that this one was forked from" in said.read()
    try:
        states.record(images(5, 2), 1)
        del states
        # The child, which still lives, doesn't keep the lock.
        assert other_process(f"capture({str(tmp_path)!r}, resume=True)").stderr == ""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert_same(capture(tmp_path, resume=True), in_memory(images(4), images(5, 2)))


def test_what_others_do_to_the_files_meanwhile_is_an_error(tmp_path):
    states = capture(tmp_path, images(4))
    journal, data = sorted(tmp_path.iterdir())
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(ProbeError, match="shortened by another program"):
        states.record(images(3, 1), 1)
    data.write_bytes(content)
    states.record(images(3, 1), 1)
    (tmp_path / "copy").write_bytes(journal.read_bytes())
    (tmp_path / "copy").replace(journal)
    with pytest.raises(ProbeError, match="removed or replaced by another program"):
        states.record(images(5, 2), 1)
    assert_same(capture(tmp_path, resume=True), in_memory(images(4), images(3, 1)))


@pytest.mark.parametrize("name", ["", ".", "..", "...", "n" * 250, "層" * 40, "a/" * 70])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="can't have a file|too long for a file") as error:
        CapturedStates(name, storage_path=tmp_path)
    assert repr(name[:20])[:-1] in str(error.value)
    assert "keep its states in memory" in str(error.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/", "~", "a\\b", ".a", "a\nb", "a\0b", "層", "\ud800", "%2F", "con"]
)
def test_all_other_names_stay_in_the_folder_and_apart(tmp_path, name):
    folder = tmp_path / "states"
    states = CapturedStates(name, storage_path=folder)
    states.record(images(4), 1)
    other = CapturedStates("a%2Fb", storage_path=folder)
    other.record(images(3, 1), 1)
    assert files(tmp_path) == ["states"]
    assert len(files(folder)) == 4
    again = CapturedStates(name, storage_path=folder, resume=True)
    np.testing.assert_array_equal(again.raw_states, states.raw_states)


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
