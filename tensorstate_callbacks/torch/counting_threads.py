"""Count on a few threads of the host what devices have sent, while the model goes on."""

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

# How long the interpreter's end waits for states that are being counted, in seconds.
_MOST_PATIENCE = 10


class Part(NamedTuple):
    """States of one layer.

    Attributes:
        name: The layer.
        counter: What they are counted by: of parts with the same, one is counted after the other.
        run: Waits until they are there, and counts them.
    """

    name: str
    counter: Hashable
    run: Callable[[], None]


class Job:
    """Parts that came together, which are counted once, however often they are handed over.

    Args:
        parts: In the order in which the layers were called.
        n_bytes: Memory that they hold.

    Attributes:
        taken: A thread has taken them.
    """

    def __init__(self, parts: Sequence[Part], n_bytes: int) -> None:
        self.parts = parts
        self.n_bytes = n_bytes
        self.n_left = len(parts)
        self.taken = False


class CountingThreads:
    """A few threads that count several layers at once, of each layer part after part.

    An interrupt reaches the main thread only, so what these threads begin they finish. They start
    when there is something to count and end when there is nothing. A fork waits until they are
    between two parts; the child counts on threads of its own what the parent does too.

    Args:
        on_error: Is told of a layer that could not be counted, and why; on one of the threads.
        n_threads: How many there may be.
    """

    def __init__(
        self, on_error: Callable[[str, Exception], None], n_threads: int | None = None
    ) -> None:
        self._on_error = on_error
        self._n_threads = n_threads or _default_threads()
        self._is_stopped = False
        self._jobs: deque[Job] = deque()
        # Parts by counter, in order; of those that are ready none is being counted.
        self._parts: dict[Hashable, deque[tuple[Job, Part]]] = {}
        self._n_bytes = 0
        self.begin_anew()
        _all.add(self)

    def begin_anew(self) -> None:
        """Go on without the threads there were: a forked process has none of them."""
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._ready = deque(self._parts)
        self._n_counting = 0

    def put(self, job: Job) -> None:
        """Have the parts of a job counted; may be called again with the same one."""
        with self._changed:
            self._jobs.append(job)
            self._start()

    def wait(self, most_bytes: int | None = None) -> None:
        """Wait until what is left holds at most so many bytes; None: until nothing is left.

        Raises:
            RuntimeError: The interpreter has ended the threads.
        """
        with self._changed:
            while self._is_behind(most_bytes):
                self._start()
                self._changed.wait()

    def hold(self) -> None:
        """Wait until nothing is being counted, and keep it so."""
        self._changed.acquire()
        self._changed.wait_for(lambda: not self._n_counting)

    def let_go(self) -> None:
        """End `hold`."""
        self._changed.release()

    def stop(self) -> None:
        """Begin nothing further, and wait a while for what was begun."""
        with self._changed:
            self._is_stopped = True
            self._changed.wait_for(lambda: not self._threads, _MOST_PATIENCE)

    def _is_behind(self, most_bytes: int | None) -> bool:
        if most_bytes is None:
            return bool(self._jobs or self._parts)
        return self._n_bytes + sum(job.n_bytes for job in self._jobs) > most_bytes

    def _start(self) -> None:
        if self._is_stopped:
            raise RuntimeError("states can't be counted while the interpreter ends")
        if len(self._threads) < self._n_threads:
            thread = threading.Thread(target=self._work, name="tensorstate-count", daemon=True)
            thread.start()
            self._threads.add(thread)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._take_jobs()
                if self._is_stopped or not self._ready:
                    self._threads.discard(threading.current_thread())
                    self._changed.notify_all()
                    return
                counter = self._ready.popleft()
                job, part = self._parts[counter][0]
                self._n_counting += 1
            try:
                part.run()
            except Exception as error:  # noqa: BLE001 (raised where the counts are asked for)
                self._on_error(part.name, error)
            with self._changed:
                self._finish(counter, job)
                # What they hold is free from here on.
                del job, part
                self._n_counting -= 1
                self._changed.notify_all()

    def _take_jobs(self) -> None:
        while self._jobs:
            job = self._jobs.popleft()
            if job.taken:
                continue
            job.taken = True
            self._n_bytes += job.n_bytes
            for part in job.parts:
                if part.counter not in self._parts:
                    self._parts[part.counter] = deque()
                    self._ready.append(part.counter)
                self._parts[part.counter].append((job, part))

    def _finish(self, counter: Hashable, job: Job) -> None:
        waiting = self._parts[counter]
        waiting.popleft()
        if waiting:
            self._ready.append(counter)
        else:
            del self._parts[counter]
        job.n_left -= 1
        if not job.n_left:
            self._n_bytes -= job.n_bytes


_all: "weakref.WeakSet[CountingThreads]" = weakref.WeakSet()
_held: list[CountingThreads] = []


def _default_threads() -> int:
    # The others are the data loader's, and one the model's.
    return min(4, max(1, (os.cpu_count() or 1) - 1))


def _before_fork() -> None:
    for each in list(_all):
        each.hold()
        _held.append(each)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().let_go()


def _after_fork_in_child() -> None:
    _held.clear()
    for each in list(_all):
        each.begin_anew()


def _stop_all() -> None:
    for each in list(_all):
        each.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
# A thread that counts while the interpreter goes would find it gone.
atexit.register(_stop_all)
