"""Files of stored states that are damaged, another process's or somebody else's are left alone."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from test_stored_states import assert_same, capture, files, images, in_memory

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.tensorstate.captured_states import CapturedStates


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
