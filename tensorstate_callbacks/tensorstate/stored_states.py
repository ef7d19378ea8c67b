"""Keep the packed states of one capture point as observed, in memory or in files."""

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import StatesNotAvailableError
from tensorstate_callbacks.tensorstate.journal import (
    JournalLock,
    check_own_file,
    file_stem,
    header_line,
    line_of,
    read_journal,
)

Rows = npt.NDArray[np.uint8]


class Batch(NamedTuple):
    """A batch of states that is kept.

    Attributes:
        samples: How many samples it had.
        states: How many states.
        end: Where its states end, among all.
        journal_end: Where its line ends in the journal, in bytes; 0 in memory.
    """

    samples: int
    states: int
    end: int
    journal_end: int = 0


class RawStates(Protocol):
    """What keeps packed states and knows how many came with each batch."""

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""

    def append(self, rows: Rows, n_samples: int) -> None:
        """Keep the states of a batch, all or none."""

    def cut(self, n_states: int) -> None:
        """Forget the latest batches, down to so many states."""

    def rows(self) -> Rows:
        """Return all states, shape `(states, bytes)`, uint8, read-only."""

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch, shape `(batches, 2)`."""

    def clear(self) -> None:
        """Forget everything."""


class MemoryStates:
    """Keeps packed states in memory."""

    def __init__(self) -> None:
        # Each with the states before it. What goes beyond the last batch isn't there any more.
        self._parts: list[tuple[int, Rows]] = []
        self._batches: list[Batch] = []

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""
        self._parts = [(0, np.empty((0, -(-n_neurons // 8)), np.uint8))]

    def append(self, rows: Rows, n_samples: int) -> None:
        """Keep the states of a batch."""
        self._trim()
        before = _n_states(self._batches)
        self._parts.append((before, rows))
        self._batches.append(Batch(n_samples, len(rows), before + len(rows)))

    def cut(self, n_states: int) -> None:
        """Forget the latest batches."""
        while _n_states(self._batches) > n_states:
            self._batches.pop()

    def rows(self) -> Rows:
        """Return all states, read-only."""
        self._trim()
        if len(self._parts) > 1:
            self._parts = [(0, np.concatenate([rows for _, rows in self._parts]))]
        rows = self._parts[0][1].view()
        rows.flags.writeable = False
        return rows

    def _trim(self) -> None:
        n_states = _n_states(self._batches)
        while self._parts:
            before, rows = self._parts[-1]
            if before + len(rows) <= n_states:
                return
            if before and before >= n_states:
                self._parts.pop()
            else:
                self._parts[-1] = before, rows[: n_states - before]

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch."""
        return _samples_and_states(self._batches)

    def clear(self) -> None:
        """Forget everything."""
        self._parts, self._batches = [], []


