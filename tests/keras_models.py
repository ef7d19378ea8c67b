"""Small Keras models for tests, and their states counted by NumPy."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

DATA = Path(__file__).parent / "data"
BACKEND = keras.backend.backend()


def only_on(*backends, because):
    """Skip a test on other backends of Keras."""
    return pytest.mark.skipif(BACKEND not in backends, reason=f"{BACKEND}: {because}")


# For what runs no code of a backend's.
once = only_on("tensorflow", because="the same as on TensorFlow")
RELEASE = tuple(int(part) for part in keras.__version__.split(".")[:2])


def since(release, *, before):
    """Skip a test under earlier releases of Keras, saying what they do."""
    return pytest.mark.skipif(release > RELEASE, reason=f"Keras {keras.__version__}: {before}")


SEVERAL_STEPS = pytest.param(
    {"steps_per_execution": 3},
    marks=only_on("tensorflow", "jax", because="Keras runs one step per execution only"),
)


def data(n=300, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10, 10, 1)).astype(np.float32)
    return x, (x.mean((1, 2, 3)) > 0).astype(np.int64)


def compiled(model, **options):
    options = {"metrics": ["accuracy"], **options}
    model.compile("sgd", "sparse_categorical_crossentropy", **options)
    return model


def sequential():
    return keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            layers.Conv2D(6, 3, activation="elu", name="conv_1"),
            layers.MaxPooling2D(),
            layers.Conv2D(70, 3, name="conv_2"),
            layers.Flatten(),
            layers.Dense(9, activation="tanh", name="fc"),
            layers.Dense(2, name="out"),
            layers.Softmax(),
        ]
    )


def functional():
    inputs = keras.Input((10, 10, 1))
    left = layers.Conv2D(6, 3, name="conv_1")(inputs)
    right = layers.Conv2D(6, 3, name="conv_2")(inputs)
    x = layers.Flatten()(layers.Add()([left, right]))
    x = layers.Dense(9, activation="tanh", name="fc")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="out")(x))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.convolutions = [layers.Conv2D(6, 3, name=f"conv_{n}") for n in (1, 2)]
        self.flatten = layers.Flatten()
        self.dense = {"fc": layers.Dense(9, activation="tanh", name="fc")}
        self.out = layers.Dense(2, activation="softmax", name="out")

    def call(self, inputs):
        x = inputs
        for convolution in self.convolutions:
            x = convolution(x)
        return self.out(self.dense["fc"](self.flatten(x)))


def subclassed():
    return Subclassed()


BUILDERS = [sequential, functional, subclassed]


def outputs_of(model, names, x):
    """Run the model once, eagerly, and return the output of each named layer."""
    seen = {}
    found = {layer.name: layer for layer in model._flatten_layers()}
    for name in names:
        layer = found[name]

        def keep(*args, _call=layer.call, _name=name, **kwargs):
            seen[_name] = _call(*args, **kwargs)
            return seen[_name]

        vars(layer)["call"] = keep
    try:
        model(x, training=False)
    finally:
        for name in names:
            del vars(found[name])["call"]
    return {name: keras.ops.convert_to_numpy(seen[name]) for name in names}


def count_states(activations, threshold=0):
    """Return the sorted counts of the distinct states, neurons last."""
    rows = activations.reshape(-1, activations.shape[-1]) > threshold
    return np.sort(np.unique(np.packbits(rows, axis=1), axis=0, return_counts=True)[1])


def lenet5():
    """LeNet-5 with the weights of `tests/data`, which PyTorch wrote."""
    blocks = []
    for number, (neurons, size) in enumerate([(20, 5), (50, 5), (100, 4)], start=1):
        blocks.append(layers.Conv2D(neurons, size, activation="elu", name=f"conv_{number}"))
        blocks.append(layers.BatchNormalization(epsilon=1e-5, name=f"norm_{number}"))
        if number < 3:
            blocks.append(layers.MaxPooling2D())
    head = [layers.Flatten(), layers.Dense(10, activation="softmax", name="pred")]
    model = keras.Sequential([keras.Input((28, 28, 1)), *blocks, *head])
    weights = np.load(DATA / "lenet5_weights.npz")
    for number in (1, 2, 3):
        kernel = weights[f"conv_{number}.weight"].transpose(2, 3, 1, 0)
        model.get_layer(f"conv_{number}").set_weights([kernel, weights[f"conv_{number}.bias"]])
        norm = ("weight", "bias", "running_mean", "running_var")
        model.get_layer(f"norm_{number}").set_weights([weights[f"norm_{number}.{p}"] for p in norm])
    model.get_layer("pred").set_weights([weights["pred.weight"].T, weights["pred.bias"]])
    return compiled(model)


def reference():
    return json.loads((DATA / "lenet5_mnist5k.json").read_text())


X, Y = data()
X_VAL, Y_VAL = data(101, seed=4)


def train(callbacks, epochs=4, **options):
    """Fit a new sequential model; return it and what was logged."""
    keras.utils.set_random_seed(5)
    model = compiled(sequential())
    options = {"validation_data": (X_VAL, Y_VAL), "verbose": 0, **options}
    history = model.fit(X, Y, epochs=epochs, batch_size=50, callbacks=callbacks, **options)
    return model, history.history


class SeesLogs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen, self.ended = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(dict(logs))

    def on_test_end(self, logs=None):
        self.ended.append(dict(logs))
