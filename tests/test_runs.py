"""What the logs of finished runs say: keys, steps and epochs, runs that were begun again."""

import json
import math
from pathlib import Path

import pytest
from reports import history, report

from tensorstate_callbacks import History
from tensorstate_callbacks.errors import RunError
from tensorstate_callbacks.runs.finished_run import Point, choose_lead, find_evaluations, find_leads
from tensorstate_callbacks.runs.mlflow import mlflow_run_id, read_mlflow
from tensorstate_callbacks.runs.tensorboard import read_tensorboard


def series(*values, first=0, start=0.0):
    """Values at the steps from `first`, one a second from `start`."""
    return [Point(first + i, start + i, value) for i, value in enumerate(values)]


def test_what_stands_before_the_names_is_found_the_likeliest_first():
    keys = ["loss", "test_aiq", "val_x_aiq", "val_efficiency", "val_efficiency/a_aiq", "my aiq"]
    assert find_leads(keys) == ["val_", "test_", "val_x_"]
    assert find_leads(["aiq", "efficiency/a"]) == [""]
    assert choose_lead(keys, None, "the run") == "val_"
    assert choose_lead(keys, "test_", "the run") == "test_"
    with pytest.raises(RunError, match=r"the run has no x_efficiency .* 'val_', 'test_', 'val_x_'"):
        choose_lead(keys, "x_", "the run")
    with pytest.raises(RunError, match=r"no key of ours.*it has acc, loss\. Was an Efficiency"):
        choose_lead(["loss", "acc"], None, "the run")


def test_evaluations_of_scalars():
    scalars = {
        "val_aiq": series(0.1, 0.2),
        "val_efficiency": series(0.3, 0.4),
        "val_efficiency/block/conv": series(0.5, 0.6),
        "val_distinct/block/conv": series(7.0, 8.0),
        "val_ceiling/block/conv": series(0.9, 0.9),
        "val_efficiency/late": series(0.7, first=1, start=1.0),
        "val_accuracy": series(0.8, 0.85),
        "val_loss/conv": series(9.0, 9.0),
        "val_x_efficiency/fc": series(0.1, 0.1),
    }
    first, second = find_evaluations(scalars, "val_")
    assert (first.epoch, first.accuracy, first.efficiency, first.aiq) == (0, 0.8, 0.3, 0.1)
    assert (second.epoch, second.accuracy, second.efficiency, second.aiq) == (1, 0.85, 0.4, 0.2)
    assert list(first.layers) == ["block/conv"]
    conv = first.layers["block/conv"]
    assert conv.metrics() == {"efficiency": 0.5, "n_distinct": 7.0, "ceiling": 0.9}
    assert (conv.efficiency, conv.ceiling) == (0.5, 0.9)
    assert second.layers["late"].efficiency == 0.7
    assert second.layers["late"].ceiling is None


def test_the_scalar_epoch_tells_the_epoch_where_steps_are_training_steps():
    scalars = {
        "val_efficiency": [Point(9, 1.0, 0.3), Point(19, 2.0, 0.4), Point(29, 3.0, 0.5)],
        "epoch": [Point(9, 1.0, 0.0), Point(19, 2.0, 1.0), Point(20, 2.1, 2.0)],
    }
    assert [one.epoch for one in find_evaluations(scalars, "val_")] == [0, 1, None]


def test_a_run_that_was_begun_again_counts_from_there_for_the_last_time():
    again = [*series(0.1, 0.2, 0.3), *series(0.7, first=1, start=10.0)]
    found = find_evaluations({"val_efficiency": list(reversed(again))}, "val_")
    assert [(one.epoch, one.efficiency) for one in found] == [(0, 0.1), (1, 0.7)]


def test_accuracy_is_under_a_usual_name_or_the_one_given():
    scalars = {
        "val_x_efficiency": series(0.3),
        "val_acc": series(0.8),
        "val_f1": series(0.6),
        "test_accuracy": series(0.1),
    }
    assert find_evaluations(scalars, "val_x_")[0].accuracy == 0.8
    assert find_evaluations(scalars, "val_x_", "val_f1")[0].accuracy == 0.6
    assert find_evaluations({"epoch_x_efficiency": series(0.3)}, "epoch_x_")[0].accuracy is None
    with pytest.raises(RunError, match=r"no accuracy 'f1'; its keys are test_accuracy, val_acc"):
        find_evaluations(scalars, "val_x_", "f1")


def write_run(folder, scalars):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for tag, points in scalars.items():
        for point in points:
            value = summary_pb2.Summary.Value(tag=tag, simple_value=point.value)
            event = event_pb2.Event(
                step=point.step, wall_time=point.time, summary=summary_pb2.Summary(value=[value])
            )
            writer.add_event(event)
    writer.close()


def test_the_run_of_a_log_folder_is_the_only_one_with_keys_of_ours(tmp_path):
    write_run(tmp_path / "a" / "validation", {"epoch_efficiency": series(0.25, start=5.0)})
    write_run(tmp_path / "a" / "train", {"epoch_loss": series(1.0, start=99.0)})
    for folder, name in ((tmp_path, "a/validation"), (tmp_path / "a", "validation")):
        run = read_tensorboard(folder)
        assert run.evaluations[0].efficiency == 0.25
        assert run.source == f"run {name} of {folder}, keys epoch_aiq, epoch_efficiency..."
    with pytest.raises(
        RunError, match=r"run \. of .*train' has no key of ours.* it has epoch_loss\."
    ):
        read_tensorboard(tmp_path / "a" / "train")


