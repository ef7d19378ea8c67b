"""Send what is logged to one MLflow run, without letting the training wait for the server."""

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.tracker import describe_error, hide_passwords

# The longest that the end of a fit waits for what isn't sent yet, for all callbacks together.
END_WAIT_SECONDS = 10.0
_OPEN: dict["RunPlace", "MlflowRun"] = {}


class RunPlace(NamedTuple):
    """Where a run is.

    Attributes:
        tracking_uri: Address of the server or database.
        run_id: The run.
    """

    tracking_uri: str
    run_id: str

    def __str__(self) -> str:
        return f"run {self.run_id} of MLflow at {hide_passwords(self.tracking_uri)}"


class MlflowRun:
    """One run, shared by all callbacks of a fit that is tracked in it.

    A thread of its own sends, in order. It isn't MLflow's asynchronous queue: the interpreter waits
    for that one as it ends, for minutes where the server doesn't answer.

    Args:
        place: Where the run is.
    """

    def __init__(self, place: RunPlace) -> None:
        self._place = place
        self._mlflow = require("mlflow", extra="mlflow", purpose="Logging to MLflow")
        self._users = 0
        self._logged: dict[int, set[str]] = {}
        self._jobs: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._problem: str | None = None
        self._given_up = False
        # MLflow keeps some of its settings in context variables.
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(self._send,), name="efficiency-to-mlflow", daemon=True
        ).start()

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

        self._jobs.put(send)

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
        if metrics:
            self._jobs.put(
                lambda client: client.log_batch(
                    self._place.run_id, metrics=metrics, synchronous=True
                )
            )

    def log_table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Send a table as an artifact; where there is one of that name, under a new one."""

        def send(client: Any) -> None:
            pandas = require("pandas", extra="pandas", purpose="A table in MLflow")
            # As objects: for the type that pandas has for text, MLflow's way is deprecated.
            table = pandas.DataFrame(columns, dtype=object)
            client.log_table(self._place.run_id, table, self._find_free_name(client, name))

        self._jobs.put(send)

    def log_figure(self, figure: Any, name: str) -> None:
        """Send a figure as an artifact; where there is one of that name, under a new one."""
        self._jobs.put(
            lambda client: client.log_figure(
                self._place.run_id, figure, self._find_free_name(client, name)
            )
        )

    def close(self) -> str | None:
        """Wait until all is sent, for `END_WAIT_SECONDS` at most.

        Returns:
            What went wrong since the run was opened; None where everything arrived.
        """
        sent = threading.Event()
        self._jobs.put(lambda client: sent.set())
        if not self._given_up and not sent.wait(END_WAIT_SECONDS):
            self._given_up = True
            self._problem = self._problem or f"no answer within {END_WAIT_SECONDS:g} seconds"
        self._users -= 1
        if not self._users:
            del _OPEN[self._place]
            self._jobs.put(None)
        return self._problem

    def _send(self) -> None:
        client = None
        while (job := self._jobs.get()) is not None:
            if self._given_up:
                continue
            try:
                client = client or self._mlflow.MlflowClient(self._place.tracking_uri)
                job(client)
            except Exception as error:  # noqa: BLE001 - in the warning at the end of the fit
                self._problem = self._problem or describe_error(error)

    def _find_free_name(self, client: Any, name: str) -> str:
        # A second fit in a run has files of its own.
        wanted = PurePosixPath(name)
        artifacts = client.list_artifacts(self._place.run_id, str(wanted.parent))
        taken = {artifact.path for artifact in artifacts}
        free, number = name, 2
        while free in taken:
            free = str(wanted.with_stem(f"{wanted.stem}_{number}"))
            number += 1
        return free
