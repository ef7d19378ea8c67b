"""Layers that can't be counted are named before an epoch is lost; masks and sparse inputs."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras_layer_oracle import N, Y, check, head, normal
from keras_models import BACKEND, compiled, only_on, since
from own_warnings import ours

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.keras import EfficiencyCallback


@keras.saving.register_keras_serializable("tests")
class Complex(layers.Layer):
    def call(self, x):
        return keras.ops.cast(x, "complex64")


class Real(layers.Layer):
    def call(self, x):
        return keras.ops.real(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, "float32")


@since((3, 8), before="it has no complex numbers")
@pytest.mark.parametrize(("attach_to", "method"), [("odd", "after"), ("real", "before")])
def test_complex_activations_of_a_graph_are_refused_before_training(attach_to, method):
    inputs = keras.Input((4,))
    x = Real(name="real", autocast=False)(Complex(name="odd")(inputs))
    model = compiled(keras.Model(inputs, head(x)))
    before = model.get_weights()[0].copy()
    callback = EfficiencyCallback(attach_to, method=method)
    x = normal(4)
    with pytest.raises(ProbeError, match=f"layer '{attach_to}'.*complex"):
        model.fit(x, Y, validation_data=(x, Y), verbose=0, callbacks=[callback])
    np.testing.assert_array_equal(model.get_weights()[0], before)


@only_on("tensorflow", "jax", because="Keras has no sparse tensors on it")
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_sparse_inputs_are_counted(options):
    dense = (np.random.default_rng(3).random((N, 6)) > 0.7).astype(np.float32)
    inputs = keras.Input((6,), sparse=True)
    model = compiled(keras.Model(inputs, head(layers.Dense(5, name="fc")(inputs))), **options)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.sparse.from_dense(dense)
        data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(32)
    else:
        scipy = pytest.importorskip("scipy.sparse")
        data = scipy.csr_matrix(dense)
    callback = EfficiencyCallback("fc", method="both", missing_accuracy="ignore")
    given = {"x": data} if BACKEND == "tensorflow" else {"x": data, "y": Y}
    model.evaluate(
        **given, batch_size=None if BACKEND == "tensorflow" else 32, verbose=0, callbacks=[callback]
    )
    assert callback.last.layers["fc.input"].n_states == N
    check(callback.last.layers["fc.input"], dense)


def said(model, x, attach_to, **options):
    return said_by(EfficiencyCallback(attach_to, missing_accuracy="ignore", **options), model, x)


def said_by(callback, model, x):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model.evaluate(x, Y, batch_size=32, verbose=0, callbacks=[callback])
    return [text for text in ours(given) if "padding" in text]


TOKENS = np.random.default_rng(3).integers(0, 9, (N, 6))


def embedded(mask_zero):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=mask_zero, name="embedding")(inputs)
    x = layers.Dense(5, name="fc")(x)
    lstm = layers.LSTM(3, name="lstm")(x)
    return compiled(keras.Model(inputs, head(layers.Dense(4, name="after")(lstm))))


@pytest.mark.parametrize("attach_to", ["embedding", "fc"])
def test_padding_that_a_mask_tells_of_is_said_once(attach_to):
    (text,) = said(embedded(True), TOKENS, attach_to)
    assert f"what passes {attach_to} is padding" in text
    assert "depends on how far batches are padded" in text
    assert said(embedded(False), TOKENS, attach_to) == []


def test_padding_is_said_again_in_each_evaluation_though_nothing_is_traced_again():
    model, callback = embedded(True), EfficiencyCallback("fc", missing_accuracy="ignore")
    assert [len(said_by(callback, model, TOKENS)) for _ in range(3)] == [1, 1, 1]


def test_where_a_mask_is_used_up_nothing_is_said():
    assert said(embedded(True), TOKENS, ["lstm", "after"]) == []


def test_masked_steps_are_padding():
    inputs = keras.Input((6, 3))
    x = layers.Dense(5, name="fc")(layers.Masking(name="masking")(inputs))
    model = compiled(keras.Model(inputs, head(layers.GlobalAveragePooling1D()(x))))
    (text,) = said(model, normal(6, 3), "fc")
    assert "what passes fc is padding" in text
