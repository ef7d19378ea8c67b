"""Every kind of model that Keras has: the callback's figures against the layers' own outputs."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras_layer_oracle import BATCH, N, Y, check, check_functional, head, normal, outputs, watch
from keras_models import compiled, count_states

from tensorstate_callbacks import TensorStateWarning, entropy
from tensorstate_callbacks.keras import EfficiencyCallback


def test_several_inputs_and_outputs():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((4,), name="b")}
    body = layers.Dense(6, activation="tanh", name="body")(
        layers.Concatenate()(list(inputs.values()))
    )
    result = {
        "left": layers.Dense(2, activation="softmax", name="left")(body),
        "right": layers.Dense(1, name="right")(layers.Dense(5, name="to_right")(body)),
    }
    model = keras.Model(inputs, result)
    model.compile("sgd", {"left": "sparse_categorical_crossentropy", "right": "mse"})
    x = {"a": normal(3), "b": normal(4)}
    reports = watch(model, x, y={"left": Y, "right": Y.astype(np.float32)})
    assert list(reports) == ["body", "to_right"]
    tensors = [model.get_layer(name).output for name in reports]
    inner = keras.Model(inputs, tensors).predict(x, batch_size=BATCH, verbose=0)
    for report, activations in zip(reports.values(), inner, strict=True):
        check(report, activations)


def test_an_unbuilt_sequential_model():
    model = compiled(
        keras.Sequential(
            [layers.Dense(5, activation="tanh", name="fc"), layers.Dense(2, name="out")]
        )
    )
    x = normal(3)
    reports = watch(model, x)
    # Which layer makes the output is known by its place.
    assert list(reports) == ["fc"]
    check(reports["fc"], model.layers[0](x))


class Nested(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [[layers.Dense(4, name="a")], {"b": layers.Dense(5, name="b")}]
        self.table = {"c": [layers.Dense(6, name="c")]}
        self.out = layers.Dense(2, activation="softmax", name="out")

    def call(self, x):
        x = ops.tanh(self.blocks[0][0](x))
        x = ops.tanh(self.blocks[1]["b"](x))
        return self.out(self.table["c"][0](x))


def test_layers_in_nested_lists_and_dicts():
    model, x = compiled(Nested()), normal(3)
    model(x[:1])
    reports = watch(model, x)
    assert list(reports) == ["a", "b", "c"]
    a, b, c = model.blocks[0][0], model.blocks[1]["b"], model.table["c"][0]
    first = a(x)
    second = b(ops.tanh(first))
    for report, activations in zip(
        reports.values(), [first, second, c(ops.tanh(second))], strict=True
    ):
        check(report, ops.convert_to_numpy(activations))


def test_models_inside_models_and_a_model_as_the_layer():
    inside = keras.Input((3,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="fc")], name="inner")
    block = keras.Model(inside, inner(layers.Dense(4, name="fc")(inside)), name="block")
    inputs = keras.Input((3,))
    model = compiled(keras.Model(inputs, head(ops.tanh(block(inputs)))))
    x = normal(3)
    reports = watch(model, x, ["block", "block/inner", "Dense"], exclude="out", method="both")
    first = outputs(block, [block.get_layer("fc").output], x)[0]
    second = outputs(block, [block.output], x)[0]
    expected = {
        "block.input": x,
        "block/fc.input": x,
        "block/fc": first,
        "block/inner.input": first,
        "block/inner/fc.input": first,
        "block/inner": second,
        "block/inner/fc": second,
        "block": second,
    }
    assert sorted(reports) == sorted(expected)
    for name, activations in expected.items():
        check(reports[name], activations)


def test_lambda_layers_and_operations():
    inputs = keras.Input((3,))
    x = layers.Dense(5, name="fc")(inputs)
    x = layers.Lambda(lambda t: ops.sin(t * 3), output_shape=(5,), name="wave")(ops.abs(x) - 0.5)
    check_functional(inputs, ["fc", "wave"], normal(3), x)


def test_a_test_step_of_the_models_own():
    class Twice(keras.Model):
        """Runs the model on the mirrored data too."""

        if keras.backend.backend() == "jax":

            def test_step(self, state, data):
                logs, state = super().test_step(state, data)
                self.stateless_call(*state[:2], -data[0], training=False)
                return logs, state

        else:

            def test_step(self, data):
                logs = super().test_step(data)
                self(-data[0], training=False)
                return logs

    inputs = keras.Input((3,))
    model = compiled(Twice(inputs, head(layers.Dense(5, name="fc")(inputs))))
    x, fc = normal(3), model.get_layer("fc").output
    check(watch(model, x)["fc"], *outputs(model, [fc], x), *outputs(model, [fc], -x))


def test_attention_and_its_parts():
    inputs = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    x = layers.GlobalAveragePooling1D()(attention(inputs, inputs))
    model = check_functional(inputs, ["attention"], normal(6, 8), x)
    x = normal(6, 8)
    reports = watch(model, x, "attention/*", exclude=["*softmax*", "*dropout*"])
    query = np.einsum("abc,cde->abde", x, attention.query_dense.get_weights()[0])
    query = query + attention.query_dense.get_weights()[1]
    query = query.reshape(N, 6, 8)
    assert reports["attention/query"].n_neurons == 2 * 4
    assert reports["attention/query"].n_states == N * 6
    # By NumPy's sums, whose last bits are others: a state may differ where an activation is near 0.
    assert reports["attention/query"].entropy == pytest.approx(
        entropy(count_states(query)), rel=1e-2
    )


def test_time_distributed_layers():
    inputs = keras.Input((6, 3))
    steps = layers.TimeDistributed(layers.Dense(5, name="each"), name="steps")
    model = check_functional(inputs, ["steps"], normal(6, 3), layers.Flatten()(steps(inputs)))
    x = normal(6, 3)
    reports = watch(model, x, ["steps", "steps/each"])
    assert dict(reports)["steps/each"].n_states == N * 6
    assert reports["steps/each"].entropy == reports["steps"].entropy


def test_recurrent_layers():
    inputs = keras.Input((6, 3))
    x = layers.LSTM(5, return_sequences=True, name="lstm")(inputs)
    x = layers.Bidirectional(layers.GRU(4), name="both_ways")(x)
    model = check_functional(inputs, ["lstm", "both_ways"], normal(6, 3), x)
    x = normal(6, 3)
    reports = watch(model, x, ["both_ways/forward_gru", "both_ways/backward_gru"])
    (both,) = outputs(model, [model.get_layer("both_ways").output], x)
    forward, backward = reports.values()
    check(forward, both[:, :4])
    check(backward, both[:, 4:])


@pytest.mark.parametrize("attach_to", ["lstm/lstm_cell", "LSTMCell"])
def test_cells_of_recurrent_layers_are_refused(attach_to):
    inputs = keras.Input((6, 3))
    model = compiled(keras.Model(inputs, head(layers.LSTM(5, name="lstm")(inputs))))
    with pytest.raises(ValueError, match="lstm/lstm_cell is the cell of a recurrent layer.*'lstm'"):
        watch(model, normal(6, 3), attach_to)


@pytest.mark.skipif(not hasattr(keras, "RematScope"), reason="an earlier Keras has none")
def test_rematerialized_layers():
    with keras.RematScope("full"):
        inputs = keras.Input((3,))
        x = layers.Dense(6, activation="tanh", name="one")(inputs)
        x = layers.Dense(5, name="two")(x)
    # In a graph of TensorFlow, Keras can't run such layers itself.
    eagerly = keras.backend.backend() == "tensorflow"
    model = compiled(keras.Model(inputs, head(x)), run_eagerly=eagerly)
    callback, x = EfficiencyCallback(), normal(3)
    one, two = model.get_layer("one"), model.get_layer("two")
    first = [one(x[at : at + BATCH]) for at in range(0, N, BATCH)]
    reports = watch(model, x)
    check(reports["one"], *first)
    check(reports["two"], *map(two, first))
    model.fit(
        x, Y, validation_data=(x, Y), epochs=2, batch_size=BATCH, verbose=0, callbacks=[callback]
    )
    assert [r.layers["one"].n_states for r in callback.history] == [N, N]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a function of TensorFlow's")
def test_a_layer_compiled_by_itself_is_warned_about():
    import tensorflow as tf

    class Compiled(layers.Layer):
        def __init__(self):
            super().__init__(name="compiled")
            self.fc = layers.Dense(5, name="fc")

        def build(self, shape):
            self.fc.build(shape)

        @tf.function
        def call(self, x):
            return self.fc(x)

    inputs = keras.Input((3,))
    layer = Compiled()
    model, x = compiled(keras.Model(inputs, head(layer(inputs)))), normal(3)
    model.predict(x, verbose=0)
    # It runs the trace that it has, without the probe; its own output is seen.
    with pytest.warns(TensorStateWarning, match="compiled/fc: .*compiled function of their own"):
        reports = watch(model, x, ["compiled", "Dense"], exclude="out")
    assert list(reports) == ["compiled"]
    check(reports["compiled"], outputs(model, [layer.output], x)[0])
