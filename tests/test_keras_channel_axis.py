"""Which axis of a Keras layer's tensors holds the neurons: by layers, by the data, as given."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras_layer_oracle import BATCH, N, Y, check, head, normal, outputs
from keras_models import BACKEND, compiled, only_on
from own_warnings import ours

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback


def watched(model, x, attach_to, *, warn="", y=Y, **options):
    """Evaluate; return the layers' reports. Of axes nothing is said but what is expected."""
    callback = EfficiencyCallback(attach_to, missing_accuracy="ignore", **options)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model.evaluate(x, y, batch_size=BATCH, verbose=0, callbacks=[callback])
    texts = [text for text in ours(given) if "nothing tells which axis" in text]
    assert len(texts) == bool(warn)
    assert not warn or warn in texts[0]
    return callback.last.layers


def check_axes(model, x, axes, **options):
    """Compare the reports of layers with their outputs, neurons moved from their axes to the end.

    Args:
        axes: Axis of each layer, or several that are folded.
    """
    reports = watched(model, x, list(axes), **options)
    found = outputs(model, [model.get_layer(name).output for name in axes], x)
    for (name, axis), activations in zip(axes.items(), found, strict=True):
        several = (axis,) if isinstance(axis, int) else axis
        moved = np.moveaxis(activations, several, range(-len(several), 0))
        check(reports[name], moved.reshape(*moved.shape[: -len(several)], -1))
    return reports


def model_of(x, shape, **options):
    """A model whose last tensor is `x(inputs)`, with a head that makes two classes of it."""
    inputs = keras.Input(shape)
    return compiled(keras.Model(inputs, head(layers.Flatten()(x(inputs)))), **options)


def chain(*parts):
    def run(x):
        for part in parts:
            x = part(x)
        return x

    return run


CONVOLVES_FIRST = only_on("jax", "torch", because="no channels_first convolution on a CPU")


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


class ChannelNorm(layers.Layer):
    """A norm written by hand, of an axis that its name doesn't tell."""

    def __init__(self, axis, **options):
        super().__init__(**options)
        self.channels = axis

    def build(self, shape):
        ones = [1] * len(shape)
        ones[self.channels] = shape[self.channels]
        self.scale = self.add_weight(shape=tuple(ones), initializer="ones", name="scale")

    def call(self, x):
        return self.scale * x / (1 + ops.max(ops.abs(x), axis=self.channels, keepdims=True))


def test_a_norm_written_by_hand_is_known_by_its_weight():
    model = model_of(
        chain(ChannelNorm(1, name="norm"), layers.Activation("gelu", name="gelu")), (5, 8, 6)
    )
    check_axes(model, normal(5, 8, 6), {"norm": 1, "gelu": 1})


def test_a_norm_of_one_heads_neurons_is_known_by_its_weight():
    def build(x):
        x = layers.EinsumDense("abc,cde->abde", (6, 3, 4), name="query")(x)
        return ChannelNorm(3, name="norm")(x)

    model = model_of(build, (6, 5))
    reports = check_axes(model, normal(6, 5), {"query": (2, 3), "norm": 3})
    assert (reports["norm"].n_neurons, reports["norm"].n_states) == (4, N * 6 * 3)
    assert (reports["query"].n_neurons, reports["query"].n_states) == (12, N * 6)


@pytest.mark.parametrize(
    ("equation", "made", "given", "axes"),
    [
        ("ab,bc->ac", (7,), (5,), 1),
        ("abc,cd->abd", (6, 5), (6, 3), 2),
        ("abc,bd->adc", (5, 3), (6, 3), 1),
        ("...x,xy->...y", (6, 5), (6, 3), 2),
        ("abc,cde->abde", (6, 2, 5), (6, 3), (2, 3)),
    ],
)
def test_einsum_layers_have_the_neurons_that_the_kernel_makes(equation, made, given, axes):
    inputs = keras.Input(given)
    shape = made[-1:] if "..." in equation else made
    x = layers.EinsumDense(equation, shape, name="dense")(inputs)
    model = compiled(keras.Model(inputs, head(layers.Reshape((int(np.prod(made)),))(x))))
    check_axes(model, normal(*given), {"dense": axes})


