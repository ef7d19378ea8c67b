"""Replace a file only once the new one is whole."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write; where the block or the disk fails, what was there before stays.

    The new file is written beside the old one and then takes its place, with its permissions. A
    link stays a link: the file that it leads to is replaced. What is no file, such as `/dev/stdout`
    or a pipe that somebody reads, is written to as it is.

    Args:
        path: Where to.

    Raises:
        OSError: There is no such folder, it is full, or the file may not be written.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with _open_device(target) as file:
            yield file
        return
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"{str(path)!r} may not be written")
    # Short, and not of the target's name: that may be as long as names can be.
    new = target.with_name(f".new-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(new, flags, 0o666 if mode is None else 0o600)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        with os.fdopen(number, "wb") as file:
            if mode is not None:
                os.chmod(new, stat.S_IMODE(mode))
            yield file
            file.flush()
            # Without it a power failure may leave the new name with nothing in it.
            os.fsync(number)
        os.replace(new, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise


def _open_device(target: Path) -> BinaryIO:
    # A pipe that nobody reads is an error, not a wait without end.
    not_waiting = getattr(os, "O_NONBLOCK", 0)
    number = os.open(target, os.O_WRONLY | not_waiting)
    if not_waiting:
        os.set_blocking(number, True)
    return os.fdopen(number, "wb")
