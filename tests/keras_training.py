"""A small model, trainings of it whose steps are recorded, and what its layers gave in each."""

import keras
import numpy as np
from keras import layers
from sampling_oracle import sampled_efficiency

from tensorstate_callbacks.keras import EfficiencyCallback

RNG = np.random.default_rng(11)
X = RNG.normal(size=(44, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
BATCH, N_BATCHES, EPOCHS = 8, 6, 2
"""The last batch of an epoch has 4 samples; a fit of two epochs has twelve batches."""
NAMES = ["first", "norm", "second"]


def small(*more, **options):
    """A model in whose training nothing is random, but which evaluates otherwise than it trains."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((4,))
    x = layers.Dense(9, name="first")(inputs)
    x = layers.Activation("tanh")(layers.BatchNormalization(name="norm")(x))
    for layer in more:
        x = layer(x)
    x = layers.Dense(5, activation="relu", name="second")(x)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="out")(x))
    options = {"optimizer": keras.optimizers.SGD(0.3, momentum=0.9), **options}
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def watch(*names, **options):
    given = {"on": "train", "every_n_train_steps": 2, "window": 3, **options}
    return EfficiencyCallback(list(names) or NAMES, **given)


def fit(model, *callbacks, **options):
    options = {"epochs": EPOCHS, "batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, callbacks=list(callbacks), **options).history


def outputs_of_steps(model, epochs=EPOCHS):
    """Train a model batch by batch; return what its layers gave in each training step."""
    steps = []
    for _ in range(epochs):
        for start in range(0, len(X), BATCH):
            part = slice(start, start + BATCH)
            weights = model.get_weights()
            steps.append(_outputs(model, X[part]))
            # The forward pass has moved the averages of batch normalization.
            model.set_weights(weights)
            model.train_on_batch(X[part], Y[part])
    return steps


def _outputs(model, x):
    inner = [model.get_layer(name).output for name in NAMES]
    found = keras.Model(model.input, inner)(x, training=True)
    return dict(zip(NAMES, map(keras.ops.convert_to_numpy, found), strict=True))


def assert_recount(report, steps, group_size=None):
    """Assert that a report is what NumPy counts of the layers' outputs in some steps."""
    assert list(report.layers) == NAMES
    for name, layer in report.layers.items():
        values = np.concatenate([step[name] for step in steps])
        efficiency, n_states = sampled_efficiency(values, (), group_size, None)
        assert np.isclose(layer.efficiency, efficiency, rtol=1e-12), name
        assert layer.n_states == n_states, name
    logs = [np.log(layer.efficiency) for layer in report.layers.values()]
    assert np.isclose(report.efficiency, np.exp(np.mean(logs)), rtol=1e-12)
    assert (report.stage, report.accuracy, report.aiq) == ("train", None, None)
