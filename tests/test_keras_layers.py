"""Names of a Keras model's layers, the default ones, and which one makes the output."""

import keras
import numpy as np
from keras import layers

from tensorstate_callbacks.keras.layers import (
    default_names,
    first_tensor,
    named_layers,
)


def dense(name):
    return layers.Dense(3, name=name)


class Nested(keras.Model):
    """Layers of one name, in a list and in a dict, and one of them twice."""

    def __init__(self):
        super().__init__()
        self.first = [dense("fc"), dense("fc")]
        self.second = {"again": self.first[0], "other": dense("fc")}
        self.last = dense("last")

    def call(self, x):
        for layer in (*self.first, *self.second.values(), self.last):
            x = layer(x)
        return x


def test_layers_of_one_name_are_numbered_and_each_is_named_once():
    model = Nested()
    model(np.ones((1, 3)))
    named = named_layers(model)
    assert list(named) == ["fc", "fc_2", "fc_3", "last"]
    assert list(named.values()) == [*model.first, model.second["other"], model.last]


def test_layers_within_layers_have_paths():
    inner = keras.Sequential([keras.Input((2, 3)), dense("fc")], name="block")
    wrapped = layers.TimeDistributed(dense("each"), name="steps")
    outer = keras.Sequential([keras.Input((2, 3)), wrapped, inner], name="outer")
    names = list(named_layers(outer))
    assert names == ["steps", "steps/each", "block", "block/fc"]


def default_of(model):
    return default_names(model, named_layers(model))


def test_a_subclassed_model_leaves_the_last_one_out():
    model = Nested()
    model(np.ones((1, 3)))
    assert default_of(model) == ["fc", "fc_2", "fc_3"]


def test_the_output_may_be_made_by_an_inner_model():
    inputs = keras.Input((3,))
    head = keras.Sequential([keras.Input((3,)), dense("a"), dense("b")], name="head")
    assert default_of(keras.Model(inputs, head(dense("body")(inputs)))) == ["body", "head/a"]


def test_the_output_may_be_made_by_a_layer_of_layers():
    head = layers.TimeDistributed(dense("each"), name="head")
    inputs = keras.Input((2, 3))
    assert default_of(keras.Model(inputs, head(dense("body")(inputs)))) == ["body"]


def test_each_output_has_a_layer_that_makes_it():
    inputs = keras.Input((3,))
    body = dense("body")(inputs)
    left = layers.Softmax()(dense("left")(body))
    right = layers.Add()([dense("one")(body), dense("two")(body)])
    assert default_of(keras.Model(inputs, [left, right])) == ["body"]


def test_an_output_past_the_network_leaves_what_it_comes_from_in():
    inputs = keras.Input((8, 8, 1))
    first = layers.Conv2D(3, 3, name="first")(inputs)
    second = layers.Conv2D(4, 3, name="second")(first)
    pooled = layers.GlobalAveragePooling2D()(second)
    assert default_of(keras.Model(inputs, pooled)) == ["first"]


def test_the_first_tensor_is_found():
    tensor, other = keras.ops.ones((2,)), keras.ops.zeros((2,))
    assert first_tensor(tensor) is tensor
    assert first_tensor((None, [tensor, other])) is tensor
    assert first_tensor(((), {"mask": None, "x": tensor})) is tensor
    assert first_tensor((None, 3)) is None
