"""What the Keras callback adds to the runs of keras.callbacks.TensorBoard."""

import re
import sys

import keras
import numpy as np
import pytest
from board_folder import (
    LAYERS,
    NETWORK,
    BoardFolder,
    drawn,
    event_files,
    layout_of,
    layouts,
    pictures,
    read_run,
)
from keras_models import X_VAL, Y_VAL, once, train

from tensorstate_callbacks import MissingExtraError, TensorStateWarning
from tensorstate_callbacks.display.history_plots import plot_heat_map
from tensorstate_callbacks.display.plots import plot_states
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.trackers import KerasBoardRun
from tensorstate_callbacks.loggers import tensorboard
from tensorstate_callbacks.loggers.tensorboard import read_layout

# What the log says of the few samples here is not what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Coverage is below")


def board(folder, **options):
    return keras.callbacks.TensorBoard(folder, write_graph=False, **options)


def logged(logs, name, places=5):
    return pytest.approx(logs[name], abs=10**-places)


def write_layout(folder, layout):
    """Write a layout as a user does it, with TensorFlow's own writer."""
    import tensorflow as tf
    from tensorboard.plugins.custom_scalar import summary

    with tf.summary.create_file_writer(str(folder)).as_default():
        content = summary.pb(layout).SerializeToString()
        tf.summary.experimental.write_raw_pb(content, step=0)


def test_one_chart_lays_efficiency_over_accuracy_and_one_the_layers(tmp_path):
    _, logs = train([EfficiencyCallback(), board(tmp_path)])
    shown = BoardFolder(tmp_path)
    assert shown.layout() == {
        "Efficiency": {
            NETWORK: ["epoch_efficiency$", "epoch_aiq$", "epoch_accuracy$"],
            LAYERS: ["epoch_efficiency/.+"],
        }
    }
    assert shown.curves("Efficiency", NETWORK) == {
        ("train", "epoch_accuracy"): logged(logs, "accuracy"),
        ("validation", "epoch_accuracy"): logged(logs, "val_accuracy"),
        ("validation", "epoch_efficiency"): logged(logs, "val_efficiency"),
        ("validation", "epoch_aiq"): logged(logs, "val_aiq"),
    }
    assert shown.curves("Efficiency", LAYERS) == {
        ("validation", f"epoch_efficiency/{layer}"): logged(logs, f"val_efficiency/{layer}")
        for layer in ("conv_1", "conv_2", "fc")
    }


@pytest.mark.parametrize("order", [1, -1])
@once
def test_the_layout_is_written_once_and_into_the_callbacks_own_file(tmp_path, order):
    train([EfficiencyCallback(), board(tmp_path)][::order])
    assert len(layouts(tmp_path / "validation")) == 1
    assert event_files(tmp_path) == {"train": 1, "validation": 1}


@once
def test_the_runs_files_are_not_read_again_with_each_epoch(tmp_path, monkeypatch):
    read = []

    def reads(folder):
        read.append(folder)
        return read_layout(folder)

    monkeypatch.setattr(tensorboard, "read_layout", reads)
    train([EfficiencyCallback(), board(tmp_path)], epochs=5)
    # As it is laid out, and at the end.
    assert read == [str(tmp_path / "validation")] * 2


def test_what_keras_writes_stays_the_same(tmp_path):
    written = {}
    for name, extras in [("with", "charts"), ("without", None)]:
        folder = tmp_path / name
        train([EfficiencyCallback(log_extras=extras), board(folder)], epochs=2)
        written[name] = {run: read_run(folder / run) for run in ("train", "validation")}
    assert len(written["with"]["validation"].pop("custom_scalars__config__")) == 1
    assert written["with"] == written["without"]
    assert len(written["with"]["validation"]["epoch_efficiency/conv_1"]) == 2


