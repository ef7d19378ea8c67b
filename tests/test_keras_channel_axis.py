"""Which axis of a Keras layer's tensors holds the neurons, behind other layers and operations."""

import keras
import pytest
from keras import layers, ops
from keras_layer_oracle import CONVOLVES_FIRST, N, chain, check_axes, head, model_of, normal
from keras_models import BACKEND, compiled


def test_the_axis_travels_behind_a_norm_that_is_channels_first():
    def build(x):
        x = layers.Permute((3, 1, 2))(layers.Conv2D(6, 3, padding="same")(x))
        y = layers.BatchNormalization(axis=1, name="norm")(x)
        y = layers.ReLU(name="relu")(y)
        x = layers.Add(name="add")([x, y])
        x = layers.Activation("gelu", name="gelu")(x)
        return layers.Dropout(0.2, name="dropout")(x)

    names = ["norm", "relu", "add", "gelu", "dropout"]
    model = model_of(build, (10, 9, 3))
    reports = check_axes(model, normal(10, 9, 3), dict.fromkeys(names, 1))
    assert {report.n_neurons for report in reports.values()} == {6}


@CONVOLVES_FIRST
def test_the_axis_travels_behind_convolutions_that_are_channels_first():
    def build(x):
        first = {"data_format": "channels_first"}
        x = layers.Conv2D(6, 3, padding="same", name="conv", **first)(x)
        x = layers.BatchNormalization(axis=1, name="norm")(x)
        x = layers.ReLU(name="relu")(x)
        y = layers.Conv2D(6, 3, padding="same", **first)(x)
        x = layers.Add(name="add")([x, y])
        x = layers.Activation("gelu", name="gelu")(x)
        return layers.Dropout(0.2, name="dropout")(x)

    names = ["conv", "norm", "relu", "add", "gelu", "dropout"]
    model = model_of(build, (3, 10, 9))
    reports = check_axes(model, normal(3, 10, 9), dict.fromkeys(names, 1))
    assert {report.n_neurons for report in reports.values()} == {6}
    assert reports["dropout"].n_states == N * 10 * 9


FIRST = {"data_format": "channels_first"}


