"""Single neurons in Keras: in evaluations, fits and windows, on the host and on the device."""

import copy
import pickle

import keras
import mlflow
import numpy as np
import pytest
from board_folder import drawn, pictures, read_run
from keras import layers
from keras_models import once
from mlflow_store import QUIET, files, sqlite_store, table
from planted import found_by_numpy, neurons_of

from tensorstate_callbacks import plot_neurons
from tensorstate_callbacks.keras import EfficiencyCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:Coverage is below"),
    pytest.mark.filterwarnings("ignore:In windows of training batches"),
    pytest.mark.filterwarnings(QUIET),
]
N = 52
# Whole numbers everywhere, so that activations are the same on all backends.
X = np.random.default_rng(5).integers(-4, 5, size=(N, 6)).astype("float32")
Y = np.arange(N) % 2


def planted_weights():
    """14 neurons: 3 never fires, 5 always does, 7 is 2, 9 is 2 inverted, 10 is 4."""
    rng = np.random.default_rng(1)
    kernel = rng.integers(-3, 4, size=(6, 14)).astype("float32")
    # Halves: no activation is 0, where a neuron and its inverse would both not fire.
    bias = rng.integers(-2, 2, size=14).astype("float32") + 0.5
    bias[3], bias[5] = -1000, 1000
    for neuron, like, sign in ((7, 2, 1), (9, 2, -1), (10, 4, 1)):
        kernel[:, neuron], bias[neuron] = sign * kernel[:, like], sign * bias[like]
    return kernel, bias


def firing(x, bias=None):
    kernel, own = planted_weights()
    return (x @ kernel + (own if bias is None else bias)).reshape(-1, 14) > 0


def planted_model(shape=(6,)):
    keras.utils.set_random_seed(2)
    inputs = keras.Input(shape)
    x = layers.Dense(14, activation="relu", name="fc")(inputs)
    outputs = layers.Dense(2, activation="softmax", name="out")(x)
    model = keras.Model(inputs, outputs)
    model.get_layer("fc").set_weights(planted_weights())
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    return model


class Kills(keras.callbacks.Callback):
    """Gives neuron 0 a bias that it can't fire with, in the third and fourth of five epochs."""

    def on_epoch_begin(self, epoch, logs=None):
        kernel, bias = planted_weights()
        bias[0] = -1000 if epoch in (2, 3) else bias[0]
        bias[1] = -1000 if epoch > 3 else bias[1]
        self.model.get_layer("fc").set_weights([kernel, bias])


def fit(*callbacks, epochs=5):
    data = {"validation_data": (X, Y), "batch_size": 16, "shuffle": False, "verbose": 0}
    return planted_model().fit(X, Y, epochs=epochs, callbacks=list(callbacks), **data)


@pytest.mark.parametrize("forced", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("group_size", [None, 8])
def test_neurons_of_an_evaluation_are_those_of_numpy(group_size, forced, force_device):
    force_device(forced)
    callback = EfficiencyCallback("fc", neurons=True, group_size=group_size)
    planted_model().evaluate(X, Y, batch_size=16, verbose=0, callbacks=[callback])
    layer = callback.last.layers["fc"]
    assert neurons_of(layer) == found_by_numpy(firing(X), group_size)
    np.testing.assert_array_equal(layer.firing_rates, firing(X).mean(axis=0))
    assert (2, 7) in layer.agreeing
    if group_size is None:
        assert ((2, 7), (9,)) in layer.opposing
        assert (4, 10) in layer.agreeing


def test_padding_says_nothing_of_neurons():
    tokens = np.random.default_rng(3).integers(-4, 5, size=(N, 5, 6)).astype("float32")
    mask = np.arange(5) < np.random.default_rng(4).integers(1, 6, (N, 1))
    labels = np.zeros((N, 5), int)
    callback = EfficiencyCallback("fc", neurons=True, mask=mask)
    planted_model((5, 6)).evaluate(tokens, labels, batch_size=16, verbose=0, callbacks=[callback])
    assert neurons_of(callback.last.layers["fc"]) == found_by_numpy(firing(tokens[mask]))


def test_a_fit_tells_when_neurons_died_and_came_back():
    callback = EfficiencyCallback("fc", neurons=True)
    fit(Kills(), callback)
    lines = callback.history.lifelines("fc")
    expected = np.tile(firing(X).mean(axis=0)[:, None], 5)
    expected[0, 2:4] = expected[1, 4:] = 0
    np.testing.assert_array_equal(lines.rates, expected)
    assert (lines.died, lines.came_back) == ({1: 5, 3: 1}, {0: (5,)})
    for made in (copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))):  # noqa: S301
        kept = made(callback)
        assert kept.neurons is True
        assert kept.history == callback.history
        assert kept.history.lifelines("fc").died == lines.died


def test_windows_of_training_keep_every_windows_counts():
    callback = EfficiencyCallback(
        "fc", neurons=True, on="train", every_n_train_steps=2, window=2, layer_metrics=False
    )
    fit(callback, epochs=2)
    # Batches of 16 rows, four an epoch: the second and fourth of each are recorded.
    parts = [X[16:32], X[48:], X[16:32], X[48:]]
    windows = [np.concatenate(parts[max(0, n - 1) : n + 1]) for n in range(4)]
    assert neurons_of(callback.train_history[-1].layers["fc"]) == found_by_numpy(
        firing(windows[-1])
    )
    np.testing.assert_allclose(
        callback.train_history.lifelines("fc").rates.T,
        [firing(window).mean(axis=0) for window in windows],
    )


def test_tensorboard_gets_a_picture_of_each_layer_where_asked(tmp_path):
    callback = EfficiencyCallback("fc", neurons=True, log_extras="figures")
    plain = EfficiencyCallback("fc", prefix="plain_", log_extras="figures")
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    fit(Kills(), callback, plain, board, epochs=2)
    found = pictures(tmp_path / "validation", "epoch_neurons/fc")
    assert [step for step, _ in found] == [0, 1]
    for n, (_, pixels) in enumerate(found, start=1):
        np.testing.assert_array_equal(pixels, drawn(plot_neurons(callback.history[:n], "fc")))
    names = [tag for tag in read_run(tmp_path / "validation") if "neurons" in tag]
    assert names == ["epoch_neurons/fc"]


@once
def test_mlflow_gets_a_table_and_figures_where_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sqlite_store(tmp_path) as client:
        mlflow.set_experiment("digits")
        callback = EfficiencyCallback("fc", neurons=True)
        with mlflow.start_run() as run:
            fit(Kills(), callback)
        names = [f"efficiency/{name}" for name in ("history.png", "layers.json", "neurons")]
        assert files(client, run.info.run_id) == [*names, "efficiency/neurons.json"]
        (figure,) = client.list_artifacts(run.info.run_id, "efficiency/neurons")
        assert figure.path == "efficiency/neurons/fc.png"
        found = table(client, run.info.run_id, "neurons.json")
    assert list(found) == ["layer", "neuron", "firing_rate", "state"]
    layer = callback.last.layers["fc"]
    np.testing.assert_allclose(found["firing_rate"], layer.firing_rates)
    assert found["neuron"].tolist() == list(range(14))
    words = dict(enumerate(found["state"]))
    assert (words[1], words[3], words[5]) == ("never fired", "never fired", "always fired")
    assert (words[2], words[7]) == ("agrees with 7, opposes 9", "agrees with 2, opposes 9")
