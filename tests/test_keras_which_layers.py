"""Which layers the Keras callback probes: the output left out, names, shares of the weights."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras_layer_oracle import BATCH, N, Y, check, head, normal
from keras_models import compiled, once
from own_warnings import ours

from tensorstate_callbacks import NoLayerMatchedError, ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.recording.recorder import Recorder


def watch(model, x, attach_to=None, *, epochs=1, **options):
    """Evaluate, `epochs` times in a fit if above 1; return the callback and what was warned of."""
    callback = EfficiencyCallback(attach_to, missing_accuracy="ignore", **options)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        if epochs > 1:
            data = {"validation_data": (x, Y), "epochs": epochs, "verbose": 0}
            model.fit(x, Y, batch_size=BATCH, callbacks=[callback], **data)
        else:
            model.evaluate(x, Y, batch_size=BATCH, verbose=0, callbacks=[callback])
    return callback, ours(given)


class OutputFirst(keras.Model):
    """Its output layer is defined before the others."""

    def __init__(self):
        super().__init__()
        self.out = layers.Dense(2, activation="softmax", name="out")
        self.first = layers.Dense(5, activation="tanh", name="first")
        self.auxiliary = layers.Dense(6, activation="tanh", name="auxiliary")

    def call(self, x):
        return self.out(self.auxiliary(self.first(x)))


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_output_layer_is_the_one_called_last(options, epochs):
    model, x = compiled(OutputFirst(), **options), normal(4)
    callback, texts = watch(model, x, epochs=epochs, method="both")
    assert texts == []
    names = ["first.input", "first", "auxiliary.input", "auxiliary"]
    assert [list(report.layers) for report in callback.history] == [names] * epochs
    first = model.first(x)
    check(callback.last.layers["first"], first)
    check(callback.last.layers["auxiliary"], model.auxiliary(first))


def test_the_output_of_a_layer_of_layers_is_the_one_called_last():
    class Head(layers.Layer):
        def __init__(self):
            super().__init__(name="head")
            self.out = layers.Dense(2, activation="softmax", name="out")
            self.hidden = layers.Dense(5, activation="tanh", name="hidden")

        def build(self, shape):
            self.hidden.build(shape)
            self.out.build((None, 5))

        def call(self, x):
            return self.out(self.hidden(x))

    inputs = keras.Input((4,))
    model = compiled(keras.Model(inputs, Head()(layers.Dense(6, name="body")(inputs))))
    callback, texts = watch(model, normal(4))
    assert list(callback.last.layers) == ["body", "head/hidden"]
    assert texts == []


def two_inner_models():
    def inner(name):
        parts = [layers.Dense(5, name=f"only_{name}"), layers.Dense(4, name="both")]
        return keras.Sequential([keras.Input((4,)), *parts], name=name)

    return compiled(
        keras.Sequential([keras.Input((4,)), inner("one"), inner("two"), layers.Dense(2)])
    )


def test_a_layer_of_an_inner_model_is_found_by_its_own_name():
    model = two_inner_models()
    callback, _ = watch(model, normal(4), "only_two", channel_axis={"only_two": 1})
    assert list(callback.last.layers) == ["two/only_two"]
    callback, _ = watch(model, normal(4), exclude=["only_one", "two/both"])
    assert list(callback.last.layers) == ["one/both", "two/only_two"]


def test_a_name_of_several_layers_is_refused_with_their_paths():
    for options in ({"attach_to": "both"}, {"exclude": "both"}):
        with pytest.raises(NoLayerMatchedError, match=r"one/both, two/both.*path.*'\*/both'"):
            watch(two_inner_models(), normal(4), **options)
    callback, _ = watch(two_inner_models(), normal(4), "*/both")
    assert list(callback.last.layers) == ["one/both", "two/both"]


class Experts(layers.Layer):
    """Dense layers as one weight."""

    def build(self, shape):
        self.kernels = self.add_weight(shape=(8, shape[-1], shape[-1]), name="kernels")

    def call(self, x):
        return ops.mean(ops.einsum("bi,eio->beo", x, self.kernels), axis=1)


@once
def test_layers_that_hold_much_of_the_weights_and_are_not_probed_are_named():
    inputs = keras.Input((6, 10))
    x = layers.LSTM(10, name="lstm")(layers.Dense(10, name="dense")(inputs))
    x = layers.LayerNormalization()(Experts(name="experts")(x))
    model = compiled(keras.Model(inputs, head(x)))
    callback, texts = watch(model, normal(6, 10), epochs=2)
    # 100 of 100 + (10 + 10) · 40 + 8 · 100.
    assert len(texts) == 1
    assert "covers 6 % of the weights; not probed: " in texts[0]
    assert "lstm (47 %)" in texts[0]
    assert "experts (47 %)" in texts[0]
    assert list(callback.last.layers) == ["dense"]
    _, texts = watch(model, normal(6, 10), exclude=["lstm", "experts"])
    assert texts == []
    _, texts = watch(model, normal(6, 10), "Dense")
    assert texts == []


def test_lookup_tables_and_layers_that_are_not_called_are_not_missed():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.table = layers.Embedding(500, 8, name="table")
            self.pool = layers.GlobalAveragePooling1D()
            self.unused = layers.LSTM(20)
            self.unused.build((None, 6, 8))
            self.hidden = layers.Dense(6, name="hidden")
            self.out = layers.Dense(2, activation="softmax", name="out")

        def call(self, x):
            return self.out(self.hidden(self.pool(self.table(x))))

    x = np.random.default_rng(3).integers(0, 500, (N, 6))
    callback, texts = watch(compiled(Model()), x)
    assert list(callback.last.layers) == ["hidden"]
    assert texts == []


class GivesNone(layers.Layer):
    def call(self, x):
        return None

    def compute_output_spec(self, x):
        return None


class Sums(layers.Layer):
    def call(self, x):
        return ops.sum(x, axis=-1)


class Odd(keras.Model):
    """Layers that give nothing, or a number a sample."""

    def __init__(self):
        super().__init__()
        self.none, self.sums = GivesNone(name="none"), Sums(name="sums")
        self.hidden = layers.Dense(5, name="hidden")
        self.out = layers.Dense(2, activation="softmax", name="out")

    def call(self, x):
        self.none(x)
        return self.out(self.hidden(x) + self.sums(x)[:, None])


@pytest.mark.parametrize("epochs", [1, 2])
def test_layers_without_neurons_are_left_out_with_a_word(epochs):
    names = ["none", "sums", "hidden"]
    callback, texts = watch(compiled(Odd()), normal(4), names, epochs=epochs)
    assert list(callback.last.layers) == ["hidden"]
    (text,) = texts
    assert "left out layers that have no neurons to count: none (no tensor), sums (shape" in text


@pytest.mark.parametrize("name", ["none", "sums"])
def test_layers_without_neurons_are_refused_alone(name):
    with pytest.raises(ProbeError, match=f"layer '{name}' has no neurons to count"):
        watch(compiled(Odd()), normal(4), name)


def test_layers_added_in_the_middle_of_a_fit_are_probed_from_then_on():
    class Grows(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = [layers.Dense(5, name="hidden")]
            self.out = layers.Dense(2, activation="softmax", name="out")

        def call(self, x):
            for layer in self.hidden:
                x = layer(x)
            return self.out(x)

    class Adds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model._tracker.unlock()
                self.model.hidden = [*self.model.hidden, layers.ELU(name="added")]
                self.model.make_test_function(force=True)

    model, x = compiled(Grows()), normal(4)
    callback = EfficiencyCallback(["Dense", "ELU"], exclude="out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TensorStateWarning)
        data = {"validation_data": (x, Y), "epochs": 4, "verbose": 0}
        model.fit(x, Y, batch_size=BATCH, callbacks=[callback, Adds()], **data)
    names = [list(report.layers) for report in callback.history]
    assert names == [["hidden"]] * 2 + [["hidden", "added"]] * 2


def counts_widths_apart():
    recorder = Recorder(["a"])
    for width in (2, 3):
        recorder.observe_later("a", np.ones((4, width)), -1)
    return recorder.error is None


@pytest.mark.skipif(not counts_widths_apart(), reason="the recorder has one width per probe")
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_a_layer_on_several_widths_is_counted_by_width(options):
    relu = layers.ReLU(name="relu")
    inputs = keras.Input((9, 8, 3))
    first = layers.Conv2D(6, 3, name="conv_1")(inputs)
    second = layers.Conv2D(12, 3, name="conv_2")(relu(first))
    model = compiled(
        keras.Model(inputs, head(layers.GlobalAveragePooling2D()(relu(second)))), **options
    )
    x = normal(9, 8, 3)
    callback, texts = watch(model, x, "relu")
    assert texts == []
    assert list(callback.last.layers) == ["relu@6", "relu@12"]
    tensors = [layers.ReLU(name=f"oracle_{i}")(t) for i, t in enumerate((first, second))]
    found = keras.Model(inputs, tensors).predict(x, batch_size=BATCH, verbose=0)
    for report, activations in zip(callback.last.layers.values(), found, strict=True):
        check(report, activations)