@pytest.mark.parametrize(
    ("parts", "shape", "axis"),
    [
        ([layers.Conv1D(8, 3, **FIRST), layers.ReLU()], (3, 20), 1),
        ([layers.Conv1D(8, 3), layers.Cropping1D((0, 2)), layers.ReLU()], (20, 3), 2),
        ([layers.Conv1D(8, 3), layers.UpSampling1D(2), layers.ELU()], (20, 3), 2),
        ([layers.Conv2D(7, 3, **FIRST), layers.PReLU(shared_axes=[2, 3])], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3, **FIRST), layers.LeakyReLU()], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3, **FIRST), layers.Softmax(axis=1)], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3), layers.Softmax(axis=1)], (8, 6, 3), 3),
        ([layers.Conv2D(7, 3), layers.UnitNormalization(axis=1)], (8, 6, 3), 3),
        ([layers.Conv2D(7, 3, **FIRST), layers.ZeroPadding2D(1, **FIRST)], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3, **FIRST), layers.Cropping2D(1, **FIRST)], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3, **FIRST), layers.UpSampling2D(2, **FIRST)], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3), layers.Permute((3, 1, 2)), layers.ReLU()], (8, 6, 3), 1),
        ([layers.Conv2D(7, 3), layers.Reshape((24, 7)), layers.ReLU()], (8, 6, 3), 2),
        ([layers.Conv2D(8, 3), layers.Reshape((24, 2, 4)), layers.ReLU()], (8, 6, 3), (2, 3)),
        ([layers.Conv2D(7, 3, **FIRST), layers.Reshape((7, 24)), layers.ReLU()], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3, **FIRST), layers.LayerNormalization(axis=1)], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3), layers.LayerNormalization(axis=[1, 2, 3])], (8, 6, 3), 3),
        ([layers.Conv2D(7, 3, **FIRST), layers.LayerNormalization(axis=[1, 2, 3])], (3, 8, 6), 1),
        ([layers.Conv2D(8, 3, **FIRST), layers.GroupNormalization(2, axis=1)], (3, 8, 6), 1),
        ([layers.Conv2D(7, 3), layers.Flatten(), layers.ReLU()], (8, 6, 3), 1),
        ([layers.Dense(5), layers.RepeatVector(4), layers.ReLU()], (3,), 2),
        ([layers.ConvLSTM2D(5, 3, return_sequences=True, **FIRST)], (4, 3, 8, 6), 2),
        ([layers.ConvLSTM2D(5, 3, **FIRST), layers.ReLU()], (4, 3, 8, 6), 1),
        ([layers.ConvLSTM1D(5, 3, return_sequences=True)], (4, 8, 3), 3),
        ([layers.TimeDistributed(layers.Conv2D(5, 3, **FIRST)), layers.ReLU()], (4, 3, 8, 6), 2),
        ([layers.SpectralNormalization(layers.Conv2D(5, 3, **FIRST)), layers.ReLU()], (3, 8, 6), 1),
        ([layers.Rescaling(2.0), layers.Conv2D(5, 3)], (8, 6, 3), 3),
    ],
    ids=lambda value: "-".join(p.name for p in value) if isinstance(value, list) else None,
)
def test_the_axis_survives_what_lies_between(parts, shape, axis):
    configs = [getattr(part, "layer", part).get_config() for part in parts]
    first = any(config.get("data_format") == "channels_first" for config in configs)
    if BACKEND == "tensorflow" and first:
        pytest.skip("TensorFlow has no channels_first convolution on a CPU")
    if BACKEND == "jax" and first and isinstance(parts[0], layers.ConvLSTM2D):
        pytest.skip("the same as on PyTorch, and slow to compile")
    if (
        BACKEND == "torch"
        and getattr(parts[-1], "axis", None) == 1
        and "layer_norm" in (parts[-1].name)
    ):
        pytest.skip("Keras's LayerNormalization of one axis takes the last on PyTorch")
    parts = [type(part).from_config(part.get_config()) for part in parts]
    model = model_of(chain(*parts), shape)
    names = [parts[0].name, parts[-1].name] if isinstance(parts[0], layers.Rescaling) else []
    check_axes(model, normal(*shape), dict.fromkeys(names or [parts[-1].name], axis))


def test_operations_of_a_functional_model_are_followed():
    def build(x):
        x = layers.Conv2D(5, 3, data_format="channels_last")(x)
        x = ops.relu(ops.transpose(x, (0, 3, 1, 2)) * 2)
        x = layers.Dropout(0.1, name="a")(x)
        x = layers.ReLU(name="b")(ops.mean(x, axis=2))
        x = layers.ReLU(name="c")(ops.swapaxes(ops.expand_dims(x, 1), 1, 2))
        return layers.ReLU(name="d")(ops.squeeze(x, 2)[:, :, 1:])

    # Height and width are the number of channels: shapes alone tell nothing.
    model = model_of(build, (7, 7, 3))
    check_axes(model, normal(7, 7, 3), {"a": 1, "b": 1, "c": 1, "d": 1})


def test_tokens_with_a_class_token_before_them():
    class ClassToken(layers.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

        def call(self, x):
            return ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))

        def compute_output_shape(self, shape):
            return (shape[0], 1, shape[-1])

    inputs = keras.Input((9, 4))
    tokens = layers.Dense(6, name="tokens")(inputs)
    token = ClassToken(name="class_token")(tokens)
    joined = layers.Concatenate(axis=1, name="joined")([token, tokens])
    x = layers.Dropout(0.1, name="drop")(joined)
    model = compiled(keras.Model(inputs, head(layers.Flatten()(x))))
    names = ["tokens", "class_token", "joined", "drop"]
    check_axes(model, normal(9, 4), dict.fromkeys(names, 2))
