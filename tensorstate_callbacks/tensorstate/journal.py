"""Read the journal of a capture, and keep it to one process at a time."""

import errno
import json
import math
import os
import re
import stat
import sys
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tensorstate_callbacks.errors import TensorStateWarning

_VERSION = 1
# Beyond what a layer can have: a counter for so many would find no memory.
_MOST_NEURONS = 1 << 32
_BATCH = b'{"samples": 0, "states": 0}'


class Journal(NamedTuple):
    """What a journal says.

    Attributes:
        n_neurons: Neurons per state; None where nothing was begun yet.
        batches: Samples and states of each batch.
        end: Bytes of it that are whole lines.
    """

    n_neurons: int | None
    batches: list[tuple[int, int]]
    end: int


def file_stem(folder: Path, name: str) -> Path:
    """Return the files of a capture point in a folder that is there, without their suffixes.

    Raises:
        ValueError: The name can't be that of a file.
    """
    way_out = "give the layer another name, leave it out, or keep its states in memory"
    if not name.strip("."):
        raise ValueError(f"a layer named {name!r} can't have a file in {folder}: {way_out}")
    stem = quote(name, safe=" ", errors="surrogatepass")
    most = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if 0 < most < len(stem) + len(".journal"):
        raise ValueError(
            f"the name of layer {name[:40] + '...'!r} is too long for a file in {folder}, which "
            f"takes {most} bytes where this one needs {len(stem) + len('.journal')}: {way_out}"
        )
    return folder / stem


def header_line(name: str, n_neurons: int, threshold: float) -> bytes:
    """Return the first line of a journal."""
    return line_of(
        {"version": _VERSION, "name": name, "neurons": n_neurons, "threshold": threshold}
    )


def line_of(fields: Mapping[str, Any]) -> bytes:
    """Return a line of a journal."""
    return json.dumps(fields).encode() + b"\n"


def read_journal(text: bytes, name: str, threshold: float) -> Journal:
    """Return what a journal says; the line that a crash cut short doesn't count.

    Args:
        text: All of the file.
        name: Of the capture point.
        threshold: What it captures with.

    Raises:
        ValueError: It is damaged, of another capture point, or of another threshold.
    """
    end = text.rfind(b"\n") + 1
    lines, rest = text[:end].split(b"\n")[:-1], text[end:]
    if not lines:
        known = header_line(name, 0, threshold).partition(b" 0,")[0]
        if not known.startswith(rest) and not rest.startswith(known):
            raise ValueError("it doesn't begin as a journal does")
        return Journal(None, [], 0)
    if not _BATCH.startswith(re.sub(rb"\d+", b"0", rest)):
        raise ValueError("its last line is damaged")
    try:
        header, *batches = [json.loads(line) for line in lines]
    except RecursionError:
        raise ValueError("a line of it is nested too deeply") from None
    n_neurons = _read_header(header, name, threshold)
    return Journal(n_neurons, [_read_batch(batch) for batch in batches], end)


def _read_header(header: Any, name: str, threshold: float) -> int:
    if not isinstance(header, dict):
        raise ValueError("its first line is not that of a journal")
    version, neurons = _whole(header, "version"), _whole(header, "neurons")
    if version != _VERSION:
        raise ValueError(f"it is of version {version}, this is version {_VERSION}")
    if header.get("name") != name:
        raise ValueError(f"it is of layer {header.get('name')!r}, not of {name!r}")
    given = header.get("threshold")
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise ValueError(f"its threshold is {given!r}")
    if given != threshold:
        raise ValueError(f"its states were captured with the threshold {given}, not {threshold}")
    if neurons > _MOST_NEURONS:
        raise ValueError(f"its number of neurons is {neurons}")
    return neurons


def _read_batch(batch: Any) -> tuple[int, int]:
    if not isinstance(batch, dict):
        raise ValueError(f"a line of it is {str(batch)[:40]!r}, no batch")
    samples, states = _whole(batch, "samples"), _whole(batch, "states")
    if states % samples:
        raise ValueError(f"a batch of {samples} samples has {states} states")
    return samples, states


def _whole(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"its {key} must be a whole number above 0, and is {str(value)[:40]!r}")
    return value


class JournalLock:
    """Keeps a journal from other processes, until nobody refers to the lock or the process ends.

    In one process the capture that took the lock last has it.

    Args:
        path: The journal.
        new: Make the file, which must not be there; otherwise it must.

    Raises:
        BlockingIOError: Another process has it.
        FileExistsError: It is there, and should be new.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        self._path, self._pid, self._key = path, os.getpid(), os.path.realpath(path)
        held = None if new else _HELD.get(self._key)
        if held is None or not held.is_at(path):
            held = _HELD[self._key] = _HeldFile(path, new=new)
        self._file = held
        held.holder = self._token = object()

    def check(self) -> None:
        """Raise `OSError` if the journal is no longer this capture's."""
        if os.getpid() != self._pid:
            problem = "belongs to the process that this one was forked from"
        elif self._file.holder is not self._token:
            problem = "belongs to a later capture of this process, which has resumed it"
        elif not self._file.is_at(self._path):
            problem = "was removed or replaced by another program"
        else:
            return
        raise OSError(f"{self._path} {problem}")

    def is_held(self) -> bool:
        """Tell whether the journal is still this capture's."""
        try:
            self.check()
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let others have the file, which is about to be removed."""
        self._file.close()
        if _HELD.get(self._key) is self._file:
            del _HELD[self._key]


class _HeldFile:
    """An open file that is locked; it closes as the last reference to it goes."""

    def __init__(self, path: Path, *, new: bool) -> None:
        self.holder = object()
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._number = os.open(path, flags | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)
        self.close = weakref.finalize(self, os.close, self._number)
        try:
            _lock_file(self._number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                self.close()
                raise BlockingIOError(
                    f"{path} is in use by another process: wait until it has ended, or take "
                    "another storage_path"
                ) from None
            warnings.warn(
                f"{path} can't be locked ({error}): let no other process capture into its folder",
                TensorStateWarning,
                stacklevel=2,
            )

    def is_at(self, path: Path) -> bool:
        """Tell whether the path still leads to this file."""
        try:
            return os.path.samestat(os.fstat(self._number), os.lstat(path))
        except FileNotFoundError:
            return False


_HELD: weakref.WeakValueDictionary[str, _HeldFile] = weakref.WeakValueDictionary()


def _leave_to_parent() -> None:
    # A forked process's copies would keep the locks beyond the parent's end.
    for held in list(_HELD.values()):
        held.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)

if sys.platform == "win32":
    import msvcrt

    def _lock_file(number: int) -> None:
        # Far behind the end: what is locked there can't be read either.
        os.lseek(number, 1 << 30, os.SEEK_SET)
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_file(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_own_file(path: Path) -> None:
    """Raise `ValueError` if what is there is not a file of its own: a link, a folder, a pipe."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a link to another file" if stat.S_ISLNK(mode) else "not a file"
        raise ValueError(
            f"{path} can't be resumed: it is {kind}. Take another storage_path, or remove it"
        )