class StoredStates:
    """Keeps packed states in two files of a folder, `<name>.states` and `<name>.journal`.

    The states stand back to back in the first. The second has a line for each batch, written after
    its states: a batch that a crash cut short is not in the journal, and its states are cut off
    when the capture is resumed. Nothing else is ever cut off or written over. One process at a time
    has the files, from the first batch or from resuming until it ends. (They are not forced to
    the device after each batch: a power failure may lose what the file system has not written.)

    Args:
        folder: Where; made if it isn't there.
        name: The capture point's name.
        threshold: What the states are captured with; a resumed capture must have the same.
        resume: Go on with a capture that is there, instead of refusing to mix two.

    Attributes:
        n_neurons: Neurons per state; None before the first batch.

    Raises:
        BlockingIOError: Another process captures into the files.
        FileExistsError: There is an earlier capture, and `resume` isn't set.
        ValueError: The earlier capture is damaged, isn't one, or had another threshold; or the name
            can't be that of a file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str, threshold: float, *, resume: bool
    ) -> None:
        self._name, self._threshold = name, threshold
        self._batches: list[Batch] = []
        self._header_end = 0
        self._own = False
        self._lock: JournalLock | None = None
        self.n_neurons: int | None = None
        Path(folder).mkdir(parents=True, exist_ok=True)
        stem = file_stem(Path(folder), name)
        self._states, self._journal = Path(f"{stem}.states"), Path(f"{stem}.journal")
        there = [path for path in (self._states, self._journal) if os.path.lexists(path)]
        if there and not resume:
            raise FileExistsError(
                f"{self._states} holds states that {name!r} captured earlier: take another "
                "storage_path, remove the file and its journal, or go on with it by resume=True"
            )
        for path in there:
            check_own_file(path)
        if self._journal in there:
            self._resume()
        elif there:
            self._check_empty(f"there is no {self._journal.name} of it")

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""
        if self.n_neurons != n_neurons:
            # Not before there is something to store; another capture may have begun meanwhile.
            self._take_files()
            header = header_line(self._name, n_neurons, self._threshold)
            _append(self._journal, 0, header)
            self._header_end, self.n_neurons = len(header), n_neurons

    def append(self, rows: Rows, n_samples: int) -> None:
        """Keep the states of a batch, all or none.

        Raises:
            OSError: They could not be written, the disk is full for example; what was there stays.
        """
        before = _n_states(self._batches)
        self._check_own(before * self._width)
        line = line_of({"samples": n_samples, "states": len(rows)})
        journal_end = self._journal_end(self._batches)
        try:
            _append(self._states, before * self._width, rows.tobytes())
            _append(self._journal, journal_end, line)
            end = before + len(rows)
            self._batches.append(Batch(n_samples, len(rows), end, journal_end + len(line)))
        except BaseException:
            self._cut_files(self._batches)
            raise

    def cut(self, n_states: int) -> None:
        """Forget the latest batches."""
        if _n_states(self._batches) > n_states:
            kept = [batch for batch in self._batches if batch.end <= n_states]
            self._check_own(0)
            self._cut_files(kept)
            # Last, so that what an interrupt leaves undone is done the next time.
            self._batches = kept

    def rows(self) -> Rows:
        """Return all states, a read-only memory map."""
        shape = _n_states(self._batches), self._width
        if shape[0] == 0:
            return np.empty(shape, np.uint8)
        return np.memmap(self._states, np.uint8, "r", shape=shape)

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch."""
        return _samples_and_states(self._batches)

    def clear(self) -> None:
        """Forget everything, on disk too, unless the files are another capture's by now."""
        # First, so that what an interrupt leaves of the files is written over.
        self._batches, self.n_neurons = [], None
        if self._lock is not None and self._lock.is_held():
            self._states.unlink(missing_ok=True)
            self._lock.release()
            self._journal.unlink(missing_ok=True)
        self._lock, self._own = None, False

    def __reduce__(self) -> tuple[Any, ...]:
        # Two captures must not write into the same files.
        return DetachedStates, (str(self._states),)

    @property
    def _width(self) -> int:
        return -(-(self.n_neurons or 0) // 8)

    def _take_files(self) -> None:
        owned, self._own = self._own, True  # Before they are made: an interrupt may leave them.
        taken = None
        try:
            if self._lock is None or not self._lock.is_held():
                new = not (owned and os.path.lexists(self._journal))
                taken = self._lock = JournalLock(self._journal, new=new)
            self._states.touch(exist_ok=owned or self._states.is_file())
            if not owned and (self._states.is_symlink() or self._states.stat().st_size):
                raise FileExistsError(f"{self._states} exists, of another program")
        except OSError:
            if taken is not None and not owned:
                taken.release()
                self._journal.unlink()
            if not owned:
                self._lock, self._own = None, False
            raise

    def _journal_end(self, batches: Sequence[Batch]) -> int:
        return batches[-1].journal_end if batches else self._header_end

    def _cut_files(self, batches: Sequence[Batch]) -> None:
        os.truncate(self._journal, self._journal_end(batches))
        os.truncate(self._states, _n_states(batches) * self._width)

    def _resume(self) -> None:
        self._lock, self._own = JournalLock(self._journal, new=False), True
        text = self._journal.read_bytes()
        try:
            journal = read_journal(text, self._name, self._threshold)
        except ValueError as error:
            raise ValueError(
                f"{self._journal} can't be resumed: {error}. Take another storage_path, or remove "
                "the file and its states"
            ) from error
        if journal.n_neurons is None:
            self._check_empty(f"its journal, {self._journal}, says nothing of it")
        lines = text[: journal.end].splitlines(keepends=True)
        self._header_end, *ends = accumulate(map(len, lines or [b""]))
        totals = accumulate(states for _, states in journal.batches)
        self._batches = [
            Batch(*batch, total, end)
            for batch, total, end in zip(journal.batches, totals, ends, strict=True)
        ]
        self.n_neurons = journal.n_neurons
        # Missing, if the crash came between the two.
        self._states.touch()
        needed = _n_states(self._batches) * self._width
        if self._states.stat().st_size < needed:
            raise ValueError(
                f"{self._states} is shorter than its journal says, {needed} bytes: remove it and "
                f"{self._journal}"
            )
        self._cut_files(self._batches)

    def _check_empty(self, problem: str) -> None:
        if self._states.exists() and self._states.stat().st_size:
            raise ValueError(
                f"{self._states} can't be resumed: {problem}, so it may be anything. Take another "
                "storage_path, or remove the file"
            )

    def _check_own(self, states_end: int) -> None:
        if self._lock is not None:
            self._lock.check()
        if self._states.stat().st_size < states_end:
            raise OSError(f"{self._states} was shortened by another program")


class DetachedStates:
    """Stands in for stored states in a copy of a capture point: the files aren't the copy's.

    Args:
        path: The file of the original.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def begin(self, n_neurons: int) -> None:
        """Nothing is kept."""

    def append(self, rows: Rows, n_samples: int) -> None:
        """Nothing is kept."""

    def cut(self, n_states: int) -> None:
        """There is nothing to forget."""

    def rows(self) -> NoReturn:
        """Say that they aren't here."""
        raise StatesNotAvailableError(
            f"the raw states in {self._path} belong to the capture point that this one was copied "
            "or loaded from; a copy keeps its counts only"
        )

    batches = rows

    def clear(self) -> None:
        """There is nothing to forget."""


def _n_states(batches: Sequence[Batch]) -> int:
    return batches[-1].end if batches else 0


def _samples_and_states(batches: Sequence[Batch]) -> npt.NDArray[np.int64]:
    return np.array([batch[:2] for batch in batches], np.int64).reshape(-1, 2)


def _append(path: Path, end: int, data: bytes) -> None:
    """Write at the end, all or nothing, in place of what an interrupt has left there."""
    with path.open("r+b", buffering=0) as file:
        file.truncate(end)
        file.seek(end)
        view = memoryview(data)
        try:
            while view:
                view = view[file.write(view) :]
        except BaseException:
            file.truncate(end)
            raise
