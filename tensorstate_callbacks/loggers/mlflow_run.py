"""Send what is logged to one MLflow run, without letting the training wait for the server."""

import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.passwords import hide_passwords
from tensorstate_callbacks.loggers.tracker import describe_error

# The longest that the end of a fit waits for what isn't sent yet, for all callbacks together.
END_WAIT_SECONDS = 10.0
# A request that takes longer is waited for by its thread alone: another sends what stands behind.
_PATIENCE_SECONDS = 1.0
_MOST_SENDERS = 8
# Of all fits, to one address: MLflow lets each wait for a silent server for minutes.
_MOST_OF_ADDRESS = 24
_SENDERS: Counter[str] = Counter()
_SENDERS_LOCK = threading.Lock()
# MLflow's own limit.
_METRICS_AT_ONCE = 1000
_OPEN: dict["RunPlace", "MlflowRun"] = {}
# Address and kind of request to the share of the wait that it still gets, after ends of fits that
# waited for it in vain: many short fits don't each cost all of it.
_SHARES: dict[tuple[str, str], float] = {}
_LEAST_SHARE = 0.05


class RunPlace(NamedTuple):
    """Where a run is.

    Attributes:
        tracking_uri: Address of the server or database.
        run_id: The run.
    """

    tracking_uri: str
    run_id: str

    def __str__(self) -> str:
        address = hide_passwords(self.tracking_uri, self.tracking_uri)
        return f"run {self.run_id} of MLflow at {address}"


class _Job:
    """Something to send.

    Args:
        kind: What it is, for the message: `"the parameters"`.
        send: Sends it with a client.
    """

    def __init__(self, kind: str, send: Callable[[Any], None]) -> None:
        self.kind, self.send = kind, send
        self.begun: float | None = None