def test_all_heads_of_an_attention_are_one_unit_as_in_pytorch():
    torch = pytest.importorskip("torch")
    inputs = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    model = compiled(keras.Model(inputs, head(layers.Flatten()(attention(inputs, inputs)))))
    # Small whole numbers: sums are exact in both.
    rng = np.random.default_rng(2)
    attention.set_weights([rng.integers(-2, 3, w.shape) for w in attention.get_weights()])
    x = rng.integers(-2, 3, (N, 6, 8)).astype(np.float32)
    report = watched(model, x, "attention/query")["attention/query"]
    kernel, bias = attention.query_dense.get_weights()
    linear = torch.nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(kernel.reshape(8, 8).T.copy()))
        linear.bias.copy_(torch.from_numpy(bias.reshape(8).copy()))
        query = linear(torch.from_numpy(x)).numpy()
    assert (report.n_neurons, report.n_states) == (8, N * 6)
    check(report, query)


@only_on("torch", because="runs no modules of PyTorch")
def test_modules_of_pytorch_have_its_axes():
    import torch

    wrap = keras.layers.TorchModuleWrapper

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = wrap(torch.nn.Conv2d(3, 5, 3), name="conv")
            self.relu = layers.ReLU(name="relu")
            self.block = wrap(
                torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3), torch.nn.ReLU()), name="block"
            )
            self.flatten, self.out = layers.Flatten(), layers.Dense(2, activation="softmax")

        def call(self, x):
            self.seen = [self.conv(x)]
            self.seen.append(self.relu(self.seen[-1]))
            self.seen.append(self.block(self.seen[-1]))
            return self.out(self.flatten(self.seen[-1]))

    model, x = compiled(Model()), normal(3, 9, 8)
    reports = watched(model, x, ["conv", "relu", "block"])
    model(x)
    for name, tensor in zip(reports, model.seen, strict=True):
        check(reports[name], np.moveaxis(ops.convert_to_numpy(tensor), 1, -1))


