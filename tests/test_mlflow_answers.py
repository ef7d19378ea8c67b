"""What a run gets, and what its end costs, where a server answers some requests late or never."""

import http.server
import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tensorstate_callbacks.loggers import mlflow_run
from tensorstate_callbacks.loggers.mlflow_run import MlflowRun, RunPlace

pytest.importorskip("mlflow")
WAIT = 3.0


class Server(http.server.ThreadingHTTPServer):
    """Takes what MLflow sends for one run.

    Attributes:
        fails: Tells of a request, by its path and content, whether its answer is an error 500.
        delay: Seconds that each answer takes.
        got: What has arrived: parameters and metrics by name, files by path.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fails: Any = lambda path, content: False
        self.delay = 0.0
        self.got: list[str] = []
        self.run_id = uuid.uuid4().hex  # MLflow remembers where the files of a run go

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size).decode(errors="replace")
        time.sleep(self.server.delay)
        failed = self.server.fails(self.path, body)
        if not failed:
            if "log-batch" in self.path:
                fields = json.loads(body)
                pairs = [*fields.get("params", []), *fields.get("metrics", [])]
                self.server.got += [pair["key"] for pair in pairs]
            elif self.command == "PUT":
                self.server.got.append(self.path.rpartition("/")[2])
        info = {
            "run_id": self.server.run_id,
            "run_uuid": self.server.run_id,
            "experiment_id": "0",
            "status": "RUNNING",
            "artifact_uri": f"mlflow-artifacts:/0/{self.server.run_id}/artifacts",
        }
        answer = json.dumps({"run": {"info": info, "data": {}}, "files": []}).encode()
        self.send_response(500 if failed else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = _answer  # noqa: N815 - http.server's names

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(mlflow_run, "END_WAIT_SECONDS", WAIT)
    monkeypatch.setattr(mlflow_run, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(mlflow_run, "_SHARES", {})
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def log(server: Server, n_epochs: int = 3, address: str = "") -> tuple[str | None, float]:
    """Log a fit; return what went wrong, and the seconds that its end took."""
    run = MlflowRun.share(RunPlace(address or server.uri, server.run_id))
    run.log_params({"efficiency.beta": "2"})
    for epoch in range(n_epochs):
        run.log_metrics({f"val_aiq_{epoch}": 0.5}, epoch)
    run.log_table({"name": ["conv"]}, "efficiency/layers.json")
    begin = time.monotonic()
    return run.close(), time.monotonic() - begin


EVERYTHING = ["efficiency.beta", "val_aiq_0", "val_aiq_1", "val_aiq_2", "layers.json"]


@pytest.fixture
def _patient(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run, "END_WAIT_SECONDS", 60)
    monkeypatch.setattr(mlflow_run, "_PATIENCE_SECONDS", 60)


@pytest.mark.usefixtures("_patient")
def test_a_server_that_answers_gets_everything_in_order(server: Server) -> None:
    assert log(server)[0] is None
    assert server.got == EVERYTHING


@pytest.mark.parametrize(
    ("fails", "lost"),
    [
        (lambda path, body: "efficiency.beta" in body, ["efficiency.beta"]),
        (lambda path, body: "runs/get" in path, ["efficiency.beta"]),
        (lambda path, body: "val_aiq_1" in body, ["val_aiq_1"]),
        (lambda path, body: "val_aiq" in body, ["val_aiq_0", "val_aiq_1", "val_aiq_2"]),
    ],
)
def test_what_always_gets_an_error_holds_nothing_back(
    server: Server, fails: Any, lost: list[str]
) -> None:
    server.fails = fails
    problem, took = log(server)
    if lost == ["efficiency.beta"] and "layers.json" not in server.got:
        lost = [*lost, "layers.json"]  # MLflow looks up the run for its files too
        assert fails("runs/get", "")
    assert sorted(server.got) == sorted(name for name in EVERYTHING if name not in lost)
    assert problem is not None
    assert "got no answer within 3 seconds" in problem
    assert took < WAIT + 1


def test_many_epochs_that_all_get_errors_leave_the_table_its_way(server: Server) -> None:
    server.fails = lambda path, body: "val_aiq" in body
    log(server, n_epochs=100)
    assert server.got[-1] == "layers.json"


@pytest.mark.parametrize("delay", [0.9, 60.0])
def test_a_slow_server_costs_the_wait_once_not_with_every_fit(
    server: Server, delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.delay = delay
    took = []
    for _ in range(4):
        problem, seconds = log(server, n_epochs=20)
        took.append(seconds)
        assert problem is not None
        assert "no answer within 3 seconds" in problem
    assert took[0] < WAIT + 1
    # What arrives is waited for.
    arriving = 3 * 2 * delay if delay < WAIT / 2 else 0
    assert sum(took[1:]) < max(arriving, 2 * (WAIT / 4 + WAIT / 16 + WAIT / 20)) + 1
    # Once it answers soon, it has all of the wait again.
    server.delay = 0.0
    monkeypatch.setattr(mlflow_run, "END_WAIT_SECONDS", 60)
    deadline = time.monotonic() + 100
    while log(server)[0] is not None:
        assert time.monotonic() < deadline
    server.delay = 0.2
    assert log(server)[0] is None


def test_the_callbacks_of_a_fit_wait_once(server: Server) -> None:
    server.delay = 60.0
    runs = [MlflowRun.share(RunPlace(server.uri, server.run_id)) for _ in range(4)]
    begin = time.monotonic()
    for number, run in enumerate(runs):
        run.log_metrics({f"val_{number}_aiq": 0.5}, 0)
        run.log_table({"name": ["conv"]}, "efficiency/layers.json")
        assert "no answer within 3 seconds" in str(run.close())
    assert time.monotonic() - begin < WAIT + 6 * WAIT / 20 + 1


def test_many_fits_leave_few_threads_behind(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count() -> int:
        return sum(thread.name == "efficiency-to-mlflow" for thread in threading.enumerate())

    monkeypatch.setattr(mlflow_run, "_MOST_OF_ADDRESS", 3)
    server.delay = 60.0
    before = count()
    for _ in range(4):
        assert "no answer" in str(log(server)[0])
    assert count() <= before + 3


@pytest.mark.usefixtures("_patient")
def test_batches_are_as_long_as_mlflow_takes_them(server: Server) -> None:
    run = MlflowRun.share(RunPlace(server.uri, server.run_id))
    keys = [f"val_efficiency/{number}" for number in range(2001)]
    run.log_metrics(dict.fromkeys(keys, 0.5), 0)
    assert run.close() is None
    assert server.got == keys


def test_an_error_of_the_server_shows_no_password(server: Server) -> None:
    address = server.uri.replace("//", "//me:S3cret/T0p@")
    problem, _ = log(server, address=address)
    assert problem is not None
    assert "S3cret" not in problem
    assert "T0p" not in problem
    assert "S3cret" not in str(RunPlace(address, "1"))
