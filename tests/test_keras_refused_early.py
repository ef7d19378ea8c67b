"""Layers that can't be counted are named before an epoch is lost; sparse inputs are counted."""

import keras
import numpy as np
import pytest
from keras import layers
from keras_layer_oracle import N, Y, check, head, normal
from keras_models import BACKEND, compiled, only_on, since

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