class MlflowRun:
    """One run, shared by all callbacks of a fit that is tracked in it.

    Threads of its own send: one, in order, as long as the server answers soon. It isn't MLflow's
    asynchronous queue: the interpreter waits for that one as it ends, for minutes where the server
    doesn't answer, and MLflow tries a request again and again for minutes.

    Args:
        place: Where the run is.
    """

    def __init__(self, place: RunPlace) -> None:
        self._place = place
        self._mlflow = require("mlflow", extra="mlflow", purpose="Logging to MLflow")
        self._users = 0
        self._logged: dict[int, set[str]] = {}
        self._names: set[str] = set()
        self._changed = threading.Condition()
        self._waiting: list[_Job] = []
        self._sending: list[_Job] = []
        self._n_senders = 0
        self._making = threading.Lock()
        self._problem: str | None = None
        self._gave_up = False
        # MLflow keeps some of its settings in context variables.
        self._context = contextvars.copy_context()

    @classmethod
    def share(cls, place: RunPlace) -> "MlflowRun":
        """Return the run; each user closes it once."""
        run = _OPEN.get(place)
        if run is None:
            run = _OPEN[place] = cls(place)
        run._users += 1
        return run

    def log_params(self, params: Mapping[str, str]) -> None:
        """Send parameters; one that the run has with another value gets a number."""
        wanted = dict(params)

        def send(client: Any) -> None:
            there = client.get_run(self._place.run_id).data.params
            new = {}
            for key, value in wanted.items():
                # MLflow's parameters can't be changed: another fit may have had another value.
                name, number = key, 2
                while there.get(name, value) != value:
                    name, number = f"{key}.fit_{number}", number + 1
                if name not in there:
                    new[name] = value
            pairs = [self._mlflow.entities.Param(*pair) for pair in new.items()]
            if pairs:
                client.log_batch(self._place.run_id, params=pairs, synchronous=True)

        self._put("the parameters", send)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Send an epoch's metrics in one batch, without those that another callback has sent."""
        logged = self._logged.setdefault(step, set())
        now = int(time.time() * 1000)
        metrics = [
            self._mlflow.entities.Metric(key, value, now, step)
            for key, value in values.items()
            if key not in logged
        ]
        logged.update(values)
        for begin in range(0, len(metrics), _METRICS_AT_ONCE):
            batch = metrics[begin : begin + _METRICS_AT_ONCE]

            def send(client: Any, batch: list[Any] = batch) -> None:
                client.log_batch(self._place.run_id, metrics=batch, synchronous=True)

            self._put("the metrics", send)

    def log_table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Send a table as an artifact; where there is one of that name, under a new one."""

        def send(client: Any) -> None:
            pandas = require("pandas", extra="pandas", purpose="A table in MLflow")
            # As objects: for the type that pandas has for text, MLflow's way is deprecated.
            table = pandas.DataFrame(columns, dtype=object)
            client.log_table(self._place.run_id, table, self._find_free_name(client, name))

        self._put("the table", send)

    def log_figure(self, figure: Any, name: str) -> None:
        """Send a figure as an artifact; where there is one of that name, under a new one."""

        def send(client: Any) -> None:
            client.log_figure(self._place.run_id, figure, self._find_free_name(client, name))

        self._put("the figure", send)

    def close(self) -> str | None:
        """Wait until all is sent, for `END_WAIT_SECONDS` at most, and less where that was in vain.

        Returns:
            What went wrong since the run was opened; None where everything arrived.
        """
        begin = time.monotonic()
        try:
            with self._changed:
                while (due := self._next_due(begin)) is not None:
                    self._help()
                    self._changed.wait(max(min(due - time.monotonic(), 0.1), 0.01))
                self._give_up()
        finally:
            self._users -= 1
            if not self._users:
                _OPEN.pop(self._place, None)
        return self._problem

    def _next_due(self, begin: float) -> float | None:
        """Return until when to wait on; None where all is sent or overdue."""
        now, due = time.monotonic(), []
        for job in (*self._sending, *self._waiting):
            wait = END_WAIT_SECONDS * self._find_share(job.kind)
            # What was begun long before the end isn't waited for anew; what begins late, longer.
            most = begin + min(2 * wait, END_WAIT_SECONDS)
            due.append(min((job.begun or begin) + wait, most))
        return min((time for time in due if time > now), default=None)

    def _find_share(self, kind: str) -> float:
        # The callbacks of one fit wait once.
        known = _SHARES.get((self._place.tracking_uri, kind), 1.0)
        return _LEAST_SHARE if self._gave_up else known

    def _give_up(self) -> None:
        """Leave what isn't sent, and wait less for its kind the next time."""
        left = [job.kind for job in (*self._sending, *self._waiting)]
        if left:
            full = any(self._find_share(kind) == 1 for kind in left)
            self._problem = self._problem or (
                f"{' and '.join(dict.fromkeys(left))} got no answer within {END_WAIT_SECONDS:g} "
                f"seconds{'' if full else ', in an earlier fit, and none since'}"
            )
        # A database of this machine is slow where the machine is: it has all of the wait.
        for kind in set(left) if self._place.tracking_uri.startswith("http") else ():
            share = max(self._find_share(kind) / 4, _LEAST_SHARE)
            _SHARES[self._place.tracking_uri, kind] = share
        self._gave_up = self._gave_up or bool(left)
        self._waiting.clear()

    def _put(self, kind: str, send: Callable[[Any], None]) -> None:
        with self._changed:
            self._waiting.append(_Job(kind, send))
            self._help()

    def _help(self) -> None:
        """Begin a thread where nobody sends what is waiting: all others wait for answers."""
        now = time.monotonic()
        late = [job for job in self._sending if now - (job.begun or now) >= _PATIENCE_SECONDS]
        if not self._waiting or self._n_senders > len(late):
            return
        # A kind of which nothing is under way is sent all the same.
        known = {job.kind for job in self._sending}
        if self._n_senders < _MOST_SENDERS or any(job.kind not in known for job in self._waiting):
            with _SENDERS_LOCK:
                if _SENDERS[self._place.tracking_uri] >= _MOST_OF_ADDRESS:
                    return
                _SENDERS[self._place.tracking_uri] += 1
            self._n_senders += 1
            try:
                target = self._context.copy().run
                name = "efficiency-to-mlflow"
                threading.Thread(target=target, args=(self._send,), name=name, daemon=True).start()
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        self._n_senders -= 1
        with _SENDERS_LOCK:
            _SENDERS[self._place.tracking_uri] -= 1

    def _send(self) -> None:
        client = None
        while (job := self._take()) is not None:
            try:
                if client is None:
                    with self._making:  # Two at once would both make the tables of a database.
                        client = self._mlflow.MlflowClient(self._place.tracking_uri)
                job.send(client)
            except BaseException as error:  # noqa: BLE001 - in the warning at the end of the fit
                with self._changed:
                    problem = describe_error(error, self._place.tracking_uri)
                    self._problem = self._problem or problem
            with self._changed:
                self._sending.remove(job)
                self._learn(job.kind, time.monotonic() - (job.begun or 0))
                self._changed.notify_all()

    def _learn(self, kind: str, seconds: float) -> None:
        """Wait longer again for what is answered soon."""
        key, needed = (self._place.tracking_uri, kind), seconds / END_WAIT_SECONDS
        if needed < _LEAST_SHARE:
            _SHARES.pop(key, None)
        elif key in _SHARES and needed <= 0.25:
            _SHARES[key] = max(_SHARES[key], 2 * needed)

    def _take(self) -> _Job | None:
        """Return the next job, of the kind of which the fewest are under way; None at the end."""
        with self._changed:
            if not self._waiting:
                self._leave()
                return None
            under_way = [job.kind for job in self._sending]
            job = min(self._waiting, key=lambda job: under_way.count(job.kind))
            self._waiting.remove(job)
            self._sending.append(job)
            job.begun = time.monotonic()
            return job

    def _find_free_name(self, client: Any, name: str) -> str:
        # A second fit in a run has files of its own.
        wanted = PurePosixPath(name)
        artifacts = client.list_artifacts(self._place.run_id, str(wanted.parent))
        with self._changed:
            taken = {artifact.path for artifact in artifacts} | self._names
            free, number = name, 2
            while free in taken:
                free = str(wanted.with_stem(f"{wanted.stem}_{number}"))
                number += 1
            self._names.add(free)
        return free
