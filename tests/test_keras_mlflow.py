"""What an MLflow run holds after a fit with Keras, whoever logs to it."""

import subprocess
import sys
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from keras_models import X_VAL, Y_VAL, once, train
from mlflow_store import QUIET, Counted, check_table, curve, files, png, sqlite_store, table

import tensorstate_callbacks
from tensorstate_callbacks import History, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback

pytestmark = pytest.mark.filterwarnings(QUIET)
KEYS = ["val_aiq", "val_efficiency", "val_efficiency/conv_1"]
PNG = b"\x89PNG\r\n\x1a\n"
# MLflow's own, of what it finds installed.
AUTOLOG_QUIET = pytest.mark.filterwarnings(
    "ignore:.*(MLflow|autolog|mlflow)", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with sqlite_store(tmp_path_factory.mktemp("mlflow")) as client:
        yield client


@pytest.fixture
def client(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow.set_experiment("digits")
    yield store
    while mlflow.active_run():
        mlflow.end_run()


def expected(reports, key):
    return [(report.epoch, report.scalars()[key]) for report in reports]


def test_a_plain_run_gets_metrics_parameters_table_and_figure(client, monkeypatch):
    counted = Counted(monkeypatch, client)
    ours = EfficiencyCallback("conv_1", beta=3)
    with mlflow.start_run() as run:
        _, logs = train([ours], epochs=3)
    run_id = run.info.run_id
    for key in KEYS:
        assert curve(client, run_id, key) == expected(ours.history, key)
    # Everything that Keras logged with them, in one batch per epoch.
    for key, values in logs.items():
        assert curve(client, run_id, key) == list(enumerate(values))
    assert [set(keys) for keys in counted.batches] == [set(logs)] * 3

    params = client.get_run(run_id).data.params
    backend = keras.backend.backend()
    assert {key: params[f"efficiency.{key}"] for key in ("beta", "layers", "attach_to")} == {
        "beta": "3",
        "layers": "conv_1",
        "attach_to": "conv_1",
    }
    versions = {
        "tensorstate_callbacks": tensorstate_callbacks.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        backend: sys.modules[backend].__version__,
    }
    assert {name: params[f"efficiency.version.{name}"] for name in versions} == versions

    assert files(client, run_id) == ["efficiency/history.png", "efficiency/layers.json"]
    check_table(client, run_id, ours.history)
    assert png(client, run_id) == PNG


def test_mlflows_callback_logs_the_metrics_and_ours_the_rest(client):
    ours = EfficiencyCallback("conv_1")
    with mlflow.start_run() as run:
        train([ours, mlflow.keras.MlflowCallback()], epochs=2)
    mlflow.flush_async_logging()
    for key in KEYS:
        assert curve(client, run.info.run_id, key) == expected(ours.history, key)
    assert files(client, run.info.run_id) == ["efficiency/history.png", "efficiency/layers.json"]
    assert client.get_run(run.info.run_id).data.params["efficiency.beta"] == "2"


@once
def test_mlflows_callback_may_start_the_run_itself(client):
    ours = EfficiencyCallback("conv_1")
    train([ours, mlflow.keras.MlflowCallback()], epochs=1)
    run_id = mlflow.active_run().info.run_id
    mlflow.end_run()
    assert curve(client, run_id, "val_aiq") == expected(ours.history, "val_aiq")
    assert files(client, run_id) == ["efficiency/history.png", "efficiency/layers.json"]


@AUTOLOG_QUIET
@pytest.mark.parametrize("flavor", ["tensorflow", "keras"])
@once
def test_autologging_logs_the_metrics_and_ours_the_rest(client, flavor):
    if flavor == "tensorflow" and keras.backend.backend() != "tensorflow":
        pytest.skip("mlflow.tensorflow.autolog is for Keras on TensorFlow")
    module = getattr(mlflow, flavor)
    module.autolog(log_models=False, log_datasets=False)
    try:
        ours = EfficiencyCallback("conv_1")
        with mlflow.start_run() as run:
            train([ours], epochs=2)
    finally:
        module.autolog(disable=True)
    mlflow.flush_async_logging()
    for key in KEYS:
        assert curve(client, run.info.run_id, key) == expected(ours.history, key)
    assert files(client, run.info.run_id) == ["efficiency/history.png", "efficiency/layers.json"]
    assert png(client, run.info.run_id) == PNG


@once
def test_two_callbacks_share_the_batches_and_have_names_of_their_own(client, monkeypatch):
    counted = Counted(monkeypatch, client)
    first, second = EfficiencyCallback("conv_1"), EfficiencyCallback("conv_1", beta=1, prefix="x_")
    with mlflow.start_run() as run:
        train([first, second], epochs=2)
    run_id = run.info.run_id
    assert len(counted.batches) == 2
    assert curve(client, run_id, "val_aiq") == [(r.epoch, r.aiq) for r in first.history]
    assert curve(client, run_id, "val_x_aiq") == [(r.epoch, r.aiq) for r in second.history]
    params = client.get_run(run_id).data.params
    assert (params["efficiency.beta"], params["efficiency.x_beta"]) == ("2", "1")
    names = ["history.png", "layers.json", "x_history.png", "x_layers.json"]
    assert files(client, run_id) == [f"efficiency/{name}" for name in names]


@once
def test_a_second_fit_in_a_run_may_have_other_settings(client):
    with mlflow.start_run() as run:
        train([EfficiencyCallback("conv_1")], epochs=1)
        for _ in range(2):
            train([EfficiencyCallback("conv_1", beta=5)], epochs=1)
    run_id = run.info.run_id
    params = client.get_run(run_id).data.params
    betas = {key: value for key, value in params.items() if "beta" in key}
    assert betas == {"efficiency.beta": "2", "efficiency.beta.fit_2": "5"}
    assert "efficiency/layers_3.json" in files(client, run_id)
    assert len(table(client, run_id, "layers_3.json")) == 1


@once
def test_a_fit_that_is_broken_off_leaves_what_there_was(client):
    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise RuntimeError("enough")

    ours = EfficiencyCallback("conv_1")
    with mlflow.start_run() as run, pytest.raises(RuntimeError, match="enough"):
        train([Stops(), ours])
    # The second epoch's end was told to the first callback only.
    for key in KEYS:
        assert curve(client, run.info.run_id, key) == expected(ours.history, key)
    assert len(ours.history) == len(table(client, run.info.run_id)) == 2


@once
def test_a_missing_matplotlib_costs_the_figure_only(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ours = EfficiencyCallback("conv_1")
    with (
        mlflow.start_run() as run,
        pytest.warns(TensorStateWarning, match=r"no figure.*tensorstate_callbacks\[plot\]") as said,
    ):
        train([ours], epochs=1)
    assert [w.category for w in said].count(TensorStateWarning) == 1
    assert files(client, run.info.run_id) == ["efficiency/layers.json"]


@once
def test_what_mlflow_refuses_costs_one_warning_and_the_history_is_in_a_file(client, tmp_path):
    ours = EfficiencyCallback("conv_1")
    run = mlflow.start_run()
    client.delete_run(run.info.run_id)
    with pytest.warns(TensorStateWarning, match="must be in the 'active' state") as said:
        train([ours], epochs=2)
    client.restore_run(run.info.run_id)
    (message,) = [str(w.message) for w in said if w.category is TensorStateWarning]
    (path,) = tmp_path.glob("*.json")
    assert str(path) in message
    assert path.stat().st_mode & 0o777 == 0o600
    assert History.load(path) == ours.history
    assert len(ours.history) == 2


@once
def test_nothing_is_logged_where_it_is_not_wanted(client):
    with mlflow.start_run() as run:
        train([EfficiencyCallback("conv_1", log_extras=None)], epochs=1)
        model, _ = train([], epochs=1)
        model.evaluate(X_VAL, Y_VAL, callbacks=[EfficiencyCallback("conv_1")], verbose=0)
    data = client.get_run(run.info.run_id).data
    assert (data.metrics, data.params) == ({}, {})


@once
def test_without_a_run_mlflow_is_not_imported(tmp_path):
    code = """
import sys
from keras_models import train
from tensorstate_callbacks.keras import EfficiencyCallback
callback = EfficiencyCallback("conv_1")
train([callback], epochs=1)
print(len(callback.history), "mlflow" in sys.modules)
"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}){code}",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["1", "False"]
    assert list(tmp_path.iterdir()) == []