@once
def test_several_callbacks_share_the_layout(tmp_path):
    callbacks = [EfficiencyCallback(), EfficiencyCallback("Conv2D", prefix="a.b/", beta=1)]
    _, logs = train([*callbacks, board(tmp_path)])
    shown = BoardFolder(tmp_path)
    assert list(shown.layout()) == ["Efficiency", "Efficiency (a.b/)"]
    assert event_files(tmp_path) == {"train": 1, "validation": 1}
    assert shown.layout()["Efficiency (a.b/)"][NETWORK][0] == r"epoch_a\.b/efficiency$"
    curves = shown.curves("Efficiency (a.b/)", NETWORK)
    assert curves["validation", "epoch_a.b/aiq"] == logged(logs, "val_a.b/aiq")
    assert list(shown.curves("Efficiency (a.b/)", LAYERS)) == [
        ("validation", "epoch_a.b/efficiency/conv_1"),
        ("validation", "epoch_a.b/efficiency/conv_2"),
    ]
    assert len(shown.curves("Efficiency", LAYERS)) == 3


@once
def test_each_figure_of_the_layers_has_a_chart(tmp_path):
    metrics = ("coverage", "max_share")
    _, logs = train([EfficiencyCallback("conv_1", layer_metrics=metrics), board(tmp_path)])
    shown = BoardFolder(tmp_path)
    titles = [NETWORK, "Coverage of the layers", "Max share of the layers"]
    assert list(shown.layout()["Efficiency"]) == titles
    tag = "epoch_max_share/conv_1"
    assert shown.curves("Efficiency", titles[2]) == {
        ("validation", tag): logged(logs, "val_max_share/conv_1")
    }


@once
def test_without_metrics_of_the_layers_there_is_no_chart_of_them(tmp_path):
    train([EfficiencyCallback(layer_metrics=False), board(tmp_path)])
    assert list(BoardFolder(tmp_path).layout()["Efficiency"]) == [NETWORK]


@pytest.mark.parametrize(
    ("accuracy", "tags"),
    [
        ("val_accuracy", ["epoch_accuracy$"]),
        ("accuracy", ["epoch_accuracy$"]),
        # Keras logs what it gives nowhere.
        (lambda logs: logs["accuracy"], []),
    ],
)
@once
def test_the_accuracy_is_drawn_under_the_key_it_has(tmp_path, accuracy, tags):
    train([EfficiencyCallback(accuracy=accuracy), board(tmp_path)], epochs=1)
    layout = BoardFolder(tmp_path).layout()
    assert layout["Efficiency"][NETWORK] == ["epoch_efficiency$", "epoch_aiq$", *tags]


@pytest.mark.parametrize("name", ["run", "lr=[0.1] *"])
@once
def test_a_layout_of_the_users_own_is_kept(tmp_path, name):
    own = {"Mine": {"Loss": ["epoch_loss"]}, "Efficiency": {"Other": ["x"], LAYERS: ["old"]}}
    write_layout(tmp_path / name / "validation", layout_of(own))
    train([EfficiencyCallback(), board(tmp_path / name)], epochs=1)
    assert BoardFolder(tmp_path / name).layout() == {
        "Mine": {"Loss": ["epoch_loss"]},
        "Efficiency": {
            NETWORK: ["epoch_efficiency$", "epoch_aiq$", "epoch_accuracy$"],
            LAYERS: ["epoch_efficiency/.+"],
            "Other": ["x"],
        },
    }


