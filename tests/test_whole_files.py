"""What a file holds whose replacement fails half-way: what it held before."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from reports import history

from tensorstate_callbacks import EfficiencyReport, History, write_page
from tensorstate_callbacks.whole_file import whole_file


@contextmanager
def no_file_longer_than(n_bytes):
    """Let no file grow beyond so many bytes, as on a full disk."""
    resource = pytest.importorskip("resource", reason="needs RLIMIT_FSIZE to fill the disk")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("run.json", lambda path: history().save(path)),
        ("report.json", lambda path: history()[0].save(path)),
        ("run.html", lambda path: write_page(history(), path)),
    ],
)
def test_a_full_disk_leaves_the_earlier_file(tmp_path, name, save):
    path = tmp_path / name
    save(path)
    before = path.read_bytes()
    with no_file_longer_than(len(before) // 2), pytest.raises(OSError, match="File too large"):
        save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_block_that_raises_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def write_half(error):
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            write_half(error)
    assert path.read_bytes() == b"before"
    path = tmp_path / "new"
    with pytest.raises(ValueError):
        write_half(ValueError)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_permissions_stay_and_new_files_have_the_usual_ones(tmp_path):
    path, usual = tmp_path / ("n" * 250 + ".json"), tmp_path / "usual"
    usual.touch()
    history().save(path)
    assert path.stat().st_mode == usual.stat().st_mode
    path.chmod(0o600)
    history().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert History.load(path) == history()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_leads_to_the_new_content(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "run.json"
    link.symlink_to(Path("real", "run.json"))
    for _ in range(2):  # dangling first
        history().save(link)
        assert link.is_symlink()
        assert History.load(tmp_path / "real" / "run.json") == history()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(OSError) as error:  # nobody reads it
        history().save(pipe)
    assert error.value.errno == errno.ENXIO
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        # The reader opens it some time later.
        for _ in range(1000):
            try:
                history().save(pipe)
                break
            except OSError:
                reader.poll()
        content = reader.stdout.read()
    assert len(json.loads(content)) == len(history())
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match="folder.json"):
        history().save(tmp_path / "folder.json")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no/run\.json"):
        history().save(tmp_path / "no" / "run.json")


def altered(change):
    fields = history()[0].to_dict()
    change(fields, next(iter(fields["layers"].values())))
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"layers": ' * 100_000,
        "null",
        "3",
        '"text"',
        "[1, 2]",
        '{"layers": []}',
        altered(lambda fields, layer: fields.update(beta="2")),
        altered(lambda fields, layer: fields.update(accuracy="0.5")),
        altered(lambda fields, layer: fields.update(accuracy=True)),
        altered(lambda fields, layer: fields.update(epoch=-1)),
        altered(lambda fields, layer: fields.update(epoch=1.5)),
        altered(lambda fields, layer: fields.update(stage=None)),
        altered(lambda fields, layer: layer.update(n_neurons="4")),
        altered(lambda fields, layer: layer.update(n_states=True)),
        altered(lambda fields, layer: layer.update(n_states=-8)),
        altered(lambda fields, layer: layer.update(n_states=9)),
        altered(lambda fields, layer: layer.update(efficiency="high")),
        altered(lambda fields, layer: layer.update(efficiency=1.5)),
        altered(lambda fields, layer: layer.update(efficiency=float("nan"))),
        altered(lambda fields, layer: layer.update(name="another")),
        altered(lambda fields, layer: layer.update(spectrum=[[1], [-1]])),
        altered(lambda fields, layer: layer.update(spectrum=[[1, 2], [1]])),
        altered(lambda fields, layer: layer.update(spectrum=[[[1]], [[1]]])),
        altered(lambda fields, layer: layer.update(spectrum=[[2**70], [1]])),
        altered(lambda fields, layer: layer.update(spectrum=[])),
        altered(lambda fields, layer: layer.update(more=1)),
    ],
)
def test_files_that_hold_something_else_are_one_clear_error(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    for kind in (EfficiencyReport, History):
        with pytest.raises(ValueError, match=r"run\.json' (does not hold|holds \d)"):
            kind.load(path)
