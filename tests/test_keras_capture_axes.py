"""Which axis a `StateCapture` takes for the neurons', by hand and in an efficiency model."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras_layer_oracle import normal
from keras_models import count_states

from tensorstate_callbacks import TensorStateWarning, build_efficiency_model
from tensorstate_callbacks.keras import StateCapture


def check_capture(capture, activations, axes):
    several = (axes,) if isinstance(axes, int) else axes
    moved = np.moveaxis(ops.convert_to_numpy(activations), several, range(-len(several), 0))
    rows = moved.reshape(*moved.shape[: -len(several)], -1)
    assert capture.max_entropy() == rows.shape[-1]
    assert np.sort(capture.counts()).tolist() == count_states(rows).tolist()


def channels_first(*behind):
    """A model that turns its channels to the front, and what follows."""
    inputs = keras.Input((9, 8, 3))
    x = layers.Permute((3, 1, 2))(layers.Conv2D(5, 3, name="conv")(inputs))
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    for layer in behind:
        x = layer(x)
    return keras.Model(inputs, x)


def test_the_graph_tells_the_axis_and_a_saved_layer_finds_it_again(tmp_path):
    model, x = channels_first(layers.ReLU(name="relu"), StateCapture("states")), normal(9, 8, 3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inner = keras.Model(model.input, model.get_layer("relu").output)
    activations = inner.predict(x, verbose=0)
    for each in (model, loaded, keras.models.clone_model(loaded)):
        each.set_weights(model.get_weights())
        each.predict(x, verbose=0)
        capture = each.get_layer("states")
        assert capture.get_config()["channel_axis"] is None
        check_capture(capture, activations, 1)


def test_several_axes_are_one_unit_and_are_saved(tmp_path):
    capture = StateCapture("states", channel_axis=(-2, -1))
    model, x = keras.Sequential([keras.Input((5, 3, 4)), capture]), normal(5, 3, 4)
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        each.predict(x, verbose=0)
        assert each.get_layer("states").channel_axis == (-2, -1)
        check_capture(each.get_layer("states"), x, (2, 3))
        assert each.get_layer("states").states_per_instance() == 5


def test_where_no_graph_tells_the_last_axis_is_taken_with_a_word():
    capture, x = StateCapture("states"), normal(4, 5)
    with pytest.warns(TensorStateWarning, match="of what passes 'states' .*axis -1.*channel_axis"):
        capture(x)
    capture(x[:3])
    assert (capture.max_entropy(), capture.state_count) == (5, 4 * (len(x) + 3))
    StateCapture("flat")(x[:, 0])
    StateCapture("given", channel_axis=1)(x)


@pytest.mark.parametrize("axis", ["last", 1.5, (), (1, 1), True])
def test_what_is_no_axis_is_refused(axis):
    with pytest.raises(TypeError, match="states: channel_axis takes an axis"):
        StateCapture("states", channel_axis=axis)


def test_an_efficiency_model_follows_the_axis_through_its_graph():
    original, x = channels_first(layers.ReLU(name="relu"), layers.Dropout(0.1, name="drop")), None
    x = normal(9, 8, 3)
    model = build_efficiency_model(original, ["relu", "drop", "conv"], method="both")
    model.predict(x, verbose=0)
    names = ["conv", "norm", "relu", "relu", "drop"]
    inner = keras.Model(original.input, [original.get_layer(name).output for name in names])
    found = [x, *inner.predict(x, verbose=0)]
    for capture, activations, axis in zip(
        model.efficiency_layers, found, [3, 3, 1, 1, 1, 1], strict=True
    ):
        check_capture(capture, activations, axis)


def test_an_efficiency_model_follows_the_axis_into_models_inside():
    inside = keras.Input((5, 7, 6))
    inner = keras.Model(inside, layers.ReLU(name="relu")(inside), name="inner")
    original, x = channels_first(inner, layers.Dropout(0.1, name="drop")), normal(9, 8, 3)
    model = build_efficiency_model(original, ["relu", "drop"])
    model.predict(x, verbose=0)
    assert [each.name for each in model.efficiency_layers] == [
        "inner.relu_post_states",
        "drop_post_states",
    ]
    activations = original.predict(x, verbose=0)
    for capture in model.efficiency_layers:
        check_capture(capture, activations, 1)


@pytest.mark.parametrize(
    ("given", "axes"),
    [
        (2, 2),
        ({"relu": (2, 3)}, (2, 3)),
        ({"relu_2": 2, "*": 3}, 3),
        (lambda name, layer, tensor: len(tensor.shape) - 1, 3),
    ],
)
def test_an_efficiency_model_takes_the_axes_that_it_is_given(given, axes):
    original, x = channels_first(layers.ReLU(name="relu"), layers.ReLU(name="relu_2")), None
    x = normal(9, 8, 3)
    model = build_efficiency_model(original, "ReLU", channel_axis=given)
    model.predict(x, verbose=0)
    activations = original.predict(x, verbose=0)
    check_capture(model.efficiency_layers[0], activations, axes)


def test_an_efficiency_model_refuses_keys_that_match_nothing():
    with pytest.raises(ValueError, match="'elu' matches no layer that is probed"):
        build_efficiency_model(channels_first(), "conv", channel_axis={"elu": 1})


def test_all_heads_of_an_attention_are_one_unit_in_an_efficiency_model():
    inputs = keras.Input((6, 5))
    query = layers.EinsumDense("abc,cde->abde", (6, 3, 4), name="query")(inputs)
    original, x = keras.Model(inputs, layers.ReLU(name="relu")(query)), normal(6, 5)
    model = build_efficiency_model(original, ["query", "relu"])
    model.predict(x, verbose=0)
    activations = keras.Model(inputs, query).predict(x, verbose=0)
    for capture in model.efficiency_layers:
        check_capture(capture, activations, (2, 3))
