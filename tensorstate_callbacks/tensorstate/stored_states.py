"""Keep the packed states of one capture point as observed, in memory or in files."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import StatesNotAvailableError

Rows = npt.NDArray[np.uint8]

_VERSION = 1


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
    when the capture is resumed. (The files are not forced to the device after each batch: against a
    power failure they are as safe as the file system makes them.)

    Args:
        folder: Where; made if it isn't there.
        name: The capture point's name.
        threshold: What the states are captured with; a resumed capture must have the same.
        resume: Go on with a capture that is there, instead of refusing to mix two.

    Attributes:
        n_neurons: Neurons per state; None before the first batch.

    Raises:
        FileExistsError: There is an earlier capture, and `resume` isn't set.
        ValueError: The earlier capture can't be read, or had another threshold.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str, threshold: float, *, resume: bool
    ) -> None:
        self._name, self._threshold = name, threshold
        stem = Path(folder) / quote(name, safe=" ")
        self._states, self._journal = Path(f"{stem}.states"), Path(f"{stem}.journal")
        self._batches: list[tuple[int, int]] = []
        self.n_neurons: int | None = None
        Path(folder).mkdir(parents=True, exist_ok=True)
        there = self._states.exists() or self._journal.exists()
        if there and not resume:
            raise FileExistsError(
                f"{self._states} holds states that {name!r} captured earlier: take another "
                "storage_path, remove the file and its journal, or go on with it by resume=True"
            )
        self._own = there
        if there:
            self._resume()

    def begin(self, n_neurons: int) -> None:
        """Get ready for states of so many neurons."""
        if self.n_neurons is None:
            # Not before there is something to store; another capture may have begun meanwhile.
            self._states.touch(exist_ok=self._own)
            self._journal.touch(exist_ok=self._own)
            header = {
                "version": _VERSION,
                "name": self._name,
                "neurons": n_neurons,
                "threshold": self._threshold,
            }
            self._own = True  # From here on the files are this capture's own.
            _append(self._journal, self._journal.stat().st_size, _line(header))
            self.n_neurons = n_neurons

    @contextmanager
    def appended(self, rows: Rows, n_samples: int) -> Iterator[None]:
        """Keep the states of a batch, unless the block raises.

        Raises:
            OSError: They could not be written, the disk is full for example; what was there stays.
        """
        states_end = sum(n for _, n in self._batches) * self._width
        journal_end = self._journal.stat().st_size
        try:
            _append(self._states, states_end, rows.tobytes())
            batch = {"samples": n_samples, "states": len(rows)}
            _append(self._journal, journal_end, _line(batch))
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
        """Forget everything, on disk too."""
        self._states.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)
        self._batches, self.n_neurons, self._own = [], None, False

    def __reduce__(self) -> tuple[Any, ...]:
        # Two captures must not write into the same files.
        return DetachedStates, (str(self._states),)

    @property
    def _width(self) -> int:
        return -(-(self.n_neurons or 0) // 8)

    def _resume(self) -> None:
        # One may be missing, if the crash came between the two.
        self._states.touch()
        self._journal.touch()
        text = self._journal.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            header, *batches = [json.loads(line) for line in whole.splitlines()] or [None]
            if header is not None:
                self._take_header(header)
                self._batches = [(batch["samples"], batch["states"]) for batch in batches]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._journal} can't be resumed: {error}. Take another storage_path, or remove "
                "the file and its states"
            ) from error
        self._cut_to_whole_batches(header, len(whole))

    def _take_header(self, header: Mapping[str, Any]) -> None:
        if header["version"] != _VERSION:
            raise ValueError(f"it is of version {header['version']}, this is version {_VERSION}")
        if header["threshold"] != self._threshold:
            raise ValueError(
                f"its states were captured with the threshold {header['threshold']}, not "
                f"{self._threshold}"
            )
        self.n_neurons = int(header["neurons"])

    def _cut_to_whole_batches(self, header: Any, journal_end: int) -> None:
        os.truncate(self._journal, journal_end)
        needed = sum(n for _, n in self._batches) * self._width
        if self._states.stat().st_size < needed:
            raise ValueError(
                f"{self._states} is shorter than its journal says, {needed} bytes: remove both"
            )
        os.truncate(self._states, needed)


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


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


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
