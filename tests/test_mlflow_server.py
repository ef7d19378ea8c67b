"""What a fit costs, and what is kept of it, when the MLflow server goes away."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import lightning_models
import mlflow
import pytest
from keras_models import train
from lightning_models import Classifier, pl
from mlflow_server import MlflowServer, mlflow_server
from mlflow_store import QUIET, curve, files, tracked_at

from tensorstate_callbacks import History, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback as KerasCallback
from tensorstate_callbacks.lightning import EfficiencyCallback as LightningCallback
from tensorstate_callbacks.loggers import mlflow_run
from tensorstate_callbacks.loggers.tracker import describe_error

pytestmark = [pytest.mark.filterwarnings(text) for text in [*lightning_models.QUIET, QUIET]]
FILES = ["efficiency/history.png", "efficiency/layers.json"]
WAIT = 2.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[mlflow.MlflowClient]:
    monkeypatch.chdir(tmp_path)
    assert mlflow_run.END_WAIT_SECONDS == 10
    monkeypatch.setattr(mlflow_run, "END_WAIT_SECONDS", WAIT)
    with tracked_at(server.uri) as client:
        yield client
        while mlflow.active_run():
            mlflow.end_run()


class At(keras.callbacks.Callback):
    """Does something as an epoch of Keras's begins."""

    def __init__(self, epoch: int | None, do: Any) -> None:
        super().__init__()
        self.at, self.do = epoch, do

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.at:
            self.do()


class AtEpoch(pl.Callback):  # type: ignore[misc]
    """Does something as an epoch of Lightning's begins."""

    def __init__(self, epoch: int, do: Any) -> None:
        self.at, self.do = epoch, do

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.at:
            self.do()


def check_kept(said: Any, folder: Path, history: History) -> None:
    """Check that there was one warning, and that the file it names holds the history."""
    (message,) = [
        text
        for text in (str(w.message) for w in said if w.category is TensorStateWarning)
        if not text.startswith("Coverage is below")
    ]
    (path,) = folder.glob("*.json")
    assert str(path) in message
    assert path.stat().st_mode & 0o777 == 0o600
    assert History.load(path) == history


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("framework", ["keras", "lightning"])
def test_a_server_that_hangs_costs_a_warning_and_no_history(
    framework: str, epoch: int, client: Any, server: Any, tmp_path: Path
) -> None:
    ours: Any = KerasCallback("conv_1") if framework == "keras" else LightningCallback()
    mlflow.start_run()
    begin = 0.0

    def hang() -> None:
        nonlocal begin
        server.hang()
        begin = time.monotonic()

    def fit() -> None:
        if framework == "keras":
            train([ours, At(epoch, hang)], epochs=3)
        else:
            lightning_models.fit(Classifier(), ours, AtEpoch(epoch, hang))

    try:
        with pytest.warns(TensorStateWarning, match="no answer within 2 seconds") as said:
            fit()
        # MLflow itself would have tried for minutes.
        assert time.monotonic() - begin < 60
    finally:
        server.go_on()
    assert len(ours.history) == 3
    check_kept(said, tmp_path, ours.history)


def test_a_users_own_logging_means_what_it_means_without_us(
    client: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server answers: however slow the machine is, nothing is to be left out.
    monkeypatch.setattr(mlflow_run, "END_WAIT_SECONDS", 60)

    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            mlflow.log_metrics({"mine": epoch / 2}, step=epoch, synchronous=False).wait()
            points = client.get_metric_history(mlflow.active_run().info.run_id, "mine")
            read.append(sorted((point.step, point.value) for point in points))

    read: list[Any] = []
    ours = KerasCallback("conv_1")
    with mlflow.start_run() as run:
        _, logs = train([ours, Own()], epochs=3)
    assert read == [[(0, 0.0)], [(0, 0.0), (1, 0.5)], [(0, 0.0), (1, 0.5), (2, 1.0)]]
    for key, values in logs.items():
        assert curve(client, run.info.run_id, key) == list(enumerate(values))
    assert files(client, run.info.run_id) == FILES
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("epoch", [None, 1])
def test_a_server_that_dies_costs_a_warning_and_no_history(
    epoch: int | None, client: Any, server: Any, tmp_path: Path
) -> None:
    ours = KerasCallback("conv_1")
    mlflow.start_run()
    if epoch is None:  # before the fit
        server.kill()
    # Where it dies in the middle of an answer, MLflow says so at once.
    try:
        with pytest.warns(TensorStateWarning, match="doesn't have everything of this fit") as said:
            _, logs = train([ours, At(epoch, server.kill)], epochs=3)
    finally:
        server.start()
    assert logs["val_aiq"] == [report.aiq for report in ours.history]
    assert len(ours.history) == 3
    check_kept(said, tmp_path, ours.history)


def test_a_server_that_hangs_does_not_keep_the_interpreter(tmp_path: Path) -> None:
    # It takes connections, and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = f"""
import time
from tensorstate_callbacks.loggers import mlflow_run
mlflow_run.END_WAIT_SECONDS = 1
place = mlflow_run.RunPlace("http://me:secret@127.0.0.1:{silent.getsockname()[1]}", "1")
run = mlflow_run.MlflowRun.share(place)
run.log_params({{"efficiency.beta": "2"}})
run.log_metrics({{"val_aiq": 0.5}}, 0)
print(place, run.close())
"""
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            timeout=100,
        )
    assert done.stdout.strip().endswith("no answer within 1 seconds")
    assert "secret" not in done.stdout
    # MLflow's own time to give up is 120 seconds a try.
    assert time.monotonic() - begin < 100


def test_an_error_tells_no_password() -> None:
    error = ConnectionError("API request to https://me:se@cret@host:5000/api failed")
    assert describe_error(error) == "ConnectionError: API request to https://host:5000/api failed"