class Subclassed(keras.Model):
    """Operations between layers that are no layers: only tensors and their shapes tell."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(6, 3, data_format="channels_first", name="conv")
        self.drop = layers.Dropout(0.1, name="drop")
        self.relu = layers.ReLU(name="relu")
        self.flatten = layers.Flatten()
        self.out = layers.Dense(2, activation="softmax", name="out")

    def call(self, x):
        x = self.conv(x)
        x = self.drop(ops.gelu(x) + 1)
        return self.out(self.flatten(self.relu(x[:, :, 1:] - 1)))


@CONVOLVES_FIRST
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_the_latest_tensor_like_it_tells_where_operations_lie_between(options):
    model, x = compiled(Subclassed(), **options), normal(3, 10, 9)
    reports = watched(model, x, ["conv", "drop", "relu"])
    conv = ops.convert_to_numpy(model.conv(x))
    assert [r.n_neurons for r in reports.values()] == [6, 6, 6]
    check(reports["conv"], np.moveaxis(conv, 1, -1))
    assert reports["drop"].n_states == N * 8 * 7
    # Cut after all: neither the tensor nor its shape is known, but one axis still has 6 entries.
    assert reports["relu"].n_states == N * 7 * 7


def test_halves_of_a_gate_have_the_axis_of_the_whole():
    class Gated(keras.Model):
        def __init__(self):
            super().__init__()
            self.wide = layers.Dense(10, name="wide")
            self.gelu = layers.Activation("gelu", name="gelu")
            self.flatten = layers.Flatten()
            self.out = layers.Dense(2, activation="softmax", name="out")

        def call(self, x):
            left, right = ops.split(self.wide(x), 2, axis=-1)
            return self.out(self.flatten(self.gelu(left) * right))

    model, x = compiled(Gated()), normal(8, 7, 3)
    report = watched(model, x, "gelu")["gelu"]
    assert (report.n_neurons, report.n_states) == (5, N * 8 * 7)


@CONVOLVES_FIRST
def test_what_nothing_tells_is_not_guessed_in_silence():
    x = normal(3, 10, 9)

    class Turned(Subclassed):
        def call(self, x):
            x = ops.transpose(self.conv(x), (0, 2, 3, 1))
            return self.out(self.flatten(self.relu(x)))

    model = compiled(Turned())
    shape = (BATCH, 8, 7, 6) if BACKEND != "tensorflow" else (None, 8, 7, 6)
    reports = watched(model, x, ["conv", "relu"], warn=f"relu (shape {shape}, axis -3 taken)", y=Y)
    assert reports["relu"].n_neurons == 8
    reports = watched(model, x, ["conv", "relu"], channel_axis={"ReLU": -1})
    assert (reports["conv"].n_neurons, reports["relu"].n_neurons) == (6, 6)


class Guessed(keras.Model):
    """Nothing tells the axis that its activation is taken to have: that of the steps."""

    def __init__(self):
        super().__init__()
        self.relu = layers.ReLU(name="relu")
        self.pool = layers.GlobalAveragePooling1D(data_format="channels_first")
        self.out = layers.Dense(2, activation="softmax", name="out")

    def call(self, x):
        return self.out(self.pool(self.relu(x)))


def test_an_axis_that_changes_its_size_is_no_axis_of_neurons():
    model = compiled(Guessed())

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return normal(4, (5, 7)[index])[:8], Y[:8]

    callback = EfficiencyCallback("relu")
    with (
        pytest.warns(TensorStateWarning, match="nothing tells which axis"),
        pytest.raises(ProbeError, match="layer 'relu' .*axis -1 .*had 5 entries.*channel_axis="),
    ):
        model.evaluate(Batches(), verbose=0, callbacks=[callback])
    assert callback.history == []
    callback = EfficiencyCallback("relu", channel_axis=1)
    model.evaluate(Batches(), verbose=0, callbacks=[callback])
    report = callback.last.layers["relu"]
    assert (report.n_neurons, report.n_states) == (4, 8 * 12)


@pytest.mark.parametrize(
    "given",
    [
        (-2, -1),
        (2, 3),
        {"re*": (2, 3)},
        {layers.ReLU: [-2, -1]},
        lambda name, layer, tensor: (-2, -1) if name == "relu" else None,
    ],
    ids=["negative", "positive", "glob", "type", "callable"],
)
def test_several_axes_are_folded_into_one_unit(given):
    model = model_of(layers.ReLU(name="relu"), (5, 3, 4))
    x = normal(5, 3, 4)
    report = watched(model, x, "relu", channel_axis=given)["relu"]
    assert (report.n_neurons, report.n_states) == (12, N * 5)
    check(report, x.reshape(N, 5, 12))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("last", TypeError, "channel_axis takes an axis"),
        (True, TypeError, "channel_axis takes an axis"),
        ({"relu": "last"}, TypeError, "'last', given for 'relu', is no axis"),
        ({"elu": 1}, ValueError, "'elu' matches no layer that is probed"),
        (7, ProbeError, "layer 'relu'.*has no axis 7"),
        ((-1, 3), ProbeError, "layer 'relu'.*twice"),
        (lambda *_: "last", ProbeError, "layer 'relu'.*gave 'last', which is no axis"),
    ],
)
def test_axes_that_are_none_are_refused(given, error, text):
    model = model_of(layers.ReLU(name="relu"), (5, 3, 4))
    with pytest.raises(error, match=text):
        watched(model, normal(5, 3, 4), "relu", channel_axis=given)