@once
def test_a_layout_that_is_written_later_does_not_hide_ours(tmp_path):
    class WritesLate(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                write_layout(tmp_path / "validation", layout_of({"Mine": {"Loss": ["epoch_loss"]}}))

    train([EfficiencyCallback(), board(tmp_path), WritesLate()])
    assert list(BoardFolder(tmp_path).layout()) == ["Mine", "Efficiency"]


@once
def test_a_second_fit_in_the_folder_finds_its_charts_there(tmp_path):
    for prefix in ("", "", "x_"):
        train([EfficiencyCallback(prefix=prefix), board(tmp_path)], epochs=1)
    written = layouts(tmp_path / "validation")
    assert [[c.title for c in layout.category] for layout in written] == [
        ["Efficiency"],
        ["Efficiency", "Efficiency (x_)"],
    ]
    assert list(BoardFolder(tmp_path).layout()) == ["Efficiency", "Efficiency (x_)"]


@once
def test_each_board_of_a_fit_is_laid_out(tmp_path):
    train([EfficiencyCallback(), board(tmp_path / "a"), board(str(tmp_path / "b"))], epochs=1)
    assert [list(BoardFolder(tmp_path / run).layout()) for run in "ab"] == [["Efficiency"]] * 2


@pytest.mark.parametrize("update_freq", [1, 1000])
def test_the_layout_does_not_wait_for_a_batch_that_is_written(tmp_path, update_freq):
    train([EfficiencyCallback(), board(tmp_path, update_freq=update_freq)], epochs=1)
    assert list(BoardFolder(tmp_path).layout()) == ["Efficiency"]
    # Not mended in a file of its own at the end.
    assert event_files(tmp_path) == {"train": 1, "validation": 1}


@once
def test_without_tracking_there_are_scalars_only(tmp_path):
    train([EfficiencyCallback(log_extras=None), board(tmp_path)], epochs=1)
    assert BoardFolder(tmp_path).layout() == {}
    assert "epoch_aiq" in read_run(tmp_path / "validation")


@once
def test_without_a_board_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train([EfficiencyCallback()], epochs=1)
    assert list(tmp_path.iterdir()) == []


@once
def test_an_epoch_that_is_not_recorded_lays_nothing_out(tmp_path):
    train([EfficiencyCallback(every_n_epochs=3), board(tmp_path)], epochs=2)
    assert BoardFolder(tmp_path).layout() == {}


@once
def test_an_evaluate_outside_of_fit_writes_no_layout(tmp_path):
    callback = EfficiencyCallback()
    model, _ = train([callback], epochs=1)
    model.evaluate(X_VAL, Y_VAL, callbacks=[callback, board(tmp_path)], verbose=0)
    assert BoardFolder(tmp_path).layout() == {}


@once
def test_what_cannot_be_written_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    def fails(self, layout):
        raise OSError("No space left on device")

    monkeypatch.setattr(KerasBoardRun, "write_layout", fails)
    folder = re.escape(str(tmp_path / "validation"))
    with pytest.warns(TensorStateWarning, match=f"{folder} gets no more.*No space left") as caught:
        _, logs = train([EfficiencyCallback(), board(tmp_path)], epochs=3)
    assert len([w for w in caught if "No space" in str(w.message)]) == 1
    assert len(logs["val_aiq"]) == 3


@once
def test_a_missing_tensorboard_is_said_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.plugins.custom_scalar.layout_pb2", None)
    with pytest.warns(TensorStateWarning, match=r"tensorstate_callbacks\[tensorboard\]"):
        _, logs = train([EfficiencyCallback(), board(tmp_path)], epochs=1)
    assert len(logs["val_aiq"]) == 1
    assert layouts(tmp_path / "validation") == []


@once
def test_pictures_are_drawn_with_each_recorded_epoch(tmp_path):
    callback = EfficiencyCallback("Conv2D", log_extras="figures", every_n_epochs=2, prefix="x_")
    train([callback, board(tmp_path)], epochs=4)
    for name, figures in [
        ("efficiency_heat_map", [plot_heat_map(callback.history[: n + 1]) for n in range(2)]),
        ("rank_abundance", [plot_states(report) for report in callback.history]),
    ]:
        shown = pictures(tmp_path / "validation", f"epoch_x_{name}")
        assert [step for step, _ in shown] == [1, 3]
        for (_, pixels), figure in zip(shown, figures, strict=True):
            assert min(pixels.shape[:2]) > 200
            np.testing.assert_array_equal(pixels, drawn(figure))


@once
def test_no_pictures_are_drawn_unasked(tmp_path):
    train([EfficiencyCallback(), board(tmp_path)], epochs=1)
    assert not [tag for tag in read_run(tmp_path / "validation") if "heat_map" in tag]


@once
def test_pictures_without_a_board_are_said_once_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(TensorStateWarning, match="this fit has none: give a keras") as caught:
        _, logs = train([EfficiencyCallback(log_extras="figures")], epochs=2)
    assert len([w for w in caught if "draws into TensorBoard" in str(w.message)]) == 1
    assert len(logs["val_aiq"]) == 2


@once
def test_a_missing_matplotlib_is_said_as_fit_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    losses = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *a: losses.append(a))
    with pytest.raises(MissingExtraError, match=r'log_extras="figures"\) needs.*callbacks\[plot\]'):
        train([EfficiencyCallback(log_extras="figures"), board(tmp_path), note], epochs=1)
    assert losses == []
