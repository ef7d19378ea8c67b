"""Groups, positions and a memory budget in Keras, against NumPy on the layers' outputs."""

import math

import keras
import numpy as np
import pytest
from keras_models import BACKEND, compiled, data, functional, outputs_of
from sampling_oracle import fail_to_count, sampled_efficiency

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback

X, Y = data(101, seed=4)
NAMES = ["conv_1", "conv_2", "fc"]


@pytest.fixture(scope="module")
def model():
    return compiled(functional())


def evaluated(model, batch_size=50, order=slice(None), **options):
    callback = EfficiencyCallback(NAMES, missing_accuracy="raise", **options)
    model.evaluate(X[order], Y[order], batch_size=batch_size, verbose=0, callbacks=[callback])
    return callback


def efficiency(values, group_size, positions):
    return sampled_efficiency(values, values.shape[1:-1], group_size, positions)


@pytest.mark.parametrize("group_size", [None, 8, 1])
@pytest.mark.parametrize("positions", [None, 16])
def test_layers_are_those_of_numpy(model, group_size, positions):
    report = evaluated(model, group_size=group_size, positions=positions).last
    assert report.group_size == group_size
    for name, values in outputs_of(model, NAMES, X).items():
        expected, n_states = efficiency(values, group_size, positions)
        assert report.layers[name].n_states == n_states
        # A compiled step may round another way than an eager one, where an activation is near 0.
        assert report.layers[name].efficiency == pytest.approx(expected, rel=2e-3)


def test_how_the_data_is_cut_changes_nothing(model):
    options = {"group_size": 8, "positions": 16}
    whole = evaluated(model, 101, **options).last
    for batch_size, order in ((50, slice(None)), (7, slice(None, None, -1))):
        found = evaluated(model, batch_size, order, **options).last
        for name, layer in found.layers.items():
            assert layer.n_states == whole.layers[name].n_states
            assert layer.efficiency == pytest.approx(whole.layers[name].efficiency, rel=2e-3)


def test_two_callbacks_of_one_fit_log_the_paper_and_groups():
    model = compiled(functional())
    paper, groups = EfficiencyCallback(NAMES), EfficiencyCallback(NAMES, group_size=8, prefix="g8_")
    options = {"validation_data": (X, Y), "epochs": 2, "verbose": 0}
    logs = model.fit(X, Y, callbacks=[paper, groups], **options).history
    assert logs["val_efficiency"] == [report.efficiency for report in paper.history]
    assert logs["val_g8_efficiency"] == [report.efficiency for report in groups.history]
    for name in NAMES:
        below, above = (logs[f"val_{lead}efficiency/{name}"] for lead in ("", "g8_"))
        # A layer of no more than 8 neurons is one unit either way.
        wide = groups.last.layers[name].n_units > 1
        assert all(low < high if wide else low == high for low, high in zip(below, above))  # noqa: B905
        assert paper.last.layers[name].rate_bound == groups.last.layers[name].rate_bound
        assert above[-1] <= groups.last.layers[name].rate_bound


def test_rate_bound_and_redundancy_are_logged_on_request():
    model = compiled(functional())
    ours = EfficiencyCallback(NAMES, group_size=8, layer_metrics=["rate_bound", "redundancy"])
    logs = model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[ours]).history
    for name, layer in ours.last.layers.items():
        assert logs[f"val_rate_bound/{name}"] == [layer.rate_bound]
        assert logs[f"val_redundancy/{name}"] == [layer.redundancy]
        assert layer.redundancy == 1 - layer.efficiency / layer.rate_bound


def test_a_budget_thins_the_widest_layers_and_says_so():
    keras.utils.set_random_seed(6)
    inputs = keras.Input(X.shape[1:])
    x = keras.layers.Conv2D(40, 3, name="wide")(inputs)
    x = keras.layers.Conv2D(8, 3, name="narrow")(x)
    outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    found = []
    for batch_size in (101, 8):
        callback = EfficiencyCallback(["wide", "narrow"], max_memory=100_000)
        with pytest.warns(TensorStateWarning, match=r"max_memory .*: fewer positions .* wide \("):
            model.evaluate(X, Y, batch_size=batch_size, verbose=0, callbacks=[callback])
        found.append(callback.last.layers)
    n_all = math.prod(model.get_layer("wide").output.shape[1:3])
    assert found[0]["wide"].n_states == found[1]["wide"].n_states == len(X) * -(-n_all // 16)
    assert found[0]["narrow"].n_states == len(X) * math.prod(
        model.get_layer("narrow").output.shape[1:3]
    )
    asked = EfficiencyCallback("wide", positions=-(-n_all // 16))
    model.evaluate(X, Y, verbose=0, callbacks=[asked])
    assert asked.last.layers["wide"].efficiency == pytest.approx(
        found[0]["wide"].efficiency, rel=2e-3
    )


@pytest.mark.parametrize("group_size", [None, 8])
def test_a_counter_that_finds_no_memory_costs_the_layer(model, group_size, monkeypatch):
    # Whatever was traced stays: the counters are looked up as they are called.
    fail_to_count(monkeypatch, model.get_layer("fc").units)
    with pytest.warns(TensorStateWarning, match="memory.*fc could not be counted at all"):
        report = evaluated(model, group_size=group_size).last
    assert list(report.layers) == ["conv_1", "conv_2"]
    for name, values in outputs_of(model, ["conv_1", "conv_2"], X).items():
        expected, _ = efficiency(values, group_size, None)
        assert report.layers[name].efficiency == pytest.approx(expected, rel=2e-3)


def test_tokens_are_positions():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((12, 6))
    x = keras.layers.Dense(30, name="mix")(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(20, 12, 6)).astype("float32")
    callback = EfficiencyCallback("mix", positions=5)
    model.evaluate(x, np.zeros(20, int), batch_size=6, verbose=0, callbacks=[callback])
    values = keras.ops.convert_to_numpy(model.get_layer("mix")(x))
    expected, n_states = efficiency(values, None, 5)
    assert callback.last.layers["mix"].n_states == n_states == 100
    assert callback.last.layers["mix"].efficiency == pytest.approx(expected, rel=2e-3)


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="group_size must be a whole number, 1 to 22"):
        EfficiencyCallback(group_size=30)
    with pytest.raises(ValueError, match="positions must be a whole number, at least 1"):
        EfficiencyCallback(positions=0)
    assert BACKEND in ("tensorflow", "jax", "torch")
