"""Keep the packed states of one capture point as observed, in memory or in files."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

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


class RawStates(Protocol):
    """What keeps packed states and knows how many came with each batch."""

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""

    def appended(self, rows: Rows, n_samples: int) -> AbstractContextManager[None]:
        """Keep the states of a batch, unless the block raises: then they were never there."""

    def rows(self) -> Rows:
        """Return all states, shape `(states, bytes)`, uint8, read-only."""

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch, shape `(batches, 2)`."""

    def clear(self) -> None:
        """Forget everything."""


class MemoryStates:
    """Keeps packed states in memory."""

    def __init__(self) -> None:
        self._parts: list[Rows] = []
        self._batches: list[tuple[int, int]] = []

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""
        self._parts = [np.empty((0, -(-n_neurons // 8)), np.uint8)]

    @contextmanager
    def appended(self, rows: Rows, n_samples: int) -> Iterator[None]:
        """Keep the states of a batch, unless the block raises."""
        yield
        self._parts.append(rows)
        self._batches.append((n_samples, len(rows)))

    def rows(self) -> Rows:
        """Return all states, read-only."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        rows = self._parts[0].view()
        rows.flags.writeable = False
        return rows

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch."""
        return np.array(self._batches, np.int64).reshape(-1, 2)

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
        self._batches: list[tuple[int, int]] = []
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
        if self.n_neurons is None:
            # Not before there is something to store; another capture may have begun meanwhile.
            if self._lock is None:
                self._lock = JournalLock(self._journal, new=True)
                try:
                    self._states.touch(exist_ok=self._states.is_file())
                    if self._states.is_symlink() or self._states.stat().st_size:
                        raise FileExistsError(f"{self._states} exists, of another program")
                except BaseException:
                    self._lock.release()
                    self._journal.unlink()
                    self._lock = None
                    raise
            header = header_line(self._name, n_neurons, self._threshold)
            _append(self._journal, self._journal.stat().st_size, header)
            self.n_neurons = n_neurons

    @contextmanager
    def appended(self, rows: Rows, n_samples: int) -> Iterator[None]:
        """Keep the states of a batch, unless the block raises.

        Raises:
            OSError: They could not be written, the disk is full for example; what was there stays.
        """
        states_end = sum(n for _, n in self._batches) * self._width
        self._check_own(states_end)
        journal_end = self._journal.stat().st_size
        try:
            _append(self._states, states_end, rows.tobytes())
            batch = {"samples": n_samples, "states": len(rows)}
            _append(self._journal, journal_end, line_of(batch))
            yield
        except BaseException:
            os.truncate(self._journal, journal_end)
            os.truncate(self._states, states_end)
            raise
        self._batches.append((n_samples, len(rows)))

    def rows(self) -> Rows:
        """Return all states, a read-only memory map."""
        shape = sum(n for _, n in self._batches), self._width
        if shape[0] == 0:
            return np.empty(shape, np.uint8)
        return np.memmap(self._states, np.uint8, "r", shape=shape)

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the samples and states of each batch."""
        return np.array(self._batches, np.int64).reshape(-1, 2)

    def clear(self) -> None:
        """Forget everything, on disk too, unless the files are another capture's by now."""
        lock, self._lock = self._lock, None
        self._batches, self.n_neurons = [], None
        if lock is not None and lock.is_held():
            self._states.unlink(missing_ok=True)
            lock.release()
            self._journal.unlink(missing_ok=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # Two captures must not write into the same files.
        return DetachedStates, (str(self._states),)

    @property
    def _width(self) -> int:
        return -(-(self.n_neurons or 0) // 8)

    def _resume(self) -> None:
        self._lock = JournalLock(self._journal, new=False)
        try:
            journal = read_journal(self._journal.read_bytes(), self._name, self._threshold)
        except ValueError as error:
            raise ValueError(
                f"{self._journal} can't be resumed: {error}. Take another storage_path, or remove "
                "the file and its states"
            ) from error
        if journal.n_neurons is None:
            self._check_empty(f"its journal, {self._journal}, says nothing of it")
        self._batches, self.n_neurons = journal.batches, journal.n_neurons
        # Missing, if the crash came between the two.
        self._states.touch()
        needed = sum(n for _, n in self._batches) * self._width
        if self._states.stat().st_size < needed:
            raise ValueError(
                f"{self._states} is shorter than its journal says, {needed} bytes: remove it and "
                f"{self._journal}"
            )
        os.truncate(self._journal, journal.end)
        os.truncate(self._states, needed)

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

    @contextmanager
    def appended(self, rows: Rows, n_samples: int) -> Iterator[None]:
        """Nothing is kept."""
        yield

    def rows(self) -> NoReturn:
        """Say that they aren't here."""
        raise StatesNotAvailableError(
            f"the raw states in {self._path} belong to the capture point that this one was copied "
            "or loaded from; a copy keeps its counts only"
        )

    batches = rows

    def clear(self) -> None:
        """There is nothing to forget."""


def _append(path: Path, end: int, data: bytes) -> None:
    """Write at the end, all or nothing."""
    with path.open("r+b", buffering=0) as file:
        file.seek(end)
        view = memoryview(data)
        try:
            while view:
                view = view[file.write(view) :]
        except BaseException:
            file.truncate(end)
            raise
