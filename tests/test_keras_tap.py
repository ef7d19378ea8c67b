"""What goes on behind a tapped output: the same numbers, after they were observed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_models import compiled, only_on

from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.backends.tensorflow import tap


@only_on("tensorflow", because="takes the loss from the logits behind a softmax")
def test_logits_that_keras_hangs_on_an_output_stay_there():
    """Without them the loss would be computed from rounded probabilities."""
    dense = keras.layers.Dense(2, activation="softmax", name="out")
    model = compiled(keras.Sequential([keras.Input((2,)), dense]))
    dense.set_weights([np.array([[400.0, -400.0], [0, 0]], np.float32), np.zeros(2)])
    x, y = np.array([[1.0, 0.0]], np.float32), np.array([1])
    plain = model.evaluate(x, y, verbose=0, return_dict=True)
    callback = EfficiencyCallback(attach_to="out")
    watched = model.evaluate(x, y, verbose=0, return_dict=True, callbacks=[callback])
    assert plain["loss"] == pytest.approx(800)
    assert watched["loss"] == plain["loss"]
    assert callback.last.layers["out"].n_states == 1


def test_masks_that_keras_hangs_on_an_output_stay_there():
    inputs = keras.Input((3, 1))
    outputs = keras.layers.GlobalAveragePooling1D()(keras.layers.Masking(name="mask")(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(loss="mae")
    x = np.array([[[3.0], [0.0], [0.0]]], np.float32)
    plain = model.evaluate(x, np.zeros((1, 1)), verbose=0, return_dict=True)
    callback = EfficiencyCallback(attach_to="mask", missing_accuracy="ignore")
    watched = model.evaluate(x, np.zeros((1, 1)), verbose=0, return_dict=True, callbacks=[callback])
    assert plain["loss"] == watched["loss"] == 3
    assert callback.last.layers["mask"].n_states == 1


def test_what_takes_an_output_waits_until_it_is_observed():
    order = []

    @tf.function
    def step(x):
        passed = tap(x, lambda array: order.append(float(array)))
        return passed + 1

    assert float(step(tf.constant(3.0))) == 4
    assert order == [3]
    operations = step.get_concrete_function(tf.constant(3.0)).graph.get_operations()
    (add,) = (operation for operation in operations if operation.type.startswith("Add"))
    (waited_for,) = add.inputs[0].op.control_inputs
    assert waited_for.type == "PyFunc"
