"""What tells the axis of the neurons of a Keras layer: weights, data, or what the user gives."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras_layer_oracle import (
    BATCH,
    CONVOLVES_FIRST,
    N,
    Y,
    chain,
    check,
    check_axes,
    head,
    model_of,
    normal,
    watched,
)
from keras_models import BACKEND, compiled, only_on

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback


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
