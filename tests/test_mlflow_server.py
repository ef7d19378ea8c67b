"""What becomes of a fit, and of its MLflow run, when the tracking server goes away."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import lightning_models
import mlflow
import pytest
from keras_models import train
from lightning_models import NAMESPACE, Classifier, pl
from mlflow_server import MlflowServer, mlflow_server
from mlflow_store import QUIET, curve, files, png, table, tracked_at

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback as KerasCallback
from tensorstate_callbacks.lightning import EfficiencyCallback as LightningCallback
from tensorstate_callbacks.loggers import mlflow_delivery, send
from tensorstate_callbacks.loggers.mlflow_saved import send_saved

pytestmark = [
    pytest.mark.filterwarnings(text)
    for text in [
        *lightning_models.QUIET,
        QUIET,
        "ignore:.*(MLflow|[Aa]utolog)",
        "ignore::FutureWarning",
    ]
]
FILES = ["efficiency/history.png", "efficiency/layers.json"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[mlflow.MlflowClient]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow_delivery, "_PROBE_SECONDS", 0.5)
    with tracked_at(server.uri) as client:
        yield client
        while mlflow.active_run():
            mlflow.end_run()


class At(keras.callbacks.Callback):
    """Does something as an epoch of Keras's begins."""

    def __init__(self, **doing: Any) -> None:
        super().__init__()
        self.doing = {int(key[1:]): do for key, do in doing.items()}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch in self.doing:
            self.doing[epoch]()


class AtEpoch(pl.Callback):  # type: ignore[misc]
    """Does something as an epoch of Lightning's begins."""

    def __init__(self, **doing: Any) -> None:
        self.doing = {int(key[1:]): do for key, do in doing.items()}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch in self.doing:
            self.doing[trainer.current_epoch]()


def points(history: Any, key: str, steps: Any) -> list[Any]:
    values = [report.scalars()[key] for report in history]
    return [(step, pytest.approx(value)) for step, value in zip(steps, values, strict=True)]


def no_trace(client: mlflow.MlflowClient) -> bool:
    return not {"log_batch", "log_batch_async"} & set(vars(client._tracking_client.store))


def said_once(said: Any) -> str:
    (message,) = [
        text
        for text in (str(w.message) for w in said if w.category is TensorStateWarning)
        if not text.startswith("Coverage is below")
    ]
    return message


def test_a_server_that_is_killed_and_back_before_the_end_misses_nothing(client, server, tmp_path):
    ours = KerasCallback("conv_1")
    with mlflow.start_run() as run, pytest.warns(TensorStateWarning, match="is away") as said:
        _, logs = train([ours, At(_1=server.kill, _3=server.start)], epochs=5)
    assert "Training goes on" in said_once(said)
    for key, values in logs.items():
        assert curve(client, run.info.run_id, key) == list(enumerate(values))
    assert logs["val_aiq"] == [report.aiq for report in ours.history]
    assert files(client, run.info.run_id) == FILES
    assert png(client, run.info.run_id) == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == []
    assert no_trace(client)


def test_what_a_dead_server_missed_is_in_a_file_that_completes_the_run(
    client, server, tmp_path, capsys
):
    run = mlflow.start_run()
    ours = KerasCallback("conv_1")
    with pytest.warns(TensorStateWarning, match="is away") as said:
        _, logs = train([ours, At(_1=server.kill)], epochs=3)
    (path,) = tmp_path.iterdir()
    assert str(path) in said_once(said)
    assert str(path) in capsys.readouterr().out
    messages = [json.loads(line) for line in path.read_text().splitlines()]
    assert {message["run_id"] for message in messages} == {run.info.run_id}
    unsent = {
        (metric["key"], metric["step"], metric["value"])
        for message in messages
        for metric in message.get("metrics", [])
    }
    assert unsent == {(key, step, x[step]) for key, x in logs.items() for step in (1, 2)}
    with pytest.raises(ConnectionError, match=f"stays in {path}"):
        send_saved(path)
    assert len(path.read_text().splitlines()) == len(messages) == 4
    assert send.main([str(path)]) == 1

    server.start()
    assert curve(client, run.info.run_id, "val_aiq") == [(0, logs["val_aiq"][0])]
    assert send.main([str(path)]) == 0
    assert "4 sent" in capsys.readouterr().out
    assert not path.exists()
    for key, values in logs.items():
        assert curve(client, run.info.run_id, key) == list(enumerate(values))
    assert len(table(client, run.info.run_id)) == 3
    assert files(client, run.info.run_id) == FILES


