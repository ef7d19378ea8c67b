"""Every number type and memory layout of Keras's layers, quantized ones too."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras_layer_oracle import N, check, check_functional, head, normal, outputs, watch
from keras_models import compiled


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"]
)
def test_every_precision(policy):
    if (keras.backend.backend(), policy) == ("jax", "float64"):
        pytest.skip("JAX has no float64 unless jax_enable_x64 is set")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((8, 8, 2))
        x = layers.Conv2D(5, 3, name="conv")(inputs)
        x = layers.Dense(6, activation="tanh", name="fc")(layers.Flatten()(x))
        check_functional(inputs, ["conv", "fc"], normal(8, 8, 2), x)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize")
def test_quantized_layers_count_once():
    inputs = keras.Input((16,))
    fc = layers.Dense(6, activation="tanh", name="fc")
    model = keras.Model(inputs, head(fc(inputs)))
    model.quantize("int8")
    compiled(model)
    x = normal(16)
    reports = watch(model, x)
    check(reports["fc"], outputs(model, [fc.output], x)[0])
    assert reports["fc"].n_states == N


def test_a_quantized_call_that_calls_call_counts_once():
    class Twice(layers.Dense):
        def quantized_call(self, *args, **kwargs):
            return self.call(*args, **kwargs)

        def call(self, inputs, training=None):
            return ops.tanh(ops.matmul(inputs, ops.cast(self._kernel, inputs.dtype) * 0.01))

    inputs = keras.Input((16,))
    fc = Twice(6, name="fc")
    model = keras.Model(inputs, head(fc(inputs)))
    try:
        fc.quantize("int8", type_check=False)
    except TypeError:
        pytest.skip(f"Keras {keras.__version__} quantizes nothing but its own layers")
    compiled(model)
    assert watch(model, normal(16), "fc")["fc"].n_states == N


def test_channels_first():
    inputs = keras.Input((2, 8, 8))
    conv = layers.Conv2D(5, 3, data_format="channels_first", name="conv")
    model = compiled(keras.Model(inputs, head(layers.Flatten()(conv(inputs)))))
    x = normal(2, 8, 8)
    try:
        (found,) = outputs(model, [conv.output], x)
    except Exception as error:  # noqa: BLE001 - whatever the backend says
        pytest.skip(f"the backend can't run it here: {type(error).__name__}")
    check(watch(model, x)["conv"], np.moveaxis(found, 1, -1))
