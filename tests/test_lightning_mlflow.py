"""What an MLflow run holds after a fit with Lightning, whoever logs to it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from lightning_models import NAMESPACE, QUIET, Classifier, Curves, fit, pl
from mlflow_store import QUIET as MLFLOW_QUIET
from mlflow_store import Counted, check_table, curve, files, png, sqlite_store, table

from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [pytest.mark.filterwarnings(text) for text in [*QUIET, MLFLOW_QUIET]]
KEYS = ["val_aiq", "val_efficiency", "val_efficiency/net.0"]
FILES = ["efficiency/history.png", "efficiency/layers.json"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.MlflowClient]:
    with sqlite_store(tmp_path_factory.mktemp("mlflow")) as client:
        yield client


@pytest.fixture
def client(
    store: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> mlflow.MlflowClient:
    monkeypatch.chdir(tmp_path)
    mlflow.set_experiment("digits")
    return store


def expected(reports: Any, key: str, steps: Any) -> list[Any]:
    values = [report.scalars()[key] for report in reports]
    return [(step, pytest.approx(value)) for step, value in zip(steps, values, strict=True)]


def test_mlflow_logger_logs_the_metrics_and_ours_the_rest(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = pl.loggers.MLFlowLogger("digits", tracking_uri=client.tracking_uri)
    run_id, ours = logger.run_id, EfficiencyCallback(beta=3)
    counted = Counted(monkeypatch, client)
    fit(Classifier(), ours, logger=logger)
    for key in KEYS:
        assert curve(client, run_id, key) == expected(ours.history, key, [3, 7, 11])
    assert sum("val_aiq" in keys for keys in counted.batches) == 3
    params = client.get_run(run_id).data.params
    assert (params["efficiency.beta"], params["efficiency.layers"]) == ("3", "net.0, net.2")
    assert params["efficiency.version.torch"] == torch.__version__
    assert params[f"efficiency.version.{NAMESPACE}"] == sys.modules[NAMESPACE].__version__
    assert files(client, run_id) == FILES
    check_table(client, run_id, ours.history)
    assert png(client, run_id) == b"\x89PNG\r\n\x1a\n"
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_plain_run_gets_all_metrics_of_an_epoch_in_one_batch(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TrainLoss(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.seen.append(trainer.callback_metrics["train_loss"].item())

    counted = Counted(monkeypatch, client)
    ours, curves, loss = EfficiencyCallback(), Curves(), TrainLoss()
    with mlflow.start_run() as run:
        fit(Classifier(), ours, curves, loss)
    run_id = run.info.run_id
    for key in KEYS:
        assert curve(client, run_id, key) == expected(ours.history, key, range(3))
    logged = [value for _, value in curve(client, run_id, "val_acc")]
    assert logged == pytest.approx(curves.of("val_acc"))
    # Of the epoch itself, not of the one before.
    assert [value for _, value in curve(client, run_id, "train_loss")] == loss.seen
    assert len(counted.batches) == 3
    assert files(client, run_id) == FILES


@pytest.mark.skipif(NAMESPACE != "pytorch_lightning", reason="MLflow logs this name by itself")
@pytest.mark.filterwarnings("ignore:.*(MLflow|[Aa]utolog)", "ignore::FutureWarning")
def test_autologging_logs_the_metrics_and_ours_the_rest(client: mlflow.MlflowClient) -> None:
    mlflow.pytorch.autolog(log_models=False, log_datasets=False, checkpoint=False)
    try:
        ours = EfficiencyCallback()
        with mlflow.start_run() as run:
            fit(Classifier(), ours)
    finally:
        mlflow.pytorch.autolog(disable=True)
    for key in KEYS:
        assert curve(client, run.info.run_id, key) == expected(ours.history, key, range(3))
    assert set(FILES) <= set(files(client, run.info.run_id))


def test_a_fit_that_is_broken_off_leaves_what_there_was(client: mlflow.MlflowClient) -> None:
    class Stops(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise RuntimeError("enough")

    ours = EfficiencyCallback()
    with mlflow.start_run() as run, pytest.raises(RuntimeError, match="enough"):
        fit(Classifier(), ours, Stops())
    assert len(ours.history) == 2
    for key in KEYS:
        assert curve(client, run.info.run_id, key) == expected(ours.history, key, range(2))
    assert len(table(client, run.info.run_id)) == 4


def test_an_epoch_is_told_once_however_often_it_is_validated(client: mlflow.MlflowClient) -> None:
    ours = EfficiencyCallback()
    with mlflow.start_run() as run:
        fit(Classifier(), ours, max_epochs=2, val_check_interval=0.5)
    assert len(ours.history) == 4
    logged = curve(client, run.info.run_id, "val_aiq")
    assert logged == expected(ours.history[1::2], "val_aiq", range(2))
    assert len(table(client, run.info.run_id)) == 8