@pytest.mark.parametrize("way", ["callback", "tensorflow", "keras"])
def test_what_mlflow_logs_of_keras_by_itself_is_kept_too(way, client, server, tmp_path):
    ours = KerasCallback("conv_1")
    callbacks = [ours, At(_1=server.hang, _3=server.go_on)]
    options = {"log_models": False, "log_datasets": False}
    if way == "callback":
        callbacks.append(mlflow.keras.MlflowCallback())
    elif way == "tensorflow":
        # It uploads a checkpoint with each epoch that is better, and has a file beside it.
        mlflow.tensorflow.autolog(**options, checkpoint_monitor="loss", checkpoint_mode="min")
    else:
        mlflow.keras.autolog(**options)
    try:
        with mlflow.start_run() as run, pytest.warns(TensorStateWarning, match="is away") as said:
            _, logs = train(callbacks, epochs=5)
    finally:
        server.go_on()
        mlflow.tensorflow.autolog(disable=True)
        mlflow.keras.autolog(disable=True)
    said_once(said)
    for key, values in logs.items():
        assert curve(client, run.info.run_id, key) == list(enumerate(values))
    assert set(FILES) <= set(files(client, run.info.run_id))
    if way == "tensorflow":
        path = "checkpoints/latest_checkpoint_metrics.json"
        kept = json.loads(Path(client.download_artifacts(run.info.run_id, path)).read_text())
        best = logs["loss"].index(min(logs["loss"]))
        assert (kept["epoch"], kept["loss"]) == (best, logs["loss"][best])
        # What was kept in the outage takes the place of earlier files, as it would have without.
        assert len(client.list_artifacts(run.info.run_id, "checkpoints")) == 2
    assert not list(tmp_path.glob("*.jsonl"))
    assert no_trace(client)


@pytest.mark.parametrize("way", ["logger", "plain"])
def test_what_is_logged_of_lightning_is_kept_whoever_logs_it(way, client, server, tmp_path):
    ours, options, steps = LightningCallback(), {}, range(5)
    if way == "logger":
        logger = pl.loggers.MLFlowLogger("digits", tracking_uri=server.uri)
        options, run_id, steps = {"logger": logger}, logger.run_id, range(3, 20, 4)
    else:
        run_id = mlflow.start_run().info.run_id
    callbacks = [ours, AtEpoch(_1=server.hang, _3=server.go_on)]
    try:
        with pytest.warns(TensorStateWarning, match="is away") as said:
            lightning_models.fit(Classifier(), *callbacks, max_epochs=5, **options)
    finally:
        server.go_on()
    said_once(said)
    for key in ("val_aiq", "val_efficiency/net.0"):
        assert curve(client, run_id, key) == points(ours.history, key, steps)
    assert len(curve(client, run_id, "val_acc")) == 5
    assert files(client, run_id) == FILES
    assert not list(tmp_path.glob("*.jsonl"))
    assert no_trace(client)


@pytest.mark.skipif(NAMESPACE != "pytorch_lightning", reason="MLflow logs this name by itself")
def test_what_autologging_sends_of_lightning_in_the_end_is_kept(client, server, tmp_path):
    class Back(pl.Callback):
        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            server.go_on()

    # MLflow gathers metrics of several epochs, and sends what is left as training ends.
    mlflow.pytorch.autolog(log_models=False, log_datasets=False, checkpoint=False)
    ours = LightningCallback()
    try:
        with mlflow.start_run() as run:
            callbacks = [Back(), ours, AtEpoch(_2=server.hang)]
            lightning_models.fit(Classifier(), *callbacks, max_epochs=3)
    finally:
        server.go_on()
        mlflow.pytorch.autolog(disable=True)
    run_id = run.info.run_id
    assert curve(client, run_id, "val_aiq") == points(ours.history, "val_aiq", range(3))
    assert set(FILES) <= set(files(client, run_id))
    assert not list(tmp_path.glob("*.jsonl"))
    assert no_trace(client)


def test_checkpoints_that_a_logger_uploads_wait_for_the_server(client, server, tmp_path):
    logger = pl.loggers.MLFlowLogger("digits", tracking_uri=server.uri, log_model="all")
    keep = pl.callbacks.ModelCheckpoint(
        tmp_path / "kept", "{epoch}", monitor="val_aiq", mode="max", save_top_k=-1
    )
    callbacks = [LightningCallback(), keep, AtEpoch(_1=server.hang, _2=server.go_on)]
    options = {"logger": logger, "enable_checkpointing": True}
    try:
        with pytest.warns(TensorStateWarning, match="is away"):
            lightning_models.fit(Classifier(), *callbacks, max_epochs=3, **options)
    finally:
        server.go_on()
    uploaded = {info.path for info in client.list_artifacts(logger.run_id)}
    assert {f"epoch={epoch}" for epoch in range(3)} < uploaded
    assert "_scan_and_log_checkpoints" not in vars(logger)


def test_lightning_ends_the_run_in_the_file_where_the_server_stays_away(client, server, tmp_path):
    logger = pl.loggers.MLFlowLogger("digits", tracking_uri=server.uri)
    run_id, ours = logger.run_id, LightningCallback()
    try:
        with pytest.warns(TensorStateWarning, match="is away") as said:
            lightning_models.fit(Classifier(), ours, AtEpoch(_1=server.hang), logger=logger)
    finally:
        server.go_on()
    said_once(said)
    assert "finalize" not in vars(logger)
    assert client.get_run(run_id).info.status == "RUNNING"
    (path,) = tmp_path.glob("*.jsonl")
    n_lines = len(path.read_text().splitlines())
    assert send_saved(path) == n_lines
    assert curve(client, run_id, "val_aiq") == points(ours.history, "val_aiq", (3, 7, 11))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert files(client, run_id) == FILES