def test_several_runs_of_a_log_folder_are_listed_as_paths_to_give(tmp_path):
    write_run(tmp_path / "a" / "validation", {"epoch_efficiency": series(0.25, start=5.0)})
    write_run(tmp_path / "a" / "train", {"epoch_loss": series(1.0, start=99.0)})
    write_run(tmp_path / "b", {"val_efficiency": series(0.5, start=4.0)})
    with pytest.raises(RunError, match="holds 2 runs; give one of") as error:
        read_tensorboard(tmp_path)
    first, second = (line.strip() for line in str(error.value).splitlines()[1:])
    assert (first, second) == (str(tmp_path / "a" / "validation"), str(tmp_path / "b"))
    assert read_tensorboard(Path(first)).evaluations[0].efficiency == 0.25
    assert read_tensorboard(Path(second)).evaluations[0].efficiency == 0.5


def test_log_folders_without_anything_of_ours(tmp_path):
    with pytest.raises(RunError, match=r"no event file of TensorBoard in"):
        read_tensorboard(tmp_path)
    write_run(tmp_path / "train", {"epoch_loss": series(1.0)})
    with pytest.raises(RunError, match=r"run train of .* has no key of ours.*it has epoch_loss"):
        read_tensorboard(tmp_path)


def test_ids_of_mlflow_runs():
    run = "0123456789abcdef" * 2
    assert mlflow_run_id(f"runs:/{run}") == mlflow_run_id(f"runs:/{run}/") == run
    for text in (run, f"runs:/{run[1:]}", f"runs:/{run.upper()}", f"models:/{run}", "runs"):
        assert mlflow_run_id(text) is None


def logged_run(client, reports):
    experiment = client.get_experiment_by_name("tests")
    run = client.create_run(experiment.experiment_id, run_name="my run")
    for one in reports:
        for key, value in one.scalars().items():
            client.log_metric(run.info.run_id, key, value, step=one.epoch)
        client.log_metric(run.info.run_id, "val_acc", one.accuracy, step=one.epoch)
    return run.info.run_id


@pytest.mark.filterwarnings("ignore::Warning")  # MLflow's own, of its database
def test_an_mlflow_run_has_what_its_table_holds(mlflow_client, tmp_path):
    reports = history(names=("block[0]", "fc"))
    run_id = logged_run(mlflow_client, reports)
    uri = mlflow_client.tracking_uri
    bare = read_mlflow(run_id, uri)
    assert bare.source.startswith(f"run my run ({run_id}) at {uri}, keys val_aiq")
    assert [one.aiq for one in bare.evaluations] == [one.aiq for one in reports]
    assert bare.evaluations[0].layers["block_0_"].metrics() == {"efficiency": 1.75 / 4}
    # An earlier fit's table, and the one of this fit without its last evaluation.
    earlier = History([report(("old",), accuracy=0.1, epoch=0)])
    rows = [*earlier.to_dicts(), *reports[0].to_dicts(), *reports[1].to_dicts()]
    columns = list(rows[0])
    table = {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}
    file = tmp_path / "layers.json"
    file.write_text(json.dumps(table))
    mlflow_client.log_artifact(run_id, str(file), "efficiency")
    mlflow_client.log_param(run_id, "efficiency.beta", "2")
    full = read_mlflow(run_id, uri)
    assert [list(one.layers) for one in full.evaluations] == [
        *[["block[0]", "fc"]] * 2,
        ["block_0_", "fc"],
    ]
    layer = full.evaluations[1].layers["block[0]"]
    assert (layer.ceiling, layer.values["n_states"], layer.values["coverage"]) == (0.75, 8, 0.75)
    assert math.isclose(full.evaluations[1].accuracy, 0.9)
    assert full.source.endswith("keys val_aiq, val_efficiency..., beta 2")


@pytest.mark.filterwarnings("ignore::Warning")
def test_mlflow_runs_that_are_not_there(mlflow_client, tmp_path):
    run_id = "0" * 32
    with pytest.raises(RunError, match=rf"can't read run {run_id} at .*--tracking-uri"):
        read_mlflow(run_id, mlflow_client.tracking_uri)
    with pytest.raises(RunError, match=r"no database '.*none.db'.*--tracking-uri"):
        read_mlflow(run_id, f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::Warning")
def test_passwords_of_tracking_servers_are_not_shown(monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    told = []

    class Client:
        def __init__(self, tracking_uri):
            told.append(tracking_uri)

        def get_run(self, run_id):
            raise mlflow.exceptions.MlflowException("not there")

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    with pytest.raises(RunError, match=r"at https://mlflow\.example\.org: not there") as error:
        read_mlflow("0" * 32, "https://me:secret@mlflow.example.org")
    assert "secret" not in str(error.value)
    assert told == ["https://me:secret@mlflow.example.org"]
