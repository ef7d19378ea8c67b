"""Interrupt a piece of code at every one of its lines, or at any time, as Ctrl-C may."""

import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import tensorstate_callbacks

PACKAGE = Path(tensorstate_callbacks.__file__).parent


class Interrupt(KeyboardInterrupt):
    """What is raised, told from a real Ctrl-C."""


class Lines:
    """Counts the lines that a piece of code runs, and raises at one of them.

    Args:
        files: Of the package, as paths in it, or elsewhere.
        at: Which line to raise at, counted from 0 as they run; None for none.

    Attributes:
        n_seen: How many were run.
        where: File and number of the line that was raised at.
    """

    def __init__(self, files: Iterable[str], at: int | None = None) -> None:
        self._files = {str(PACKAGE / name) for name in files}
        self._at = at
        self.n_seen = 0
        self.where: str | None = None

    def run(self, action: Callable[[], object]) -> None:
        """Run the code under watch."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            action()
        except Interrupt:
            pass
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event in ("line", "call"):
            if self.n_seen == self._at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {event}"
                self.n_seen += 1
                raise Interrupt
            self.n_seen += 1
        return self._trace


def each_line(
    files: Iterable[str],
    action: Callable[[], object],
    *,
    most: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Run `action` again and again, each time interrupted at another line; yield where.

    Args:
        files: Of the package, as paths in it.
        action: The code. What it needs it makes itself, or is put right between two runs.
        most: How many lines to take at random where there are more; None for all.
        seed: Which ones.
    """
    files = list(files)
    counted = Lines(files)
    counted.run(action)
    assert counted.n_seen
    lines: Iterable[int] = range(counted.n_seen)
    if most is not None and most < counted.n_seen:
        lines = sorted(random.Random(seed).sample(lines, most))  # noqa: S311
    for at in lines:
        interrupted = Lines(files, at)
        interrupted.run(action)
        if interrupted.where is not None:
            yield interrupted.where


def at_random_times(
    action: Callable[[], object], n_times: int, *, errors: tuple[type[Exception], ...] = ()
) -> Iterator[bool]:
    """Run `action` again and again, each time interrupted somewhere; yield whether it came to it.

    Times are drawn from those that the action takes on this machine.

    Args:
        action: The code. What it needs it makes itself, or is put right between two runs.
        n_times: How often.
        errors: What a framework may make of an interrupt that arrives in a loop of its own.
    """
    arrived = False

    def interrupt(*_: Any) -> None:
        nonlocal arrived
        arrived = True
        raise Interrupt

    def seconds() -> float:
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin

    duration = seconds()
    chance = random.Random(7)  # noqa: S311
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(n_times):
            arrived = False
            with contextlib.suppress(Interrupt, *errors):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.02, 0.95) * duration)
                try:
                    # One that wasn't interrupted, and was faster, tells better.
                    duration = min(duration, seconds())
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            yield arrived
    finally:
        signal.signal(signal.SIGALRM, before)
